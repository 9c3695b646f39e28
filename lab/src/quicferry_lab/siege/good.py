"""The good client: ``python -m quicferry_lab.siege.good HOST PORT``, until its input ends.

It sends requests at a fixed rate, whether the last ones are answered or not. How long each took is
counted from the moment at which it was due. In the end it says for each when that was, and how many
seconds it took: none if there was no answer.
"""

from __future__ import annotations

import asyncio
import gc
import ssl
import sys
import time

import quicferry
from quicferry.client import HttpClient
from quicferry.protocol import ClientMigration, QuicferryError
from quicferry_lab.demo.lines import open_input, say

RATE = 20.0
"""Requests a second."""
PATH = "/bytes/2000"
LIMIT = 10.0
"""Seconds after which a request is given up."""


async def _request(client: HttpClient, due_at: float) -> tuple[float, float | None]:
    try:
        async with asyncio.timeout(LIMIT):
            response = await client.request("GET", PATH)
    except (QuicferryError, TimeoutError):
        return due_at, None
    is_right = response.status == 200 and len(response.body) == 2000
    return due_at, time.monotonic() - due_at if is_right else None


async def run(host: str, port: int) -> None:
    """Send requests until the input ends."""
    gc.freeze()
    lines = await open_input()
    ended = asyncio.create_task(lines.read())
    configuration = quicferry.Configuration(
        alpn_protocols=["h3"],
        server_name=host,
        verify_mode=ssl.CERT_NONE,
        server_migration=ClientMigration(),
    )
    connecting = quicferry.connect(
        host, port, configuration=configuration, create_protocol=HttpClient
    )
    tasks: list[asyncio.Task[tuple[float, float | None]]] = []
    async with connecting as client:
        await client.request("GET", PATH)
        say("connected")
        due_at = time.monotonic()
        while not ended.done():
            due_at += 1 / RATE
            await asyncio.wait([ended], timeout=max(0.0, due_at - time.monotonic()))
            tasks.append(asyncio.create_task(_request(client, due_at)))
        done = await asyncio.gather(*tasks)
    say("over", requests=done)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], int(sys.argv[2])))
