"""A client that has fallen silent keeps no server where it is, nor does what it has asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from loopback import Filter, client_configuration, demo_app, http_client, server_side
from relocation.agents import two_hosts

from quicferry import ClientMigration
from quicferry.protocol import MigrationProtocol
from quicferry.relocation.steps.report import Outcome


async def test_a_silent_client_with_a_request_that_does_not_end(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/endless":
            await demo_app(scope, receive, send)
            return
        begun.set()
        while (await receive())["type"] != "http.disconnect":
            pass

    explicit = client_configuration(ClientMigration(MigrationProtocol.EXPLICIT))
    link = Filter()
    async with (
        two_hosts(tmp_path, app) as hosts,
        http_client(hosts.server, configuration=explicit) as client,
        http_client(hosts.server, configuration=explicit, wrap_transport=link) as deaf,
    ):
        await client.ping()
        name = (await server_side(hosts.server, deaf)).connection.stable_id
        asking = asyncio.create_task(deaf.request("GET", "/endless"))
        await begun.wait()
        await deaf.ping()
        link.drops_sent = lambda data, addr: True
        report = await hosts.hand_over(follow=0.0)
        assert report.outcome is Outcome.COMMITTED, report.reason
        assert report.encode()["silent"] == [name]
        assert report.closed == (name,)
        [rejected] = report.rejected
        assert "/endless" in rejected
        assert (await client.request("POST", "/", body=b"there")).body == b"there"
        assert client.server_address == hosts.destination
        await asyncio.gather(asking, return_exceptions=True)
