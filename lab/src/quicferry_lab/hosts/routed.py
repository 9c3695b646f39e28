"""A link that the laboratory's own router carries, and the process of that router."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from typing import Any

from quicferry_lab.emulation import PathSpec
from quicferry_lab.hosts import programs
from quicferry_lab.hosts.errors import LabError
from quicferry_lab.hosts.host import Host
from quicferry_lab.hosts.link import Backend, Link, attach, interface
from quicferry_lab.patience import patient

_START_LIMIT = patient(20.0)
_ANSWER_LIMIT = patient(10.0)
_END_LIMIT = patient(5.0)


class RouterProcess:
    """The router of a laboratory, in a process of its own; it ends with this one."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()

    @classmethod
    async def start(cls) -> RouterProcess:
        """Start the router.

        Raises:
            LabError: If it does not come up.
        """
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "quicferry_lab.hosts.router"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        router = cls(process)
        try:
            await router._answer(_START_LIMIT)
        except BaseException:
            await router.close()
            raise
        return router

    async def ask(self, **order: Any) -> None:
        """Have the router do something.

        Raises:
            LabError: If it cannot. The text says why.
        """
        assert self._process.stdin is not None
        async with self._turn:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            await self._answer(_ANSWER_LIMIT)

    async def _answer(self, limit: float) -> None:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(limit):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise LabError("the laboratory's router does not answer") from None
        if not line:
            raise LabError("the laboratory's router has ended; what it said is on stderr")
        if error := json.loads(line).get("error"):
            raise LabError(f"the laboratory's router cannot do that: {error}")

    async def close(self) -> None:
        """End the router, and with it its links."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_END_LIMIT):
                await self._process.wait()
        except TimeoutError:
            programs.kill(self._process)
            await self._process.wait()


class RoutedLink(Link):
    """A link that the router carries."""

    backend = Backend.ROUTER

    def __init__(
        self, near: Host, far: Host, path: PathSpec, back: PathSpec, router: RouterProcess
    ) -> None:
        super().__init__(near, far, path, back)
        self._router = router
        self._name = f"{near.name} {far.name}"

    @classmethod
    async def create(
        cls, near: Host, far: Host, path: PathSpec, back: PathSpec, router: RouterProcess
    ) -> RoutedLink:
        """Make the link.

        Raises:
            LabError: If that fails.
        """
        link = cls(near, far, path, back, router)
        ends = [(interface(far), near.pid), (interface(near), far.pid)]
        await router.ask(do="add", link=link._name, ends=ends, paths=[asdict(path), asdict(back)])
        await attach(near, far)
        await attach(far, near)
        return link

    async def cut(self) -> None:
        """Lose every packet from now on, in both directions, and those that are under way."""
        await self._router.ask(do="cut", link=self._name)

    async def restore(self) -> None:
        """Undo a cut."""
        await self._router.ask(do="restore", link=self._name)

    async def _apply(self, path: PathSpec, back: PathSpec) -> None:
        await self._router.ask(do="set", link=self._name, paths=[asdict(path), asdict(back)])
