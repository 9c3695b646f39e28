from __future__ import annotations

import asyncio
from typing import Any

import pytest
from loopback import (
    Filter,
    at,
    free_port,
    http_client,
    next_event,
    served,
    server_configuration,
    server_side,
)
from relocating import (
    EXPLICIT,
    HOSTS,
    POOL,
    PROTOCOLS,
    SYMMETRIC,
    SYNCHRONIZED,
    only,
    pool,
    relocate,
    under_load,
)

from quicferry import (
    MigrationProtocol,
    Policy,
    Scheduler,
    ServerMigration,
)
from quicferry.protocol import MigrationCompleted, ServerMigrationReceived


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
async def test_there_and_back_under_load(protocol: MigrationProtocol) -> None:
    port = free_port(*HOSTS)
    migration = pool(port, *HOSTS) if protocol is POOL else ServerMigration()
    async with (
        served(port=port, configuration=server_configuration(migration)) as server,
        http_client(server) as first,
        http_client(server) as second,
    ):
        await server_side(server, first)
        await server_side(server, second)
        ids = set(server.connections)
        async with under_load(first, second):
            for host in ("127.0.0.2", "127.0.0.1"):
                address = at(host, port)
                await relocate(server, address, protocol, address if protocol is EXPLICIT else None)
                assert first.server_address == second.server_address == address
        assert set(server.connections) == ids


@pytest.mark.parametrize("policy", list(Policy))
async def test_policies(policy: Policy) -> None:
    port = free_port(*HOSTS)
    async with (
        served(port=port) as server,
        http_client(server, **only(EXPLICIT, policy=policy)) as client,
    ):
        await server_side(server, client)
        destination = at("127.0.0.2", port)
        received = next_event(client, ServerMigrationReceived)
        preparation = await server.imminent(EXPLICIT, destination)
        assert preparation.is_ready
        await received
        completed = next_event(client, MigrationCompleted)
        await server.switch(destination)
        if policy is Policy.PROACTIVE:
            client.probe_server_address()
        assert (await client.request("POST", "/", body=b"found")).body == b"found"
        await completed
        assert (await server.wait_completed(10)).is_complete


@pytest.mark.parametrize("scheduler", list(Scheduler))
async def test_schedulers(scheduler: Scheduler) -> None:
    port = free_port(*HOSTS)
    configuration = server_configuration(pool(port, *HOSTS))
    async with (
        served(port=port, configuration=configuration) as server,
        http_client(server, **only(POOL, scheduler=scheduler, seed=5)) as client,
    ):
        await server_side(server, client)
        async with under_load(client):
            await relocate(server, at("127.0.0.3", port))


async def test_only_the_port_changes() -> None:
    port, other = free_port("127.0.0.1"), free_port("127.0.0.1")
    async with served(port=port) as server, http_client(server) as client:
        await server_side(server, client)
        async with under_load(client):
            await relocate(server, at("127.0.0.1", other), EXPLICIT, at("127.0.0.1", other))
            await relocate(server, at("127.0.0.1", port), SYMMETRIC)


@pytest.mark.parametrize(
    ("protocol", "source", "destination", "announced"),
    [
        (EXPLICIT, "0.0.0.0", "127.0.0.2", "127.0.0.2"),
        (EXPLICIT, "127.0.0.1", "0.0.0.0", "127.0.0.2"),
        (SYMMETRIC, "0.0.0.0", "127.0.0.2", None),
    ],
)
async def test_wildcard_addresses(
    protocol: MigrationProtocol, source: str, destination: str, announced: str | None
) -> None:
    port = free_port()
    async with (
        served(port=port, host=source) as server,
        http_client(server, host="127.0.0.1") as client,
    ):
        await server_side(server, client)
        address = None if announced is None else at(announced, port)
        async with under_load(client):
            await relocate(server, at(destination, port), protocol, address)
            assert client.server_address == at("127.0.0.2", port)


async def test_a_wildcard_server_is_not_found_where_it_has_not_moved_to() -> None:
    """It would be reached at the announced address, being bound to all; but it must not answer."""
    link = Filter()
    challenges = 0
    challenged = asyncio.Event()

    def count_challenges(data: bytes, addr: Any) -> bool:
        nonlocal challenges
        if addr[0] == "127.0.0.2":
            challenges += 1
            challenged.set()
        return False

    link.drops_sent = count_challenges
    port = free_port()
    async with (
        served(port=port, host="0.0.0.0") as server,
        http_client(server, host="127.0.0.1", wrap_transport=link) as client,
        http_client(server, host="127.0.0.1") as other,
    ):
        await server_side(server, client)
        await server_side(server, other)
        async with under_load(client, other):
            destination = at("127.0.0.2", port)
            assert (await server.imminent(EXPLICIT, destination)).is_ready
            while challenges < 3:
                challenged.clear()
                await challenged.wait()
            assert client.server_address == at("127.0.0.1", port)
            await server.switch(destination)
            assert (await server.wait_completed(10)).is_complete
            await relocate(server, at("0.0.0.0", port), EXPLICIT, at("127.0.0.3", port))
            assert client.server_address == at("127.0.0.3", port)
            await relocate(server, at("127.0.0.1", port), SYNCHRONIZED)


async def test_a_wildcard_server_keeps_the_host_when_only_the_port_changes() -> None:
    async with (
        served(host="0.0.0.0") as server,
        http_client(server, host="127.0.0.3") as client,
    ):
        await server_side(server, client)
        port = free_port()
        async with under_load(client):
            await relocate(server, at("0.0.0.0", port), SYNCHRONIZED)
        assert client.server_address == at("127.0.0.3", port)
