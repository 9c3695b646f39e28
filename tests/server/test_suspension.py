"""A server falls silent as a whole, and goes on here or at another address.

Where the process would be carried to another host it is this one all the time; what is bound and
who is told is the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from loopback import (
    Filter,
    at,
    client_configuration,
    free_port,
    http_client,
    pattern_digest,
    respond,
    served,
    server_configuration,
    server_side,
    stock_configuration,
)

from quicferry import ClientMigration, Policy, Server, ServerMigration
from quicferry.protocol import Address, MigrationAddress, MigrationProtocol
from quicferry.relocation import HandoverCommands
from quicferry.server import (
    Farewell,
    ManagementClient,
    ManagementError,
    ManagementServer,
    Phase,
    RelocationError,
    RelocationErrorCode,
)
from quicferry.transport import NetworkAddress

HERE, THERE = "127.0.0.1", "127.0.0.2"


@asynccontextmanager
async def movable(host: str = HERE, app: Any = None) -> AsyncIterator[tuple[Server, Address]]:
    """Provide a server at a port that is free at both addresses, and where it will go."""
    port = free_port(HERE, THERE)
    pool = ServerMigration(pool=tuple(MigrationAddress.of(at(it, port)) for it in (THERE, HERE)))
    configuration = server_configuration(pool)
    async with served(app, port=port, host=host, configuration=configuration) as server:
        yield server, at(THERE, port)


async def announce(server: Server, there: Address, protocol: MigrationProtocol | None) -> None:
    explicit = protocol in (None, MigrationProtocol.EXPLICIT)
    await server.imminent(protocol, there if explicit else None)


def send(farewells: list[Farewell]) -> None:
    for each in farewells:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(each.source)
            sock.sendto(each.data, each.destination)


@pytest.mark.parametrize("host", [HERE, "0.0.0.0"])
@pytest.mark.parametrize("protocol", list(MigrationProtocol), ids=lambda each: each.name)
@pytest.mark.parametrize("policy", list(Policy), ids=lambda each: each.name)
async def test_clients_go_on_at_the_new_address(
    protocol: MigrationProtocol, policy: Policy, host: str
) -> None:
    migration = ClientMigration(protocols=protocol, policy=policy)
    async with (
        movable(host) as (server, there),
        http_client(server, host=HERE, configuration=client_configuration(migration)) as client,
    ):
        await server_side(server, client)
        await announce(server, there, protocol)
        suspension = server.suspension()
        assert not suspension.suspend(there)
        assert server.address.host.is_unspecified
        suspension.appear(there)
        suspension.activate()
        suspension.settle()
        assert (await client.request("POST", "/echo", body=b"after")).body == b"after"
        assert client.server_address == there
        assert (await server.wait_completed(10)).is_complete
        assert str(server.address.host) == (THERE if host == HERE else host)
        assert server.phase is Phase.SERVING


class SlowApp:
    """Answers when it may."""

    def __init__(self) -> None:
        self.is_running, self.may_end = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"].encode()
        self.is_running.set()
        await self.may_end.wait()
        await respond(send, path)


async def test_a_request_that_runs_goes_along() -> None:
    app = SlowApp()
    async with movable(app=app) as (server, there), http_client(server) as client:
        slow = asyncio.create_task(client.request("GET", "/slow"))
        await app.is_running.wait()
        await announce(server, there, None)
        suspension = server.suspension()
        suspension.suspend(there)
        app.may_end.set()
        await asyncio.sleep(0)  # the application may work while the server is silent
        suspension.appear(there)
        suspension.activate()
        assert (await slow).body == b"/slow"
        assert client.server_address == there


async def test_a_download_goes_along() -> None:
    size = 200_000
    async with movable() as (server, there), http_client(server) as client:
        await server_side(server, client)
        async with client.stream("GET", f"/bytes/{size}") as response:
            chunks = aiter(response)
            first = await anext(chunks)
            await announce(server, there, None)
            suspension = server.suspension()
            suspension.suspend(there)
            suspension.appear(there)
            suspension.activate()
            suspension.settle()
            rest = [chunk async for chunk in chunks]
        assert hashlib.sha256(first + b"".join(rest)).hexdigest() == pattern_digest(size)


@pytest.mark.parametrize("host", [HERE, "0.0.0.0"])
async def test_after_a_rollback_all_are_served_as_before(host: str) -> None:
    async with (
        movable(host) as (server, there),
        http_client(server, host=HERE) as client,
        http_client(server, host=HERE, configuration=stock_configuration()) as stock,
    ):
        await server_side(server, client)
        await server_side(server, stock)
        before = server.address
        await announce(server, there, None)
        suspension = server.suspension()
        assert suspension.suspend(there)
        held = asyncio.create_task(client.request("POST", "/echo", body=b"held"))
        unheard = asyncio.create_task(stock.request("POST", "/echo", body=b"too"))
        await asyncio.sleep(0)
        suspension.resume()
        assert (await held).body == b"held"
        assert (await unheard).body == b"too"
        assert server.address == before
        assert server.phase is Phase.SERVING
        # ... and it can be moved then.
        await announce(server, there, None)
        suspension = server.suspension()
        suspension.suspend(there)
        suspension.appear(there)
        suspension.activate()
        assert (await client.request("POST", "/echo", body=b"moved")).body == b"moved"
        assert client.server_address == there


async def test_nothing_is_said_in_the_silence() -> None:
    silence = Filter()
    async with (
        movable() as (server, there),
        http_client(server, wrap_transport=silence) as client,
    ):
        await server_side(server, client)
        await announce(server, there, None)
        suspension = server.suspension()
        suspension.suspend(there)
        heard: list[bytes] = []

        def listen(data: bytes, addr: NetworkAddress) -> bool:
            heard.append(data)
            return False

        silence.drops_received = listen
        request = asyncio.create_task(client.request("POST", "/echo", body=b"x"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(request), 0.3)
        suspension.appear(there)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(request), 0.3)
        assert not heard
        suspension.activate()
        assert (await request).body == b"x"


async def test_who_cannot_come_along_is_told_when_the_server_goes() -> None:
    async with (
        movable() as (server, there),
        http_client(server, configuration=stock_configuration()) as stock,
        http_client(server) as client,
    ):
        await server_side(server, stock)
        await server_side(server, client)
        await announce(server, there, None)
        suspension = server.suspension()
        farewells = suspension.suspend(there)
        assert stock.closed_by is None
        suspension.appear(there)
        suspension.activate()
        send(farewells)
        lost = await stock.wait_lost()
        assert lost.reason == "server migrated"
        assert (await client.request("POST", "/echo", body=b"on")).body == b"on"
        assert list(server.connections) == [next(iter(suspension.connections))]
        assert (await server.wait_completed(10)).lost == ()


async def test_it_has_to_be_prepared() -> None:
    async with movable() as (server, there):
        with pytest.raises(RelocationError) as caught:
            server.suspension().suspend(there)
        assert caught.value.code is RelocationErrorCode.NOT_PREPARED
        assert server.address.host != there.host


# The management commands


async def test_the_time_of_the_original_ends_by_itself(tmp_path: Any) -> None:
    path = tmp_path / "server.sock"
    async with movable() as (server, there), http_client(server) as client:
        await server_side(server, client)
        commands = HandoverCommands(server, "test").commands
        async with ManagementServer(server, path, commands):
            async with ManagementClient.connect(path) as orchestrator:
                await orchestrator.command("imminent", address=str(there))
                await orchestrator.command("suspend", address=str(there), memory="fetched")
            async with ManagementClient.connect(path) as orchestrator:
                await orchestrator.command("appear", address=str(there))
                await orchestrator.command("activate", hold=0.01)
                assert (await client.request("POST", "/echo", body=b"on")).body == b"on"
                await orchestrator.command("wait", timeout=10)
                loop = asyncio.get_running_loop()
                passed = loop.create_future()
                loop.call_later(0.02, passed.set_result, None)
                await passed  # timers run in order, so that of the server has run as well
                with pytest.raises(ManagementError) as caught:
                    await orchestrator.command("settle")
                assert caught.value.code == "NOT_PREPARED"
                await orchestrator.command("imminent")
                await orchestrator.command("suspend", address=str(at(HERE, there.port)))


async def test_all_management_connections_are_closed(tmp_path: Any) -> None:
    path = tmp_path / "server.sock"
    async with movable() as (server, there), http_client(server) as client:
        await server_side(server, client)
        commands = HandoverCommands(server, "test").commands
        async with ManagementServer(server, path, commands):
            async with (
                ManagementClient.connect(path) as other,
                ManagementClient.connect(path) as orchestrator,
            ):
                events = await other.events()
                await orchestrator.command("imminent", address=str(there))
                reply = await orchestrator.command("suspend", address=str(there))
                assert len(reply["connections"]) == 1
                await orchestrator.wait_closed()
                assert [each async for each in events]  # and that it has an end
            async with ManagementClient.connect(path) as orchestrator:
                await orchestrator.command("appear", address=str(there))
                with pytest.raises(ManagementError) as caught:
                    await orchestrator.command("resume")
                assert caught.value.code == "ALREADY_SWITCHED"
                await orchestrator.command("activate")
                await orchestrator.command("settle")
                assert (await client.request("POST", "/echo", body=b"on")).body == b"on"
                with pytest.raises(ManagementError) as caught:
                    await orchestrator.command("resume")
                assert caught.value.code == "NOT_PREPARED"
