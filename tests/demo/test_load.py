"""One client of the demo against applications that answer right, and wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest
from hypercorn.typing import ASGIFramework
from quicferry_lab.demo import load
from quicferry_lab.demo.app import Message, Receive, Send, app
from quicferry_lab.demo.results import ClientReport
from quicferry_lab.demo.settings import ClientPlan, WorkerSettings
from quicferry_lab.emulation import PathSpec

import quicferry
from quicferry.server import load_pem, self_signed


def changed(path: str) -> object:
    """Return the demo's application, except that it changes a byte of some responses."""

    async def broken(scope: Message, receive: Receive, send: Send) -> None:
        async def change(message: Message) -> None:
            if message.get("body") and scope["path"].startswith(path):
                message["body"] = message["body"].replace(b"a", b"b")
            await send(message)

        await app(scope, receive, change)

    return broken


def refusing(path: str) -> object:
    """Return the demo's application, except that it refuses some requests."""

    async def broken(scope: Message, receive: Receive, send: Send) -> None:
        if scope.get("path", "").startswith(path):
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body"})
        else:
            await app(scope, receive, send)

    return broken


async def report_on(application: object, folder: Path) -> ClientReport:
    """Run a client until a request has failed, or a few have succeeded."""
    cert, key = self_signed(["127.0.0.1"])
    (folder / "ca.pem").write_bytes(cert)
    configuration = quicferry.Configuration(is_client=False, alpn_protocols=["h3"])
    load_pem(configuration, cert, key)
    app = cast(ASGIFramework, application)
    server = await quicferry.serve("127.0.0.1", 0, configuration=configuration, app=app)
    address = str(server.address)
    plan = ClientPlan(id=1, protocol="none", policy="none", seed=1)
    settings = WorkerSettings(
        address, str(folder / "ca.pem"), (plan,), {address: PathSpec(rate_mbit=8)}, "parallel"
    )
    client = load.ClientLoad(plan, settings)

    class Enough(asyncio.Event):
        def is_set(self) -> bool:
            return client.tally.requests_failed > 0 or client.tally.requests_ok >= 30

    begin = asyncio.Event()
    async with asyncio.timeout(20):
        await client.run(begin.set, begin, Enough())
    await server.close()
    return client.report()


async def test_right_answers(tmp_path: Path) -> None:
    report = await report_on(app, tmp_path)
    assert (report.requests_failed, report.errors, report.status) == (0, (), "done")
    assert report.requests_ok >= 30
    assert report.bytes_verified > 0
    assert {sample.kind for sample in report.samples} == {"echo", "download", "upload"}


@pytest.mark.parametrize("path", ["/echo", "/bytes", "/upload"])
async def test_changed_bodies_are_failures(path: str, tmp_path: Path) -> None:
    report = await report_on(changed(path), tmp_path)
    assert report.requests_failed > 0
    assert report.errors


async def test_refused_requests_are_failures(tmp_path: Path) -> None:
    report = await report_on(refusing("/echo"), tmp_path)
    assert report.requests_failed > 0
    assert "503" in report.errors[0]
