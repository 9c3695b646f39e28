from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aioquic.asyncio.client import connect as stock_connect
from aioquic.h3.connection import ErrorCode
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicErrorCode
from loopback import (
    Filter,
    at,
    free_port,
    http_client,
    pattern,
    served,
    server_configuration,
    server_side,
    stock_configuration,
)
from relocating import (
    EXPLICIT,
    HOSTS,
    POOL,
    PROTOCOLS,
    SYMMETRIC,
    SYNCHRONIZED,
    StockClient,
    once_sent,
    only,
    pool,
    under_load,
)

from quicferry import (
    ConnectFailed,
    HttpClient,
    MigrationProtocol,
    RelocationError,
)


async def test_automatic_choice() -> None:
    port = free_port(*HOSTS)
    configuration = server_configuration(pool(port, "127.0.0.2"))
    destination = at("127.0.0.2", port)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(port=port, configuration=configuration))
        clients: list[HttpClient] = []
        expected: dict[str, MigrationProtocol] = {}
        for protocols, best in (
            (POOL | EXPLICIT, POOL),
            (EXPLICIT | SYMMETRIC | SYNCHRONIZED, EXPLICIT),
            (SYMMETRIC | SYNCHRONIZED, SYNCHRONIZED),
            (SYMMETRIC, SYMMETRIC),
        ):
            client = await stack.enter_async_context(http_client(server, **only(protocols)))
            protocol = await server_side(server, client)
            expected[protocol.connection.stable_id] = best
            clients.append(client)
        async with under_load(*clients):
            preparation = await server.imminent(address=destination)
            assert preparation.protocols == expected
            await server.switch(destination)
            assert (await server.wait_completed(10)).is_complete


async def test_every_protocol_and_a_stock_client_at_once() -> None:
    port = free_port(*HOSTS)
    configuration = server_configuration(pool(port, "127.0.0.2"))
    stock_arguments: dict[str, Any] = {
        "configuration": stock_configuration(),
        "create_protocol": StockClient,
    }
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(port=port, configuration=configuration))
        clients: list[HttpClient] = []
        for protocol in PROTOCOLS:
            clients.append(await stack.enter_async_context(http_client(server, **only(protocol))))
            await server_side(server, clients[-1])
        stock = await stack.enter_async_context(stock_connect("127.0.0.1", port, **stock_arguments))
        assert isinstance(stock, StockClient)
        size = 20_000
        body = b"".join(pattern(size))
        assert await stock.get(f"/bytes/{size}") == body
        async with under_load(*clients):
            preparation = await server.imminent(address=at("127.0.0.2", port))
            assert sorted(preparation.protocols.values()) == sorted(PROTOCOLS)
            assert list(preparation.unable.values()) == ["PROTOCOL_NOT_NEGOTIATED"]
            assert await stock.get(f"/bytes/{size}") == body
            relocation = await server.switch(at("127.0.0.2", port))
            assert relocation.closed == tuple(preparation.unable)
            assert (await server.wait_completed(10)).is_complete
        event = await stock.terminated
        assert event == ConnectionTerminated(ErrorCode.H3_NO_ERROR, None, "server migrated")


async def test_a_client_without_the_extension_is_served_until_the_switch() -> None:
    async with (
        served(port=free_port(*HOSTS)) as server,
        http_client(server) as client,
        http_client(server, configuration=stock_configuration()) as stock,
    ):
        name = (await server_side(server, stock)).connection.stable_id
        await server_side(server, client)
        preparation = await server.imminent()
        assert preparation.is_ready
        assert preparation.unable == {name: "PROTOCOL_NOT_NEGOTIATED"}
        assert (await stock.request("POST", "/", body=b"still here")).body == b"still here"
        relocation = await server.switch(at("127.0.0.2", server.address.port))
        assert relocation.closed == (name,)
        lost = await stock.wait_lost()
        assert (lost.error_code, lost.reason) == (ErrorCode.H3_NO_ERROR, "server migrated")
        assert (await server.wait_completed(10)).is_complete
        assert (await client.request("POST", "/", body=b"moved")).body == b"moved"


async def test_only_clients_without_the_extension() -> None:
    async with (
        served(port=free_port(*HOSTS)) as server,
        http_client(server, configuration=stock_configuration()) as stock,
    ):
        await server_side(server, stock)
        destination = at("127.0.0.2", server.address.port)
        await server.imminent(EXPLICIT, destination)
        await server.switch(destination)
        assert (await stock.wait_lost()).reason == "server migrated"
        assert (await server.wait_completed(10)).is_complete
        async with http_client(server) as client:
            assert (await client.request("POST", "/", body=b"new")).body == b"new"


async def test_named_connections() -> None:
    port = free_port(*HOSTS)
    destination = at("127.0.0.2", port)
    async with (
        served(port=port) as server,
        http_client(server) as explicit,
        http_client(server) as symmetric,
        http_client(server) as best,
        http_client(server) as unnamed,
    ):
        ids = [
            (await server_side(server, client)).connection.stable_id
            for client in (explicit, symmetric, best, unnamed)
        ]
        preparation = await server.imminent(
            connections={
                ids[0]: (EXPLICIT, destination),
                ids[1]: (SYMMETRIC, None),
                ids[2]: (None, None),
            }
        )
        assert preparation.protocols == dict(
            zip(ids[:3], (EXPLICIT, SYMMETRIC, SYNCHRONIZED), strict=True)
        )
        assert preparation.unable == {ids[3]: "NOT_NAMED"}
        relocation = await server.switch(destination)
        assert relocation.closed == (ids[3],)
        assert (await unnamed.wait_lost()).reason == "server migrated"
        completion = await server.wait_completed(10)
        assert sorted(completion.completed) == sorted(ids[:3])
        for client in (explicit, symmetric, best):
            assert (await client.request("POST", "/", body=b"on")).body == b"on"


async def test_handshakes_are_refused_until_the_switch() -> None:
    async with served(port=free_port(*HOSTS)) as server:
        await server.imminent()
        with pytest.raises(ConnectFailed):
            async with http_client(server):
                pass
        await server.abort()
        async with http_client(server) as client:
            await server_side(server, client)
            await server.imminent()
            with pytest.raises(ConnectFailed):
                async with http_client(server):
                    pass
            await server.switch(at("127.0.0.2", server.address.port))
            async with http_client(server) as late:
                assert (await late.request("POST", "/", body=b"late")).body == b"late"


async def test_handshakes_under_way_are_closed() -> None:
    link = Filter()
    answered = asyncio.Event()

    def lose_answer(data: bytes, addr: Any) -> bool:
        answered.set()
        return True

    link.drops_received = lose_answer
    async with (
        served() as server,
        http_client(server, wrap_transport=link, wait_connected=False) as client,
    ):
        client.transmit()
        await answered.wait()
        link.mend()
        await server.imminent()
        with pytest.raises(ConnectFailed) as caught:
            await client.wait_connected()
        assert caught.value.error_code == QuicErrorCode.CONNECTION_REFUSED


async def test_a_new_clients_pool_is_waited_for() -> None:
    port = free_port(*HOSTS)
    link = Filter()
    async with (
        served(port=port, configuration=server_configuration(pool(port, "127.0.0.2"))) as server,
        http_client(server, wrap_transport=link, wait_connected=False) as client,
    ):
        # The pool comes with the last datagram of the handshake; lose it
        finished = asyncio.Event()
        link.drops_received = lambda data, addr: finished.is_set()
        events = server.events()
        link.drops_sent = once_sent(finished)
        client.transmit()
        async for event in events:
            if type(event.event).__name__ == "HandshakeFinished":
                break
        [name] = server.connections
        announcing = asyncio.create_task(server.imminent())
        await asyncio.sleep(0)
        assert server.status()["connections"][0]["progress"] == "waiting"
        with pytest.raises(RelocationError, match="MIGRATION_ALREADY_IN_PROGRESS"):
            await server.imminent()
        link.mend()
        assert (await announcing).protocols == {name: POOL}
        await server.switch(at("127.0.0.2", port))
        assert (await client.request("POST", "/", body=b"there")).body == b"there"
        assert (await server.wait_completed(10)).is_complete
