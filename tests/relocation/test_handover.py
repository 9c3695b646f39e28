"""A server is handed over to an agent, through an authenticated channel."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from relocation.agents import DESTINATION, SOURCE, agent_at, two_hosts
from loopback import (
    client_configuration,
    http_client,
    respond,
    server_side,
)

from quicferry import ClientMigration
from quicferry.protocol import MigrationProtocol
from quicferry.relocation.handover import Running
from quicferry.relocation.report import Outcome, Step, StepEnded
from quicferry.server import Phase


@pytest.mark.parametrize("protocol", list(MigrationProtocol), ids=lambda each: each.name)
async def test_clients_go_on_at_the_agent(tmp_path: Path, protocol: MigrationProtocol) -> None:
    configuration = client_configuration(ClientMigration(protocols=protocol))
    async with (
        two_hosts(tmp_path) as hosts,
        http_client(hosts.server, configuration=configuration) as client,
    ):
        await server_side(hosts.server, client)
        report = await hosts.hand_over(protocol=protocol)
        assert report.outcome is Outcome.COMMITTED, report.reason
        assert report.connections == (*hosts.agent.server.connections,)
        assert hosts.server.phase is Phase.DEPARTED
        assert (await client.request("POST", "/echo", body=b"on")).body == b"on"
        assert client.server_address == hosts.destination
        assert list(report.steps) == list(Step)
        assert [e.step for e in hosts.told if isinstance(e, StepEnded)] == list(Step)
