"""The management commands of a server that can be handed over."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from loopback import http_client
from relocation.agents import APPLICATION, SOURCE, Hosts, two_hosts

from quicferry import HttpClient
from quicferry.relocation import HandoverCommands
from quicferry.server import ManagementClient, ManagementError, ManagementServer, Phase


@dataclass
class Orchestrator:
    """Who gives commands to the server of some hosts.

    Attributes:
        hosts: The hosts.
        management: The management interface.
        client: A client of the server.
        socket: Where the management interface is.
    """

    hosts: Hosts
    management: ManagementClient
    client: HttpClient
    socket: Path

    @property
    def fields(self) -> dict[str, Any]:
        """What the handover is described by."""
        return {
            "agent": str(self.hosts.agent.address),
            "identity": str(self.hosts.identities[SOURCE]),
            "address": str(self.hosts.destination),
            "timeout": 0.1,
        }

    async def command(self, name: str, **fields: Any) -> dict[str, Any]:
        return await self.management.command(name, **fields)

    async def hand_over(self, **fields: Any) -> dict[str, Any]:
        return await self.command("handover", **self.fields, **fields)

    async def waits(self, events: AsyncIterator[dict[str, Any]], step: str) -> None:
        """Let each step begin until this one waits."""
        async for event in events:
            if event["event"] == "StepWaits":
                if event["step"] == step:
                    return
                assert (await self.command("proceed")) == {"phase": event["step"]}

    async def is_served(self, address: object) -> None:
        """Check that the client is served there."""
        assert (await self.client.request("POST", "/echo", body=b"on")).body == b"on"
        assert self.client.server_address == address


@asynccontextmanager
async def orchestrator(folder: Path) -> AsyncIterator[Orchestrator]:
    path = folder / "management.sock"
    async with two_hosts(folder) as hosts:
        commands = HandoverCommands(hosts.server, APPLICATION).commands
        async with (
            ManagementServer(hosts.server, path, commands),
            ManagementClient.connect(path) as management,
            http_client(hosts.server) as client,
        ):
            yield Orchestrator(hosts, management, client, path)


async def test_a_handover_is_reported(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as there:
        hosts = there.hosts
        source = str(hosts.server.address)
        assert (await there.command("status"))["last_handover"] is None
        report = await there.hand_over()
        assert (report["outcome"], report["failed_phase"]) == ("committed", None)
        assert (report["source"], report["destination"]) == (source, str(hosts.destination))
        assert len(report["connections"]) == 1
        status = await there.command("status")
        assert (status["handover"], status["last_handover"]) == (None, report)
        await there.is_served(hosts.destination)
        await hosts.server.wait_closed()


async def test_a_handover_step_by_step_says_where_it_is(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as there:
        events = await there.management.events()
        moving = asyncio.create_task(there.hand_over(pace="step-by-step"))
        await there.waits(events, "freeze")
        assert (await there.command("status"))["handover"] == {
            "phase": None,
            "waits_for": "freeze",
            "state": "accepted",
        }
        await there.command("proceed")
        await there.waits(events, "follow")
        await there.command("proceed")
        assert (await moving)["outcome"] == "committed"


async def test_a_handover_that_was_held_can_go_on_at_once(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as there:
        events = await there.management.events()
        moving = asyncio.create_task(there.hand_over(pace="step-by-step"))
        await there.waits(events, "drain")
        assert await there.command("proceed", pace="at-once") == {"phase": "drain"}
        assert (await moving)["outcome"] == "committed"


async def test_what_does_not_wait_cannot_proceed(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as there:
        with pytest.raises(ManagementError, match="no handover waits") as caught:
            await there.command("proceed")
        assert caught.value.code == "NOT_WAITING"


@pytest.mark.parametrize("step", ["offer", "imminent", "drain", "freeze", "thaw", "commit"])
async def test_it_can_be_aborted(tmp_path: Path, step: str) -> None:
    async with orchestrator(tmp_path) as there:
        events = await there.management.events()
        moving = asyncio.create_task(there.hand_over(pace="step-by-step"))
        await there.waits(events, step)
        assert await there.command("abort") == {}
        report = await moving
        assert (report["outcome"], report["reason"]) == ("rolled-back", "it was aborted")
        assert (await there.command("status"))["last_handover"] == report
        await there.is_served(there.hosts.server.address)
        assert (await there.hand_over())["outcome"] == "committed"


async def test_it_cannot_be_aborted_after_the_commitment(tmp_path: Path) -> None:
    async with orchestrator(tmp_path) as there:
        events = await there.management.events()
        moving = asyncio.create_task(there.hand_over(pace="step-by-step"))
        await there.waits(events, "follow")
        with pytest.raises(ManagementError, match="cannot be aborted any more") as caught:
            await there.command("abort")
        assert caught.value.code == "TOO_LATE"
        await there.command("proceed")
        assert (await moving)["outcome"] == "committed"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("handover", "MIGRATION_ALREADY_IN_PROGRESS"),
        ("imminent", "MIGRATION_ALREADY_IN_PROGRESS"),
        ("switch", None),
    ],
)
async def test_nothing_else_begins_meanwhile(
    tmp_path: Path, command: str, code: str | None
) -> None:
    async with orchestrator(tmp_path) as there:
        events = await there.management.events()
        moving = asyncio.create_task(there.hand_over(pace="step-by-step"))
        await there.waits(events, "transfer")
        fields = there.fields if command == "handover" else {"address": "127.0.0.3:4433"}
        with pytest.raises(ManagementError) as caught:
            await there.command(command, **fields)
        assert code is None or caught.value.code == code
        await there.command("abort")
        assert (await moving)["outcome"] == "rolled-back"
        assert there.hosts.server.phase is Phase.SERVING
        await there.is_served(there.hosts.server.address)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"agent": "nowhere"}, "agent must be HOST:PORT"),
        ({"agent": "host:0"}, "agent must be HOST:PORT"),
        ({"agent": "host:70000"}, "agent must be HOST:PORT"),
        ({"address": "here"}, "address"),
        ({"pace": "fast"}, "pace"),
        ({"running": "kill"}, "running"),
        ({"identity": "/nowhere"}, "make it with: quicferry agent init"),
        ({"force": True}, "handover has no field force"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
async def test_wrong_fields_change_nothing(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    async with orchestrator(tmp_path) as there:
        with pytest.raises(ManagementError, match=message):
            await there.command("handover", **{**there.fields, **fields})
        status = await there.command("status")
        assert (status["handover"], status["last_handover"]) == (None, None)
        await there.is_served(there.hosts.server.address)


@pytest.mark.parametrize("leaves", ["closes", "half-closes", "has not read"])
async def test_a_handover_at_once_goes_on_without_who_ordered_it(
    tmp_path: Path, leaves: str
) -> None:
    async with orchestrator(tmp_path) as there:
        events = await there.management.events()
        reader, writer = await asyncio.open_unix_connection(str(there.socket))
        order = {"command": "handover", "id": 1, **there.fields}
        writer.write(b'{"command": "events", "id": 0}\n')
        if leaves == "has not read":
            reader.feed_data(b"x" * (1 << 20))  # so that the transport stops reading
        writer.write(json.dumps(order).encode() + b"\n")
        async for event in events:
            if event["event"] == "StepEnded" and event["step"] == "offer":
                break
        if leaves == "half-closes":
            writer.write_eof()
            async for event in events:
                if event["event"] == "StepEnded" and event["step"] == "follow":
                    break
            assert b'"outcome": "committed"' in await reader.read()
            writer.close()
        else:
            writer.transport.abort()
        await there.hosts.server.wait_closed()
        await there.is_served(there.hosts.destination)
        assert there.hosts.agent.server is not None


async def test_a_handover_step_by_step_does_not_go_on_without_who_ordered_it(
    tmp_path: Path,
) -> None:
    async with orchestrator(tmp_path) as there:
        events = await there.management.events()
        _, writer = await asyncio.open_unix_connection(str(there.socket))
        order = {"command": "handover", "pace": "step-by-step", **there.fields}
        writer.write(json.dumps(order).encode() + b"\n")
        await there.waits(events, "freeze")
        writer.close()
        while (status := await there.command("status"))["handover"] is not None:
            pass
        assert status["last_handover"]["outcome"] == "rolled-back"
        assert "has gone away" in status["last_handover"]["reason"]
        await there.is_served(there.hosts.server.address)
