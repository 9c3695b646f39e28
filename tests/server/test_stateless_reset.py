"""Stateless resets of servers that move: none ends a connection that lives somewhere else."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from loopback import at, client_configuration, free_port, http_client, served, server_side

from quicferry import ClientMigration, Policy, Server
from quicferry.io import StatelessReset
from quicferry.protocol import MigrationCompleted, MigrationProtocol
from quicferry.server import ConfigurationError, load_key

SECRET = bytes(range(32))
HOME, AWAY = "127.0.0.1", "127.0.0.2"


def resets_from(server: Server, ids: tuple[bytes, ...], host: str) -> list[bytes]:
    """Return what a server at a host would say of these connection IDs if it did not know them."""
    address = (host, server.address.port)
    return [bytes(30) + StatelessReset(SECRET).token(address, cid) for cid in ids]


@pytest.mark.parametrize("protocol", [MigrationProtocol.EXPLICIT, MigrationProtocol.SYMMETRIC])
async def test_tokens_of_a_former_address_are_worth_nothing(protocol: MigrationProtocol) -> None:
    port = free_port(HOME, AWAY)
    away = at(AWAY, port)
    async with served(port=port, key=SECRET) as server, http_client(server) as client:
        side = await server_side(server, client)
        ids = side.connection.own_connection_ids
        completed = client.migration_events()
        await server.imminent(protocol, away if protocol is MigrationProtocol.EXPLICIT else None)
        await server.switch(away)
        await client.request("GET", "/")
        async for event in completed:
            if isinstance(event, MigrationCompleted):
                break
        for datagram in resets_from(server, ids, HOME):
            for host in (HOME, AWAY):
                client.receive(datagram, (host, port))
                client.settle()
        assert (await client.request("POST", "/", body=b"lives")).body == b"lives"


async def test_a_reset_from_home_counts_for_nothing_while_a_move_is_announced() -> None:
    port = free_port(HOME, AWAY)
    async with served(port=port, key=SECRET) as server, http_client(server) as client:
        side = await server_side(server, client)
        await server.imminent(MigrationProtocol.EXPLICIT, at(AWAY, port))
        for datagram in resets_from(server, side.connection.own_connection_ids, HOME):
            client.receive(datagram, (HOME, port))
            client.settle()
        assert (await client.request("POST", "/", body=b"lives")).body == b"lives"
        await server.switch(at(AWAY, port))
        assert (await client.request("POST", "/", body=b"moved")).body == b"moved"


@pytest.mark.parametrize("policy", list(Policy), ids=lambda each: each.name)
async def test_a_destination_that_shares_the_key_resets_nothing(policy: Policy) -> None:
    """The client looks for its server there before the connection has arrived."""
    port = free_port(HOME, AWAY)
    configuration = client_configuration(ClientMigration(policy=policy))
    async with (
        served(port=port, key=SECRET) as source,
        served(port=port, host=AWAY, key=SECRET) as destination,
        http_client(source, configuration=configuration) as client,
    ):
        await server_side(source, client)
        arrival = destination.arrival()
        await source.imminent(MigrationProtocol.EXPLICIT, destination.address)
        client.probe_server_address()
        await client.ping()
        departure = source.departure()
        await departure.drain(5)
        for frozen in departure.freeze():
            arrival.thaw(frozen)
        arrival.switch()
        arrival.activate()
        departure.depart(arrival.deliver)
        arrival.commit()
        await source.close()
        async with served(port=port, key=SECRET):  # another server where the source was
            assert (await client.request("POST", "/", body=b"lives")).body == b"lives"
            assert client.server_address == destination.address


# The key file


def test_a_key_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = load_key(path)
    assert len(key) >= 32
    assert load_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["key"]
    assert load_key(tmp_path / "another") != key


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o666])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(SECRET)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_key(path)


@pytest.mark.parametrize("content", [b"", b"x" * 31, b" " * 40, b"x" * 5000])
def test_a_key_of_no_use(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match="remove it"):
        load_key(path)


def test_a_key_that_cannot_be_made(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "key", tmp_path):
        with pytest.raises(ConfigurationError, match="name another one"):
            load_key(path)
