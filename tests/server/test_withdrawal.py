"""A server changes its mind: what becomes of what it has announced, and who stands in the way."""

from __future__ import annotations

import pytest
from loopback import at, free_port, http_client, next_event, served, server_configuration
from loopback import server_side as server_side_of
from relocating import (
    EXPLICIT,
    HOSTS,
    POOL,
    SYMMETRIC,
    SYNCHRONIZED,
    OlderClient,
    one_deaf_client,
    only,
    pool,
    relocate,
    under_load,
)

from quicferry import HttpClient, MigrationProtocol, RelocationError, Server, Unready
from quicferry.io import UdpSocket
from quicferry.protocol import AnnouncementWithdrawn, ServerMigrationReceived
from quicferry.server import Phase

ANNOUNCING = pytest.mark.parametrize("protocol", [EXPLICIT, SYNCHRONIZED], ids=["explicit", "sync"])


async def name_of(server: Server, client: HttpClient) -> str:
    return (await server_side_of(server, client)).connection.stable_id


def announced_in_status(server: Server) -> dict[str, str | None]:
    return {each["id"]: each["announced"] for each in server.status()["connections"]}


# Clients that can be told


@pytest.mark.parametrize("following", [EXPLICIT, SYMMETRIC, SYNCHRONIZED, None])
@ANNOUNCING
async def test_after_an_abort_the_server_goes_anywhere(
    protocol: MigrationProtocol, following: MigrationProtocol | None
) -> None:
    port = free_port(*HOSTS)
    there, elsewhere = at("127.0.0.2", port), at("127.0.0.3", port)
    async with served(port=port) as server, http_client(server) as client:
        name = await name_of(server, client)
        withdrawn = next_event(client, AnnouncementWithdrawn)
        async with under_load(client):
            target = there if protocol is EXPLICIT else None
            await server.imminent(protocol, target)
            assert announced_in_status(server) == {name: str(target or "unknown")}
            await server.abort()
            assert announced_in_status(server) == {name: None}
            assert server.still_announced() == {}
            told = elsewhere if following in (EXPLICIT, None) else None
            await relocate(server, elsewhere, following, told)
        assert await withdrawn == AnnouncementWithdrawn(target)


async def test_a_failed_switch_can_be_given_up() -> None:
    """The address is taken between the announcement and the switch."""
    port = free_port(*HOSTS)
    there, elsewhere = at("127.0.0.2", port), at("127.0.0.3", port)
    async with served(port=port) as server, http_client(server) as client:
        await server_side_of(server, client)
        async with under_load(client):
            await server.imminent(EXPLICIT, there, bind=there)
            taken = UdpSocket.bind(there)
            with pytest.raises(RelocationError, match="CANNOT_BIND"):
                await server.switch(there)
            taken.close()
            await server.abort()
            await relocate(server, elsewhere, EXPLICIT, elsewhere)


async def test_a_client_that_does_not_hear_of_it_is_waited_for_and_then_not_ready() -> None:
    port = free_port(*HOSTS)
    elsewhere = at("127.0.0.3", port)
    async with (
        served(port=port) as server,
        one_deaf_client(server) as (client, _, name, link),
    ):
        link.mend()
        await server.imminent(EXPLICIT, at("127.0.0.2", port))
        link.drops_sent = lambda data, addr: True
        await server.abort()
        preparation = await server.imminent(EXPLICIT, elsewhere, deadline=0.05)
        assert preparation.unready == (name,)
        link.mend()
        relocation = await server.switch(elsewhere, unready=Unready.LEAVE)
        assert name in (*relocation.told, *relocation.closed)
        assert (await server.wait_completed(10)).is_complete
        assert (await client.request("POST", "/", body=b"on")).body == b"on"


async def test_a_switch_that_is_refused_for_the_unready_withdraws() -> None:
    port = free_port(*HOSTS)
    there, elsewhere = at("127.0.0.2", port), at("127.0.0.3", port)
    async with (
        served(port=port) as server,
        one_deaf_client(server) as (client, deaf, name, link),
    ):
        assert not (await server.imminent(EXPLICIT, there, deadline=0.05)).is_ready
        with pytest.raises(RelocationError, match=f"NOT_READY.*{name}"):
            await server.switch(there)
        link.mend()
        await relocate(server, elsewhere, EXPLICIT, elsewhere)
        for each in (client, deaf):
            assert (await each.request("POST", "/", body=b"on")).body == b"on"


# What can be known is looked at before any client is told


async def test_an_address_of_another_host_is_refused_before_anything_is_announced() -> None:
    port = free_port(*HOSTS)
    nowhere, elsewhere = at("192.0.2.1", 4433), at("127.0.0.3", port)
    async with served(port=port) as server, http_client(server) as client:
        name = await name_of(server, client)
        told: list[object] = []
        client.on_migration_event(told.append)
        for protocol in (EXPLICIT, None):
            with pytest.raises(RelocationError, match=r"CANNOT_BIND.*192\.0\.2\.1:4433.*goes on"):
                await server.imminent(protocol, nowhere, bind=nowhere)
            assert server.phase is Phase.SERVING
        await client.ping()
        assert told == []
        assert announced_in_status(server) == {name: None}
        await relocate(server, elsewhere, EXPLICIT, elsewhere)
        assert told[0] == ServerMigrationReceived(elsewhere)


async def test_an_address_in_use_is_refused_before_anything_is_announced() -> None:
    port = free_port(*HOSTS)
    there = at("127.0.0.2", port)
    async with served(port=port) as server, http_client(server) as client:
        await server_side_of(server, client)
        taken = UdpSocket.bind(there)
        with pytest.raises(RelocationError, match=r"CANNOT_BIND.*in use"):
            await server.imminent(EXPLICIT, there, bind=there)
        taken.close()
        await relocate(server, there, EXPLICIT, there)


async def test_trying_an_address_takes_nothing_from_those_who_use_it() -> None:
    """The server listens everywhere, and a client is at the address that is tried."""
    async with (
        served(host="0.0.0.0") as server,
        http_client(server, host="127.0.0.2") as client,
    ):
        await server_side_of(server, client)
        there = at("127.0.0.2", server.address.port)
        async with under_load(client):
            await server.imminent(SYMMETRIC, bind=there)
            await client.request("POST", "/", body=b"as ever")
            await server.abort()


@pytest.mark.parametrize("keyword", ["bind", "destination"])
async def test_clients_that_would_not_find_it_are_known_before(keyword: str) -> None:
    port = free_port(*HOSTS)
    configuration = server_configuration(pool(port, "127.0.0.2"))
    async with (
        served(port=port, configuration=configuration) as server,
        http_client(server, **only(POOL)) as client,
    ):
        await server_side_of(server, client)
        for wrong in (at("127.0.0.3", port), at("127.0.0.2", 0), server.address):
            with pytest.raises(RelocationError, match="INVALID_ADDRESS"):
                await server.imminent(**{keyword: wrong})  # type: ignore[arg-type]
            assert server.phase is Phase.SERVING
        await server.imminent(destination=at("127.0.0.2", port))
        assert server.phase is Phase.READY


# Clients that cannot be told


async def test_a_client_that_cannot_be_told_is_named_with_the_address() -> None:
    port = free_port(*HOSTS)
    there, elsewhere = at("127.0.0.2", port), at("127.0.0.3", port)
    async with (
        served(port=port) as server,
        http_client(server, create_protocol=OlderClient) as older,
        http_client(server) as client,
    ):
        await server_side_of(server, client)
        name = await name_of(server, older)
        await server.imminent(EXPLICIT, there)
        await server.abort()
        assert server.still_announced() == {name: str(there)}
        assert announced_in_status(server)[name] == str(there)
        for protocol, target in ((EXPLICIT, elsewhere), (SYMMETRIC, None), (None, elsewhere)):
            with pytest.raises(RelocationError, match=f"INVALID_STATE.*{name}.*{there}") as caught:
                await server.imminent(protocol, target)
            assert "--unready leave" in str(caught.value)
            assert server.phase is Phase.SERVING
        with pytest.raises(RelocationError, match=f"INVALID_STATE.*{name}.*{there}"):
            await server.imminent(connections={name: (EXPLICIT, elsewhere)})
        for each in (older, client):
            assert (await each.request("POST", "/", body=b"on")).body == b"on"
        await relocate(server, there, EXPLICIT, there)
        assert server.still_announced() == {}
        await relocate(server, elsewhere, EXPLICIT, elsewhere)


@pytest.mark.parametrize("protocol", [EXPLICIT, SYMMETRIC, None])
async def test_it_can_be_left_behind(protocol: MigrationProtocol | None) -> None:
    port = free_port(*HOSTS)
    elsewhere = at("127.0.0.3", port)
    async with (
        served(port=port) as server,
        http_client(server, create_protocol=OlderClient) as older,
        http_client(server) as client,
    ):
        await server_side_of(server, client)
        name = await name_of(server, older)
        await server.imminent(EXPLICIT, at("127.0.0.2", port))
        await server.abort()
        target = None if protocol is SYMMETRIC else elsewhere
        preparation = await server.imminent(protocol, target, unready=Unready.LEAVE)
        assert preparation.is_ready
        assert "127.0.0.2" in preparation.unable[name]
        assert (await older.request("POST", "/", body=b"still served")).body == b"still served"
        relocation = await server.switch(elsewhere)
        assert relocation.closed == (name,)
        assert (await older.wait_lost()).reason == "server migrated"
        assert (await server.wait_completed(10)).is_complete
        assert (await client.request("POST", "/", body=b"on")).body == b"on"


async def test_it_can_be_waited_for() -> None:
    port = free_port(*HOSTS)
    elsewhere = at("127.0.0.3", port)
    async with served(port=port) as server, http_client(server) as client:
        await server_side_of(server, client)
        async with http_client(server, create_protocol=OlderClient) as older:
            lost = (await server_side_of(server, older)).wait_lost()
            await server.imminent(SYNCHRONIZED)
            await server.abort()
            with pytest.raises(RelocationError, match=r"INVALID_STATE.*synchronized-symmetric"):
                await server.imminent(EXPLICIT, elsewhere)
        await lost
        await relocate(server, elsewhere, EXPLICIT, elsewhere)


async def test_automatically_it_is_told_nothing_that_would_be_left_behind() -> None:
    """On this host it surely hears the server from anywhere."""
    port = free_port(*HOSTS)
    there, elsewhere = at("127.0.0.2", port), at("127.0.0.3", port)
    async with (
        served(port=port) as server,
        http_client(server, create_protocol=OlderClient) as older,
        http_client(server) as client,
    ):
        names = [await name_of(server, each) for each in (older, client)]
        preparation = await server.imminent(None, there)
        assert preparation.protocols == dict(zip(names, (SYMMETRIC, EXPLICIT), strict=True))
        await server.abort()
        assert server.still_announced() == {}
        async with under_load(older, client):
            await relocate(server, elsewhere, None, elsewhere)


async def test_automatically_a_client_without_symmetric_is_told_as_ever() -> None:
    port = free_port(*HOSTS)
    there = at("127.0.0.2", port)
    async with (
        served(port=port) as server,
        http_client(server, create_protocol=OlderClient, **only(EXPLICIT)) as older,
    ):
        name = await name_of(server, older)
        assert (await server.imminent(None, there)).protocols == {name: EXPLICIT}
        await server.abort()
        await relocate(server, there, None, there)
