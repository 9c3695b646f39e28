from __future__ import annotations

import asyncio
from typing import Any

import pytest
from loopback import (
    Filter,
    at,
    free_port,
    http_client,
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
    once_sent,
    only,
    pool,
    under_load,
)

from quicferry import (
    MigrationProtocol,
    RelocationError,
    ServerMigration,
)
from quicferry.io import UdpSocket
from quicferry.server import ConfigurationError, Phase


async def test_refused_requests_change_nothing() -> None:
    port = free_port(*HOSTS)
    destination = at("127.0.0.2", port)
    async with (
        served(port=port) as server,
        http_client(server, **only(SYMMETRIC)) as client,
    ):
        name = (await server_side(server, client)).connection.stable_id

        async def refused(code: str, *arguments: Any, **keywords: Any) -> None:
            with pytest.raises(RelocationError) as caught:
                await server.imminent(*arguments, **keywords)
            assert caught.value.code.name == code
            assert server.phase is Phase.SERVING
            assert (await client.request("POST", "/", body=b"x")).body == b"x"

        await refused("PROTOCOL_NOT_NEGOTIATED", EXPLICIT, destination)
        await refused("PROTOCOL_NOT_NEGOTIATED", connections={name: (SYNCHRONIZED, None)})
        await refused("UNKNOWN_CONNECTION", connections={"nobody": (None, None)})
        await refused("UNKNOWN_PROTOCOL", SYMMETRIC | EXPLICIT)
        await refused("EMPTY_POOL_MIGRATION_ADDRESSES", POOL)
        await refused("INVALID_ADDRESS", SYMMETRIC, destination)
        for address in (
            None,
            server.address,
            at("127.0.0.2", 0),
            at("0.0.0.0", port),
            at("224.0.0.1", port),
            at("255.255.255.255", port),
            at("[::1]", port),
        ):
            await refused("INVALID_ADDRESS", EXPLICIT, address)
            await refused("INVALID_ADDRESS", connections={name: (EXPLICIT, address)})
        with pytest.raises(ConfigurationError):
            await server.imminent(SYMMETRIC, connections={name: (SYMMETRIC, None)})
        with pytest.raises(ConfigurationError):
            await server.imminent(deadline=0)
        with pytest.raises(RelocationError, match="NOT_PREPARED"):
            await server.switch(destination)
        with pytest.raises(RelocationError, match="NOT_PREPARED"):
            await server.abort()
        with pytest.raises(RelocationError, match="NOT_PREPARED"):
            await server.wait_completed(1)


async def test_migration_switched_off() -> None:
    async with served(configuration=server_configuration(None)) as server:
        with pytest.raises(RelocationError, match="MIGRATION_DISABLED"):
            await server.imminent()


async def test_protocol_that_the_server_does_not_support() -> None:
    configuration = server_configuration(ServerMigration(SYMMETRIC))
    async with served(configuration=configuration) as server:
        with pytest.raises(RelocationError, match="PROTOCOL_NOT_NEGOTIATED: this server does not"):
            await server.imminent(EXPLICIT, at("127.0.0.2", 4433))


async def test_named_connection_whose_pool_is_not_acknowledged() -> None:
    port = free_port(*HOSTS)
    link = Filter()
    async with served(
        port=port, configuration=server_configuration(pool(port, "127.0.0.2"))
    ) as server:
        finished = asyncio.Event()
        link.drops_received = lambda data, addr: finished.is_set()
        link.drops_sent = once_sent(finished)
        events = server.events()
        async with http_client(server, wrap_transport=link, wait_connected=False) as client:
            client.transmit()
            async for event in events:
                if type(event.event).__name__ == "HandshakeFinished":
                    break
            [name] = server.connections
            with pytest.raises(RelocationError, match="POOL_MIGRATION_ADDRESSES_NOT_ACKNOWLEDGED"):
                await server.imminent(connections={name: (POOL, None)})
            assert server.phase is Phase.SERVING
            link.mend()
            assert (await client.request("POST", "/", body=b"x")).body == b"x"


async def test_wrong_destination_is_refused_and_can_be_corrected() -> None:
    port = free_port(*HOSTS)
    async with (
        served(port=port, configuration=server_configuration(pool(port, "127.0.0.2"))) as server,
        http_client(server, **only(POOL)) as pooled,
        http_client(server, **only(EXPLICIT)) as explicit,
    ):
        await server_side(server, pooled)
        await server_side(server, explicit)
        await server.imminent(address=at("127.0.0.2", port))
        for wrong in (
            server.address,
            at("127.0.0.3", port),
            at("127.0.0.2", port + 1),
            at("127.0.0.2", 0),
            at("[::1]", port),
        ):
            with pytest.raises(RelocationError, match="INVALID_ADDRESS"):
                await server.switch(wrong)
            assert server.phase is Phase.READY
        await server.switch(at("127.0.0.2", port))
        assert (await pooled.request("POST", "/", body=b"there")).body == b"there"
        assert (await server.wait_completed(10)).is_complete


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
async def test_address_that_cannot_be_bound(protocol: MigrationProtocol) -> None:
    port = free_port(*HOSTS)
    destination = at("127.0.0.2", port)
    migration = pool(port, *HOSTS) if protocol is POOL else ServerMigration()
    async with (
        served(port=port, configuration=server_configuration(migration)) as server,
        http_client(server) as client,
        http_client(server, configuration=stock_configuration()) as stock,
    ):
        await server_side(server, client)
        await server_side(server, stock)
        taken = UdpSocket.bind(destination)
        async with under_load(client, stock):
            await server.imminent(protocol, destination if protocol is EXPLICIT else None)
            with pytest.raises(RelocationError, match=r"CANNOT_BIND.*in use.*goes on at 127"):
                await server.switch(destination)
            assert server.address == at("127.0.0.1", port)
        taken.close()
        async with under_load(client):
            await server.switch(destination)
            assert (await server.wait_completed(10)).is_complete
