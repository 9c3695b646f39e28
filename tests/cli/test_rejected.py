"""What `quicferry fetch` says about a request that a server gives up on its way to another host."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from cli.command_line import run
from loopback import respond, served

from quicferry import Server
from quicferry.server.asgi import AsgiProtocol


class Rejecting:
    """An application whose server gives its second request up."""

    def __init__(self) -> None:
        self.server: Server | None = None
        self.requests = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        self.requests += 1
        if self.requests != 2:
            await respond(send, b"fine\n")
            return
        assert self.server is not None
        for protocol in self.server.connections.values():
            assert isinstance(protocol, AsgiProtocol)
            protocol.reject_requests()


@pytest.mark.parametrize(
    ("arguments", "said", "status", "answers"),
    [
        (
            (),
            b"* the server rejected the request; it may be sent again (H3_REQUEST_REJECTED); "
            b"connecting again",
            0,
            3,
        ),
        (("-d", "data"), b"Error: the server gave up the response (H3_REQUEST_CANCELLED)", 1, 1),
    ],
)
async def test_rejected_request(
    arguments: tuple[str, ...], said: bytes, status: int, answers: int
) -> None:
    app = Rejecting()
    async with served(app) as app.server:
        url = f"https://{app.server.address}/"
        done = await asyncio.to_thread(run, "fetch", url, "--insecure", "--repeat", "3", *arguments)
    assert done.stderr == said + b"\n"
    assert (done.returncode, done.stdout) == (status, b"fine\n" * answers)
