"""The network switch of a copy that is still silent: what a handover to another host does."""

from __future__ import annotations

import random

import pytest
from aioquic.quic import events
from quicferry_lab.simulation import Answer, Exchange, NatKind, Path, SimulatedAddress
from quicferry_lab.simulation.invariants import events_of
from simulated_pair import AWAY, HOME, Pair, pair, pool

from quicferry.protocol import (
    ClientMigration,
    MigrationCompleted,
    MigrationFailed,
    MigrationProtocol,
    MigrationReady,
    Policy,
    ServerMigration,
)
from quicferry.transport import Connection, activate, commit, freeze, resume_after_freeze, thaw

BOTH_WAYS = Exchange(40_000, 40_000, answer=Answer.AT_ONCE)
POLICIES = (Policy.REACTIVE, Policy.EAGER)
DELAYS = (0.0, 0.05, 0.7, 6.0)
"""Seconds between the steps; the last one is longer than what the server waits for a client."""


def options(protocol: MigrationProtocol) -> ServerMigration:
    uses_pool = protocol is MigrationProtocol.POOL_OF_ADDRESSES
    return ServerMigration(pool=pool(AWAY) if uses_pool else ())


def prepare(it: Pair, protocol: MigrationProtocol) -> None:
    it.imminent(protocol, AWAY if protocol is MigrationProtocol.EXPLICIT else None)


def thaw_beside(it: Pair) -> Connection:
    """Freeze the server's connection, whose host is gone, and thaw the copy."""
    source = it.server.migrating
    it.network.detach(it.host.address)
    data = freeze(source, now=it.network.now)
    return thaw(data, configuration=source.configuration, now=it.network.now)


def assert_silent(it: Pair, copy: Connection, received: list[bytes]) -> None:
    """Nothing comes out of a copy, whatever is done to it."""
    now = it.network.now
    for data in received:
        copy.receive_datagram(data, it.client.external, now)
    copy.handle_timer(now + 1000)
    assert copy.is_sealed
    assert copy.datagrams_to_send(now) == []
    assert copy.get_timer() is None
    assert copy.next_event() is None
    assert copy.next_migration_event() is None


def take_over(it: Pair, copy: Connection, address: SimulatedAddress) -> None:
    """Let the copy live in the place of its source."""
    activate(copy, now=it.network.now)
    it.server.connection = copy
    it.host.address = address
    it.network.attach(address, it.host.receive)
    it.server.flush()


def wait_for_completion(it: Pair) -> None:
    it.network.run_until(
        lambda: bool(events_of(it.server, MigrationCompleted)), limit=60, what="completion"
    )


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_the_client_follows_to_the_copy(
    protocol: MigrationProtocol, policy: Policy, delay: float
) -> None:
    received: list[bytes] = []
    with pair(server=options(protocol), client=ClientMigration(policy=policy)) as it:
        it.network.taps.append(lambda datagram: received.append(datagram.data))
        prepare(it, protocol)
        it.requests.start([[BOTH_WAYS]])
        it.network.run_for(0.02)
        copy = thaw_beside(it)
        assert copy.migration_state == "ready"
        it.network.run_for(delay)
        copy.network_switch(AWAY, now=it.network.now)
        assert copy.migration_state == "switched"
        assert copy.server_address == AWAY
        it.network.run_for(delay)
        assert_silent(it, copy, received)
        take_over(it, copy, AWAY)
        wait_for_completion(it)
        it.network.run_until(lambda: it.requests.done, limit=60, what="the exchange")
        assert it.client.connection.get_peer_address() == AWAY
        assert len(events_of(it.server, MigrationReady)) == 1
        assert not events_of(it.server, MigrationFailed)
        commit(copy)
        it.exchange()


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_a_silent_client_is_called(protocol: MigrationProtocol, delay: float) -> None:
    """It has nothing to say, and is told or asked by the server where that can be."""
    with pair(server=options(protocol)) as it:
        prepare(it, protocol)
        it.network.run_for(1)
        copy = thaw_beside(it)
        copy.network_switch(AWAY, now=it.network.now)
        it.network.run_for(delay)
        take_over(it, copy, AWAY)
        wait_for_completion(it)
        it.exchange()


@pytest.mark.parametrize("delay", DELAYS)
def test_a_client_that_has_just_moved_too_is_waited_for(delay: float) -> None:
    """Its path is being validated at the freeze: it has as long for that as it had there."""
    with pair(nat=NatKind.FULL_CONE) as it:
        prepare(it, MigrationProtocol.EXPLICIT)
        rebound = ("203.0.113.77", 777)
        it.client.rebind(rebound, grace=0)
        it.requests.start([[BOTH_WAYS]])
        it.network.run_until(
            lambda: not it.server.migrating._network_paths[0].is_validated, limit=1, what="a move"
        )
        copy = thaw_beside(it)
        it.network.run_for(delay)
        copy.network_switch(AWAY, now=it.network.now)
        it.network.run_for(delay)
        take_over(it, copy, AWAY)
        wait_for_completion(it)
        it.network.run_until(lambda: it.requests.done, limit=60, what="the exchange")
        assert copy._network_paths[0].addr == rebound


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_time_stands_still_for_a_silent_copy(protocol: MigrationProtocol, moved: bool) -> None:
    """However long a handover takes, no timer has run down by then."""
    with pair(server=options(protocol), nat=NatKind.FULL_CONE) as it:
        prepare(it, protocol)
        if moved:
            it.client.rebind(("203.0.113.77", 777), grace=0)
            it.client.connection.send_ping(1)
            it.client.flush()
            it.network.run_for(0.01)
        source, now = it.server.migrating, it.network.now
        data = freeze(source, now=now)
        timers = []
        for duration in (0.0, 100.0):
            copy = thaw(data, configuration=source.configuration, now=now)
            copy.network_switch(AWAY, now=now + duration / 2)
            activate(copy, now=now + duration)
            timer = copy.get_timer()
            assert timer is not None
            timers.append(timer - now - duration)
        assert timers[0] > 0
        assert timers[1] == pytest.approx(timers[0])


def test_the_source_may_go_on_after_its_copy_was_switched_and_discarded() -> None:
    with pair() as it:
        source = it.server.migrating
        prepare(it, MigrationProtocol.SYNCHRONIZED_SYMMETRIC)
        it.requests.start([[BOTH_WAYS]])
        it.network.run_for(0.02)
        copy = thaw_beside(it)
        copy.network_switch(AWAY, now=it.network.now)
        it.network.run_for(0.5)
        it.network.attach(HOME, it.host.receive)
        resume_after_freeze(source, now=it.network.now)
        assert source.migration_state == "ready"
        source.abort_migration(now=it.network.now)
        it.server.flush()
        it.network.run_until(lambda: it.requests.done, limit=60, what="the exchange")
        assert it.client.connection.get_peer_address() == HOME


# Routing


def client_uses(it: Pair) -> set[bytes]:
    """Every connection ID of the server that the client may put into a packet."""
    client = it.client.connection
    reserved = (path.peer_cid for path in client._network_paths)
    ids = (client._peer_cid, *client._peer_cid_available, *reserved)
    return {cid.cid for cid in ids if cid is not None}


@pytest.mark.parametrize("block", range(4))
def test_the_copy_answers_to_every_connection_id_of_the_client(block: int) -> None:
    for seed in range(block, 60, 4):
        rng = random.Random(f"routing {seed}")
        with pair(seed, path=Path(delay=0.01, loss=0.05)) as it:
            it.requests.start([[BOTH_WAYS]])
            for _ in range(rng.randrange(3)):
                change = it.client.connection.change_connection_id
                it.network.call_later(rng.uniform(0, 0.2), change)
            it.network.run_for(rng.uniform(0, 0.3))
            source = it.server.migrating
            copy = thaw_beside(it)
            assert set(copy.own_connection_ids) == set(source.own_connection_ids), seed
            assert client_uses(it) <= set(copy.own_connection_ids), seed
            take_over(it, copy, HOME)
            it.network.run_until(lambda: it.requests.done, limit=60, what=f"seed {seed}")


def wait_with_routing_events(it: Pair) -> list[type[events.QuicEvent]]:
    """Let the client change its connection ID, and the server's endpoint not notice yet."""
    source, client, now = it.server.migrating, it.client.connection, it.network.now
    client.change_connection_id()
    for data, _ in client.datagrams_to_send(now):
        source.receive_datagram(data, it.client.external, now)
    for data, _ in source.datagrams_to_send(now):
        client.receive_datagram(data, HOME, now)
    waiting = [type(event) for event in source._events]
    assert sorted(kind.__name__ for kind in waiting) == [
        "ConnectionIdIssued",
        "ConnectionIdRetired",
    ]
    return waiting


def test_the_endpoint_of_the_copy_asks_what_the_source_was_not_asked() -> None:
    with pair() as it:
        wait_with_routing_events(it)
        copy = thaw_beside(it)
        assert client_uses(it) <= set(copy.own_connection_ids)
        activate(copy, now=it.network.now)
        assert copy.next_event() is None


def test_routing_events_of_a_source_that_goes_on_are_still_there() -> None:
    with pair() as it:
        source = it.server.migrating
        waiting = wait_with_routing_events(it)
        thaw_beside(it)
        resume_after_freeze(source, now=it.network.now)
        assert [type(event) for event in iter(source.next_event, None)] == waiting
