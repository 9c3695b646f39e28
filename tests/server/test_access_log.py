"""The access log, and what clients would like to write into it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from loopback import http_client, respond, served

EVIL = "/a%20b%0aERROR%1b[31m"


async def app(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"
    scope["path"] = "/changed"
    await respond(send, b"fine")


async def test_access_log_has_lines_of_its_own_only(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quicferry.access")
    async with served(app) as server, http_client(server) as client:
        agent = ("user-agent", 'a\x85]0;title "quoted" \x9b31m')
        await client.request("GET", f"{EVIL}?x=%0a", headers=[agent])
    [line] = [record.getMessage() for record in caplog.records if record.name == "quicferry.access"]
    assert line.isprintable()
    assert f'"GET {EVIL} 3" 200' in line
    assert r'"a\x85]0;title \x22quoted\x22 \x9b31m"' in line


async def test_reason_for_which_a_peer_closes_is_printable() -> None:
    async with served(app) as server, http_client(server) as client:
        await client.ping()
        [connection] = server.connections.values()
        connection.close(0x100, "evil\x1b[31m\nERROR forged \u202e" + "x" * 700)
        lost = await client.wait_lost()
    assert lost.reason.startswith(r"evil\x1b[31m\nERROR forged \u202exxx")
    assert lost.reason.isprintable()
    assert str(lost).isprintable()
    assert len(lost.reason) < 600
