"""Section 8 between real connections: the rows of what must work, whatever happens."""

from __future__ import annotations

import pytest
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet import QuicFrameType
from quicferry_lab.simulation import SimulatedAddress
from quicferry_lab.simulation.invariants import events_of
from simulated_pair import AWAY, ELSEWHERE, HOME, address, genuine
from support import (
    EXPLICIT,
    PING,
    POOL,
    SERVER_MIGRATED,
    SYMMETRIC,
    SYNCHRONIZED,
    THIRD,
    OlderClient,
    assert_works,
    in_state,
    inject,
    lose,
    migrate,
    migration_events,
    named,
    pool_address,
    server_for,
    server_migration,
    wired_pair,
)

from quicferry.protocol import (
    ClientMigration,
    MigrationCompleted,
    MigrationProtocol,
    Policy,
    PoolAddressReceived,
    ProbingStarted,
    Scheduler,
    ServerMigrationAcknowledged,
)

OTHER_PORT: SimulatedAddress = (HOME[0], HOME[1] + 1)
PROTOCOLS = pytest.mark.parametrize("protocol", MigrationProtocol)
EACH_POLICY = pytest.mark.parametrize("policy", Policy)


# packet from an unknown address, neither symmetric protocol possible: dropped, never an error


@pytest.mark.parametrize("payload", [PING, SERVER_MIGRATED], ids=["ping", "migrated"])
@pytest.mark.parametrize("protocols", [EXPLICIT, POOL, EXPLICIT | POOL])
def test_unknown_address_symmetric_not_negotiated(
    protocols: MigrationProtocol, payload: bytes
) -> None:
    with in_state("idle", protocols=protocols) as (it, wire):
        inject(it, payload, ELSEWHERE)
        it.network.run_for(0.1)
        assert wire.select(source=it.client.external) == [], "not even acknowledged"
        assert_works(it, HOME)


@pytest.mark.parametrize(
    "state", ["announced", "challenging", "probing", "pool", "pool_probing", "pool_challenging"]
)
def test_unknown_address_with_state_of_another_protocol(state: str) -> None:
    """Its data is not delivered: the genuine packet must still be news."""
    with in_state(state) as (it, _):
        heard = []
        handle_event = it.client.application.handle_event  # type: ignore[union-attr]
        stream = b"\x0b\x03\x02hi"  # a unidirectional stream of the server's, complete
        copied = genuine(it.server, stream)

        def listen(event: object) -> None:
            if isinstance(event, StreamDataReceived) and event.stream_id == 3:
                heard.append(it.client.connection.get_peer_address())
            else:
                handle_event(event)  # type: ignore[arg-type]

        it.client.application.handle_event = listen  # type: ignore[union-attr, method-assign]
        it.network.send(copied, ELSEWHERE, it.client.external)
        it.network.run_for(0.02)
        assert heard == []
        it.network.send(copied, HOME, it.client.external)
        it.network.run_for(0.02)
        assert heard == [HOME]


# acknowledgement of a migration frame for state that is gone: ignored


def test_acknowledgement_after_an_abort() -> None:
    with wired_pair(client_type=OlderClient) as (it, wire):
        it.server.migrating.imminent_migration(EXPLICIT, address(AWAY), now=it.network.now)
        it.server.flush()
        it.server.migrating.abort_migration(now=it.network.now)
        it.network.run_for(0.1)
        assert len(wire.select(0x32)) == 1
        assert "MigrationReady" not in named(it.server)
        assert_works(it, HOME)


def test_acknowledgement_after_completion() -> None:
    """SERVER_MIGRATION twice, of which the second is acknowledged when all is over."""
    with wired_pair() as (it, wire):
        it.imminent(EXPLICIT, AWAY)
        frame = next(body for kind, body in wire.select(0x32)[0].frames if kind == 0x32)
        assert frame == server_migration(AWAY)[1:]
        it.relocate(AWAY)
        assert_works(it, AWAY)
        assert named(it.server).count("ServerMigrationAcknowledged") == 1


# PTO that was mere loss, no relocation (false alarm): rolled back as if it had not happened


@pytest.mark.parametrize("state", ["announced", "pool"])
def test_false_alarm(state: str) -> None:
    with in_state(state) as (it, _):
        lose(it.network, lambda datagram: datagram.source == it.client.external, 2)
        it.exchange()
        assert [event for event in migration_events(it.client) if isinstance(event, ProbingStarted)]
        it.network.run_for(0.5)
        assert it.client.migrating.migration_state == ("idle" if state == "pool" else state)
        assert_works(it, HOME)
        assert events_of(it.client, MigrationCompleted) == []


# a migration that moves only the port: works like any other


@PROTOCOLS
@EACH_POLICY
def test_port_only(protocol: MigrationProtocol, policy: Policy) -> None:
    client = ClientMigration(policy=policy)
    with wired_pair(client=client, server=server_for(protocol, OTHER_PORT)) as (it, _):
        migrate(it, protocol, OTHER_PORT)
        for endpoint in (it.client, it.server):
            assert events_of(endpoint, MigrationCompleted) == [
                MigrationCompleted(protocol, address(OTHER_PORT))
            ]


# client and server migrate at once; several migrations in a row; A -> B -> A: works


@PROTOCOLS
@EACH_POLICY
def test_client_and_server_migrate_at_once(protocol: MigrationProtocol, policy: Policy) -> None:
    moved: SimulatedAddress = ("10.1.0.99", 50009)
    client = ClientMigration(policy=policy)
    with wired_pair(client=client, server=server_for(protocol, AWAY)) as (it, _):
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        it.host.freeze()
        it.client.migrate(moved, grace=1)
        it.network.run_for(0.03)
        it.host.resume(AWAY)
        assert_works(it, AWAY)
        assert it.server.connection.get_peer_address() == moved
        assert "ClientMigrationDetected" in named(it.server)


@PROTOCOLS
@EACH_POLICY
@pytest.mark.parametrize("scheduler", Scheduler)
def test_several_migrations_in_a_row(
    protocol: MigrationProtocol, policy: Policy, scheduler: Scheduler
) -> None:
    client = ClientMigration(policy=policy, scheduler=scheduler)
    stops = (AWAY, HOME, THIRD, AWAY)
    with wired_pair(client=client, server=server_for(protocol, AWAY, THIRD, HOME)) as (it, _):
        for stop in stops:
            migrate(it, protocol, stop)
        for endpoint in (it.client, it.server):
            assert events_of(endpoint, MigrationCompleted) == [
                MigrationCompleted(protocol, address(stop)) for stop in stops
            ]


def test_several_migrations_with_different_protocols() -> None:
    with wired_pair() as (it, _):
        for protocol, stop in ((EXPLICIT, AWAY), (SYMMETRIC, THIRD), (SYNCHRONIZED, HOME)) * 2:
            migrate(it, protocol, stop)
        assert named(it.client).count("MigrationCompleted") == 6


# frames in older packets are ignored (section 5)


def test_announcement_in_an_older_packet_than_the_migration() -> None:
    with wired_pair() as (it, _):
        late = [
            genuine(it.server, frame)
            for frame in (server_migration(AWAY), server_migration(None), server_migration(THIRD))
        ]
        migrate(it, SYNCHRONIZED, AWAY)
        before = migration_events(it.client)
        for data in late:
            it.network.send(data, HOME, it.client.external)
        assert_works(it, AWAY)
        assert migration_events(it.client) == before


def test_pool_address_in_an_older_packet() -> None:
    with in_state("pool") as (it, _):
        late = genuine(it.server, pool_address(THIRD))
        it.exchange()
        it.network.send(late, HOME, it.client.external)
        it.network.run_for(0.1)
        assert PoolAddressReceived(address(THIRD)) in migration_events(it.client)
        assert_works(it, HOME)


def test_late_copy_of_an_announcement_after_completion() -> None:
    with wired_pair() as (it, _):
        it.imminent(EXPLICIT, AWAY)
        late = genuine(it.server, server_migration(AWAY))
        it.relocate(AWAY)
        assert_works(it, AWAY)
        it.network.send(late, HOME, it.client.external)
        assert_works(it, AWAY)
        assert events_of(it.server, ServerMigrationAcknowledged) != []


def test_acknowledged_at_once() -> None:
    """Also a frame that is ignored."""
    with in_state("announced") as (it, wire):
        inject(it, server_migration(AWAY))
        (acknowledgement,) = wire.select(QuicFrameType.ACK, source=it.client.external)
        assert acknowledgement.time == pytest.approx(it.network.now - 0.009)


# RFC 9000 8.2.2: a challenge is answered where it came in


@pytest.mark.parametrize("further", [False, True], ids=["path-in-use", "another-path"])
@PROTOCOLS
def test_a_challenge_from_before_the_switch_is_not_answered_after_it(
    protocol: MigrationProtocol, further: bool
) -> None:
    """An answer from the new address would show a path that nobody has asked for."""
    challenge = bytes(range(8))
    with wired_pair(server=server_for(protocol, AWAY)) as (it, wire):
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        data = genuine(it.client, b"\x1a" + challenge)
        source = ("203.0.113.5", 777) if further else it.client.external
        it.server.connection.receive_datagram(data, source, it.network.now)
        wire.clear()
        it.relocate(AWAY)
        it.network.run_for(1)
        assert (QuicFrameType.PATH_RESPONSE, challenge) not in [
            frame for sent in wire.select(source=AWAY) for frame in sent.frames
        ]
        assert_works(it, AWAY)
