"""Strangers that knock while connections are handed over, at the source and at the agent."""

from __future__ import annotations

from pathlib import Path

from loopback import http_client
from relocation.agents import two_hosts
from strangers import knock, stranger

from quicferry.relocation.steps.report import Outcome


async def test_what_is_half_open_stays_behind(tmp_path: Path) -> None:
    async with (
        two_hosts(tmp_path, max_half_open=30) as hosts,
        http_client(hosts.server) as client,
        stranger(hosts.server.address.port, "127.0.0.9") as it,
    ):
        await client.ping()
        await it.send(knock() for _ in range(20))
        assert hosts.server.status()["handshakes"]["half_open"] == 20
        report = await hosts.hand_over(follow=0.0)
        assert report.outcome is Outcome.COMMITTED, report.reason
        assert len(report.connections) == 1
        assert (await client.request("POST", "/echo", body=b"there")).body == b"there"
        assert hosts.agent.server is not None
        counts = hosts.agent.server.status()["handshakes"]
        assert counts["half_open"] == 0
        it.go_to(str(hosts.destination.host))
        await it.send(knock() for _ in range(20))
        assert (counts := hosts.agent.server.status()["handshakes"])["half_open"] == 3
        assert counts["retried"] == 17
        async with http_client(hosts.agent.server) as newcomer:
            assert (await newcomer.request("POST", "/echo", body=b"new")).body == b"new"
