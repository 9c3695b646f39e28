"""A server with several addresses: the first can be moved, the others stay."""

from __future__ import annotations

import socket

import pytest
from loopback import at, free_port, http_client, served, server_configuration, server_side

from quicferry import BindError, Server
from quicferry.io import ConnectFailed
from quicferry.protocol import MigrationAddress, MigrationProtocol, ServerMigration
from quicferry.server import ConfigurationError, RelocationError

FIRST, SECOND, AWAY = "127.0.0.1", "127.0.0.2", "127.0.0.3"


async def works(server: Server, host: str) -> None:
    """Check that a new client can connect at a host."""
    async with http_client(server, host=host) as client:
        assert (await client.request("POST", "/", body=b"hello")).body == b"hello"


async def test_the_unspecified_address_of_ipv6_stands_for_both_families() -> None:
    async with served(host="::") as server:
        port = server.address.port
        assert [str(each) for each in server.addresses] == [f"[::]:{port}", f"0.0.0.0:{port}"]
        for host in ("::1", "127.0.0.1", "127.0.0.2"):
            await works(server, host)


async def test_that_of_ipv4_stands_for_ipv4() -> None:
    async with served(host="0.0.0.0") as server:
        assert server.addresses == (server.address,)
        await works(server, "127.0.0.1")


async def test_an_address_that_is_given_twice_is_bound_once() -> None:
    port = free_port("0.0.0.0")
    others = [("0.0.0.0", port), ("::", port)]
    async with served(host="::", port=port, others=others) as server:
        assert [each.family for each in server.addresses] == [6, 4]


async def test_a_second_address_that_is_in_use_leaves_nothing_behind() -> None:
    port = free_port(FIRST, SECOND)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((SECOND, port))
        with pytest.raises(BindError, match=SECOND):
            async with served(port=port, others=[(SECOND, port)]):
                pass
    async with served(port=port, others=[(SECOND, port)]):
        pass


@pytest.mark.parametrize(
    ("pooled", "why"),
    [
        ("10.0.0.1:4433", "a private address"),
        ("127.0.0.2:53", "port 53"),
        ("224.0.0.1:4433", "multicast"),
    ],
)
async def test_a_pool_that_every_client_would_refuse(pooled: str, why: str) -> None:
    """They would close their connections in the handshake; nobody needs to find out that way."""
    entry = MigrationAddress.parse(pooled)
    with pytest.raises(ConfigurationError, match=f"refuse {pooled} of the pool: .*{why}"):
        async with served(configuration=server_configuration(ServerMigration(pool=(entry,)))):
            pass


async def test_a_pool_for_other_clients_than_these() -> None:
    entry = MigrationAddress.parse("10.0.0.1:4433,[fd00::1]:4433")
    configuration = server_configuration(ServerMigration(pool=(entry,)))
    async with served(configuration=configuration, host="0.0.0.0"):
        pass


@pytest.mark.parametrize("protocol", [MigrationProtocol.EXPLICIT, MigrationProtocol.SYMMETRIC])
async def test_a_move_of_the_first_leaves_the_others_alone(protocol: MigrationProtocol) -> None:
    port = free_port(FIRST, SECOND, AWAY)
    away = at(AWAY, port)
    async with (
        served(port=port, others=[(SECOND, port)]) as server,
        http_client(server) as moving,
        http_client(server, host=SECOND) as staying,
    ):
        name = (await server_side(server, moving)).connection.stable_id
        await server_side(server, staying)
        async with staying.stream("GET", "/bytes/2000000") as response:
            announced = away if protocol is MigrationProtocol.EXPLICIT else None
            preparation = await server.imminent(protocol, announced)
            assert list(preparation.protocols) == [name]
            assert not preparation.unable
            await works(server, SECOND)
            with pytest.raises(ConnectFailed):
                await works(server, FIRST)
            relocation = await server.switch(away)
            assert (relocation.told, relocation.closed) == ((name,), ())
            assert len(await response.read()) == 2_000_000
        await moving.request("GET", "/")
        assert moving.server_address == away
        assert staying.server_address == at(SECOND, port)
        assert server.addresses == (away, at(SECOND, port))
        assert (await server.wait_completed(10)).is_complete
        where = {each["server"] for each in server.status()["connections"]}
        assert where == {str(away), f"{SECOND}:{port}"}
        await works(server, SECOND)


async def test_a_handover_ends_what_is_connected_elsewhere() -> None:
    port = free_port(FIRST, SECOND, AWAY)
    async with (
        served(port=port, others=[(SECOND, port)]) as source,
        served(port=port, host=AWAY) as destination,
        http_client(source) as moving,
        http_client(source, host=SECOND) as staying,
    ):
        await server_side(source, moving)
        name = (await server_side(source, staying)).connection.stable_id
        arrival = destination.arrival()
        await source.imminent(MigrationProtocol.SYMMETRIC)
        departure = source.departure()
        await departure.drain(5)
        for frozen in departure.freeze():
            arrival.thaw(frozen)
        arrival.switch()
        arrival.activate()
        assert departure.depart(arrival.deliver) == (name,)
        arrival.commit()
        assert (await moving.request("POST", "/", body=b"there")).body == b"there"
        assert (await staying.wait_lost()).reason == "server migrated"
        with pytest.raises(ConnectFailed):
            await works(source, SECOND)


async def test_a_server_with_several_addresses_is_not_carried_as_a_whole() -> None:
    port = free_port(FIRST, SECOND)
    async with served(port=port, others=[(SECOND, port)]) as server, http_client(server) as client:
        await server_side(server, client)
        await server.imminent(MigrationProtocol.SYMMETRIC)
        with pytest.raises(RelocationError, match="several addresses"):
            server.suspension().suspend(at(AWAY, port))
        await server.abort()
        assert (await client.request("POST", "/", body=b"on")).body == b"on"
