"""The state that an application has carried along when its server is handed over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from loopback import demo_app

from quicferry.server import ApplicationError
from quicferry.server import application as module
from quicferry.server.application import Application


class Stateful:
    """An application with state.

    Attributes:
        content: What it knows.
        hooks: What it puts into the state of the lifespan scope.
        heard: What the lifespan told it.
    """

    def __init__(self, content: Any = b"", **hooks: Any) -> None:
        self.content = content
        self.hooks = hooks or {"export": self._export, "import": self._import}
        self.heard: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"
        for name, hook in self.hooks.items():
            scope["state"][f"quicferry.{name}"] = hook
        for step in ("startup", "shutdown"):
            self.heard.append((await receive())["type"])
            await send({"type": f"lifespan.{step}.complete"})

    async def _export(self) -> Any:
        return self.content

    async def _import(self, data: bytes) -> None:
        self.content = data


@asynccontextmanager
async def running(app: Any) -> AsyncIterator[Application]:
    application = Application(app)
    await application.start()
    try:
        yield application
    finally:
        await application.stop()


@pytest.mark.parametrize("content", [b"", b"what it knows"])
async def test_state_is_carried(content: bytes) -> None:
    target = Stateful(b"nothing yet")
    async with running(Stateful(content)) as here, running(target) as there:
        assert here.has_hooks
        await there.import_(await here.export())
    assert target.content == content


async def test_an_application_without_state() -> None:
    async with running(demo_app) as here, running(demo_app) as there:
        assert not here.has_hooks
        assert await here.export() is None
        await there.import_(None)


async def test_applications_that_do_not_go_together() -> None:
    async with running(Stateful(b"x")) as stateful, running(demo_app) as stateless:
        with pytest.raises(ApplicationError, match=r"no 'quicferry.import'.*same application"):
            await stateless.import_(await stateful.export())
        with pytest.raises(ApplicationError, match=r"expects state.*same application"):
            await stateful.import_(await stateless.export())


@pytest.mark.parametrize("name", ["export", "import"])
@pytest.mark.parametrize("other", [None, "no function"])
async def test_half_of_the_hooks(name: str, other: Any) -> None:
    async def hook(*_: Any) -> bytes:
        return b""

    hooks = {"export": other, "import": other, name: hook}
    app = Stateful(**hooks)
    with pytest.raises(ApplicationError, match=r"both 'quicferry\.export' and 'quicferry\.import'"):
        await Application(app).start()
    assert app.heard == ["lifespan.startup", "lifespan.shutdown"]


async def test_failing_hooks_are_named_without_the_data(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail(*_: Any) -> bytes:
        raise KeyError("secret of a user")

    async with running(Stateful(**{"export": fail, "import": fail})) as application:
        with pytest.raises(ApplicationError) as exported:
            await application.export()
        with pytest.raises(ApplicationError) as imported:
            await application.import_(b"secret of a user")
    for caught, name in ((exported, "export"), (imported, "import")):
        expected = f"the application's 'quicferry.{name}' failed with KeyError; see its own log"
        assert str(caught.value) == expected
        assert f"'quicferry.{name}' failed" in caplog.text


async def test_what_is_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STATE_SIZE", 10)
    for content, text in (
        ("text", "returned str, not bytes"),
        (None, "returned NoneType, not bytes"),
        (bytes(11), "returned 11 bytes, and at most 10"),
    ):
        async with running(Stateful(content)) as application:
            with pytest.raises(ApplicationError, match=text):
                await application.export()
