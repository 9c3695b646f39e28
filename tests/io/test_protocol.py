from __future__ import annotations

import asyncio

import pytest
from loopback import (
    Filter,
    at,
    client_configuration,
    free_port,
    http_client,
    next_event,
    served,
    server_configuration,
    server_side,
)

import quicferry
from quicferry import ConnectionLost, MigrationProtocol
from quicferry.io import ConnectFailed, EventStream
from quicferry.protocol import (
    ConnectionClosed,
    MigrationCompleted,
    MigrationEvent,
    ServerMigrationReceived,
)


async def test_event_stream() -> None:
    stream: EventStream[int] = EventStream()
    stream.put(1)
    stream.put(2)
    stream.end()
    stream.put(3)
    assert stream.has_ended
    assert [event async for event in stream] == [1, 2]
    assert [event async for event in stream] == []


async def test_several_may_wait_for_the_handshake() -> None:
    async with served() as server, http_client(server, wait_connected=False) as client:
        assert not client.is_connected
        client.transmit()
        await asyncio.gather(*(client.wait_connected() for _ in range(3)))
        await client.wait_connected()
        assert client.is_connected


async def test_failed_handshake_is_told_to_all_who_wait() -> None:
    async with served() as server:
        configuration = client_configuration()
        configuration.alpn_protocols = ["something else"]
        async with http_client(server, configuration=configuration, wait_connected=False) as client:
            client.transmit()
            waiting = [client.wait_connected() for _ in range(2)]
            for result in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(result, ConnectFailed)
                assert isinstance(result, ConnectionError)
                assert "No common ALPN protocols" in str(result)


async def test_the_end_is_known_before_the_closing_period_is_over() -> None:
    async with served() as server, http_client(server) as client:
        told: list[ConnectionLost] = []
        client.on_lost(told.append)
        protocol = await server_side(server, client)
        protocol.close(0x107, "enough")
        assert protocol.closed_by is not None
        assert not server.connections
        lost = await client.wait_lost()
        assert told == [lost]
        assert (lost.error_code, lost.reason, str(lost)) == (
            0x107,
            "enough",
            "the connection has ended: enough",
        )
        with pytest.raises(ConnectionLost, match="enough"):
            await client.request("GET", "/")
        await client.wait_closed()
        await client.wait_lost()
        assert told == [lost]


async def test_ping_fails_when_the_connection_ends() -> None:
    link = Filter()
    async with served() as server, http_client(server, wrap_transport=link) as client:
        await client.ping()
        link.cut()
        ping = asyncio.create_task(client.ping())
        await asyncio.sleep(0)
        client.close()
        with pytest.raises(ConnectionLost):
            await ping


async def test_migration_events_reach_everyone_who_listens() -> None:
    class Listening(quicferry.HttpClient):
        heard: list[MigrationEvent]

        def migration_event_received(self, event: MigrationEvent) -> None:
            self.heard = [*getattr(self, "heard", []), event]

    called: list[MigrationEvent] = []
    async with (
        served(port=free_port("127.0.0.1", "127.0.0.2")) as server,
        http_client(server, create_protocol=Listening) as client,
    ):
        client.on_migration_event(called.append)
        ended, streams = client.migration_events(), [client.migration_events() for _ in range(2)]
        ended.end()
        await server_side(server, client)
        completed = next_event(client, MigrationCompleted)
        destination = at("127.0.0.2", server.address.port)
        await server.imminent(MigrationProtocol.EXPLICIT, destination)
        await server.switch(destination)
        assert await completed == MigrationCompleted(MigrationProtocol.EXPLICIT, destination)
        assert client.server_address == destination
    assert called[0] == ServerMigrationReceived(destination)
    assert isinstance(called[-1], ConnectionClosed)
    assert isinstance(client, Listening)
    assert client.heard == called
    for stream in streams:
        assert [event async for event in stream] == called
    assert [event async for event in ended] == []
    assert [event async for event in client.migration_events()] == []


async def test_idle_timeout() -> None:
    link = Filter()
    async with (
        served(configuration=server_configuration(idle_timeout=0.2)) as server,
        http_client(server, wrap_transport=link) as client,
    ):
        protocol = await server_side(server, client)
        link.cut()
        for side in (client, protocol):
            assert (await side.wait_lost()).reason == "Idle timeout"
