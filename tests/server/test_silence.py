"""A client that acknowledges nothing holds no move up; one whose acknowledgements are lost does."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from loopback import Filter, at, free_port, http_client, served, server_configuration
from quicferry_lab.simulation import Path
from relocating import EXPLICIT, HOSTS, POOL, SYMMETRIC, one_deaf_client, only, pool
from simulated_pair import AWAY, Pair, address, pair

from quicferry import ConnectionLost, ServerMigration, Unready
from quicferry.protocol import HandshakeFinished, MigrationProtocol, MigrationReady
from quicferry.server import Phase
from quicferry.server.silence import Silence, patience

DEADLINE = 5.0


@pytest.mark.parametrize(
    ("probe_timeout", "deadline", "expected"),
    [
        (0.03, 5, 1.0),  # on loopback: not less than a second
        (0.05, 5, 1.55),
        (0.3, 5, 5),  # at the deadline, with four repetitions
        (20.0, 5, 5),  # a round trip that is long on purpose
        (20.0, 3.5, 3.5),
        (20.0, 3.4, None),
        (0.03, 0.5, 0.5),
        (0.03, 0.2, None),
        (0.3, 3600, 9.3),
    ],
)
def test_patience(probe_timeout: float, deadline: float, expected: float | None) -> None:
    assert patience(probe_timeout, deadline) == (
        None if expected is None else pytest.approx(expected)
    )


# The simulated network


def announce(it: Pair, protocol: MigrationProtocol = EXPLICIT) -> Silence:
    """Announce a move as a server does, and watch the client."""
    silence, connection, now = Silence(), it.server.migrating, it.network.now
    silence.watch("it", connection, connection.next_packet_number, now=now, deadline=DEADLINE)
    target = address(AWAY) if protocol is EXPLICIT else None
    connection.imminent_migration(protocol, target, now=now)
    it.server.flush()
    return silence


def judge(it: Pair, silence: Silence) -> list[str]:
    """Return who is silent when the time for that has come."""
    due = silence.due
    assert due is not None
    it.network.run_for(due - it.network.now)
    assert silence.look(due - 0.001) == []
    return silence.look(due)


@pytest.mark.parametrize("rtt", [0.018, 0.122, 0.4])
@pytest.mark.parametrize("loss", [0.0, 0.05, 0.15])
@pytest.mark.parametrize("seed", range(8))
def test_a_client_behind_a_path_that_loses_is_not_silent(
    rtt: float, loss: float, seed: int
) -> None:
    path = Path(delay=rtt / 2)
    with pair(seed, path=path) as it:
        it.network.set_path(replace(path, loss=loss))
        assert judge(it, announce(it)) == []


@pytest.mark.parametrize("gap", [0.1, 0.3, 0.6])
def test_a_path_that_is_gone_for_a_moment(gap: float) -> None:
    path = Path(delay=0.009)
    with pair(path=path) as it:
        it.network.set_path(replace(path, loss=1.0))
        silence = announce(it)
        it.network.run_for(gap)
        it.network.set_path(path)
        assert judge(it, silence) == []


@pytest.mark.parametrize("rtt", [0.018, 0.4])
def test_a_client_that_is_gone_is_silent(rtt: float) -> None:
    path = Path(delay=rtt / 2)
    with pair(path=path) as it:
        it.network.set_path(replace(path, loss=1.0))
        begun = it.network.now
        assert judge(it, announce(it)) == ["it"]
        assert 1.0 <= it.network.now - begun <= DEADLINE


def test_what_was_sent_before_does_not_count() -> None:
    """An acknowledgement that is under way when the move is announced says nothing of it."""
    with pair() as it:
        before = it.server.migrating
        before.send_ping(1)
        it.server.flush()
        it.network.run_for(0.009)  # the client has it, and has answered
        silence = announce(it)
        it.network.set_path(Path(delay=0.009, loss=1.0))
        assert judge(it, silence) == ["it"]


# A server


async def test_a_silent_client_does_not_hold_a_move_up() -> None:
    port = free_port(*HOSTS)
    destination = at("127.0.0.2", port)
    async with (
        served(port=port) as server,
        one_deaf_client(server) as (client, deaf, name, _),
    ):
        preparation = await server.imminent(EXPLICIT, destination)
        assert preparation.is_ready
        assert (preparation.silent, preparation.unready) == ((name,), ())
        assert preparation.seconds < DEADLINE
        status = server.status()
        assert (status["phase"], status["silent"]) == ("ready", [name])
        assert {each["id"]: each["progress"] for each in status["connections"]}[name] == "silent"
        relocation = await server.switch(destination)
        assert relocation.closed == (name,)
        assert (await deaf.wait_lost()).reason == "server migrated"
        assert (await server.wait_completed(10)).is_complete
        assert (await client.request("POST", "/", body=b"moved")).body == b"moved"


async def test_one_that_speaks_again_before_the_switch_comes_along() -> None:
    port = free_port(*HOSTS)
    destination = at("127.0.0.2", port)
    async with (
        served(port=port) as server,
        one_deaf_client(server) as (_, deaf, name, link),
    ):
        preparation = await server.imminent(EXPLICIT, destination)
        assert preparation.silent == (name,)
        events = server.events()
        link.mend()
        async for event in events:
            if isinstance(event.event, MigrationReady) and event.connection_id == name:
                break
        assert server.status()["silent"] == []
        assert (await server.switch(destination)).closed == ()
        assert (await server.wait_completed(10)).is_complete
        assert (await deaf.request("POST", "/", body=b"too")).body == b"too"


async def test_a_silent_client_goes_on_after_an_abort() -> None:
    port = free_port(*HOSTS)
    async with (
        served(port=port) as server,
        one_deaf_client(server) as (_, deaf, name, link),
    ):
        assert (await server.imminent(EXPLICIT, at("127.0.0.2", port))).silent == (name,)
        await server.abort()
        link.mend()
        assert (await deaf.request("POST", "/", body=b"as ever")).body == b"as ever"
        preparation = await server.imminent(EXPLICIT, at("127.0.0.3", port))
        assert (preparation.is_ready, preparation.silent) == (True, ())
        assert server.phase is Phase.READY


@pytest.mark.parametrize("protocol", [POOL, SYMMETRIC])
async def test_protocols_that_announce_nothing(protocol: MigrationProtocol) -> None:
    """A client that has acknowledged all that it has to before is ready, silent or not."""
    port = free_port(*HOSTS)
    migration = pool(port, "127.0.0.2") if protocol is POOL else ServerMigration()
    async with (
        served(port=port, configuration=server_configuration(migration)) as server,
        http_client(server, **only(protocol)) as client,
    ):
        await client.ping()
        await client.ping()
        preparation = await server.imminent(protocol)
        assert (preparation.is_ready, preparation.silent) == (True, ())


async def test_a_client_that_has_never_acknowledged_its_pool() -> None:
    """It has finished its handshake, and fallen silent."""
    port = free_port(*HOSTS)
    destination = at("127.0.0.2", port)
    configuration = server_configuration(pool(port, "127.0.0.2"))
    async with served(port=port, configuration=configuration) as server:
        link, events = Filter(), server.events()
        handshakes = iter(range(2))  # the ClientHello, and the end of the handshake
        link.drops_sent = lambda data, addr: not data[0] & 0x80 or next(handshakes, None) is None
        async with http_client(server, wrap_transport=link) as client:
            async for event in events:
                if isinstance(event.event, HandshakeFinished):
                    break
            [name] = server.connections
            connection = server.connections[name].connection
            sent = connection.next_packet_number
            preparing = asyncio.create_task(server.imminent(POOL))
            await asyncio.sleep(0)
            assert connection.next_packet_number > sent  # it has something to answer to at once
            preparation = await preparing
            assert (preparation.is_ready, preparation.silent) == (True, (name,))
            assert (await server.switch(destination)).closed == (name,)
            assert isinstance(client.closed_by or await client.wait_lost(), ConnectionLost)


async def test_a_deadline_that_is_too_short_for_a_judgement_leaves_it_to_the_operator() -> None:
    async with (
        served(port=free_port(*HOSTS)) as server,
        one_deaf_client(server) as (_, _, name, _),
    ):
        destination = at("127.0.0.2", server.address.port)
        preparation = await server.imminent(EXPLICIT, destination, deadline=0.05)
        assert (preparation.unready, preparation.silent) == ((name,), ())
        assert (await server.switch(destination, unready=Unready.LEAVE)).closed == (name,)
