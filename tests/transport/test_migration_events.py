"""The events of section 6 on both sides: all of them, in order, and none twice."""

from __future__ import annotations

import pytest
from quicferry_lab.simulation import NatKind, SimulatedAddress
from quicferry_lab.simulation.invariants import events_of
from simulated_pair import AWAY, HOME, RTT, Pair, address, pool
from support import (
    EXPLICIT,
    POOL,
    SYMMETRIC,
    SYNCHRONIZED,
    THIRD,
    lose,
    migration_events,
    ping,
    wired_pair,
)

from quicferry.protocol import (
    ALL_PROTOCOLS,
    ClientMigration,
    ClientMigrationDetected,
    ConnectionClosed,
    HandshakeFinished,
    MigrationAddress,
    MigrationCompleted,
    MigrationEvent,
    MigrationProtocol,
    MigrationReady,
    Policy,
    PoolAddressAcknowledged,
    PoolAddressReceived,
    ProbingStarted,
    Scheduler,
    ServerMigratedAcknowledged,
    ServerMigratedReceived,
    ServerMigration,
    ServerMigrationAcknowledged,
    ServerMigrationReceived,
)

TARGET = MigrationAddress.of(address(AWAY))
REACTIVE = ClientMigration(policy=Policy.REACTIVE, scheduler=Scheduler.CYCLIC)
PROTOCOLS = pytest.mark.parametrize("protocol", MigrationProtocol)

ON_CLIENT: dict[MigrationProtocol, list[MigrationEvent]] = {
    EXPLICIT: [ServerMigrationReceived(address(AWAY)), ProbingStarted(EXPLICIT, address(AWAY))],
    POOL: [
        PoolAddressReceived(address(THIRD)),
        PoolAddressReceived(address(AWAY)),
        ProbingStarted(POOL, address(THIRD)),
        ProbingStarted(POOL, address(AWAY)),
    ],
    SYMMETRIC: [ServerMigratedReceived()],
    SYNCHRONIZED: [ServerMigrationReceived(None), ServerMigratedReceived()],
}
ON_SERVER: dict[MigrationProtocol, list[MigrationEvent]] = {
    EXPLICIT: [ServerMigrationAcknowledged(TARGET), MigrationReady(EXPLICIT)],
    POOL: [
        PoolAddressAcknowledged(MigrationAddress.of(address(THIRD))),
        PoolAddressAcknowledged(TARGET),
        MigrationReady(POOL),
    ],
    SYMMETRIC: [MigrationReady(SYMMETRIC), ServerMigratedAcknowledged()],
    SYNCHRONIZED: [
        ServerMigrationAcknowledged(None),
        MigrationReady(SYNCHRONIZED),
        ServerMigratedAcknowledged(),
    ],
}


def server_for(protocol: MigrationProtocol) -> ServerMigration:
    return ServerMigration(pool=pool(THIRD, AWAY) if protocol is POOL else ())


def migrate(it: Pair, protocol: MigrationProtocol, to: SimulatedAddress = AWAY) -> None:
    it.imminent(protocol, to if protocol is EXPLICIT else None)
    it.host.freeze()
    it.network.run_for(RTT)
    if protocol in (EXPLICIT, POOL):
        ping(it.client)
    it.network.run_for(0.3)
    it.host.resume(to)
    it.network.run_for(1)


@PROTOCOLS
@pytest.mark.parametrize("client", [REACTIVE, ClientMigration()], ids=["reactive", "eager"])
def test_one_migration(protocol: MigrationProtocol, client: ClientMigration) -> None:
    with wired_pair(client=client, server=server_for(protocol)) as (it, _):
        migrate(it, protocol)
        completed = MigrationCompleted(protocol, address(AWAY))
        assert migration_events(it.client) == [*ON_CLIENT[protocol], completed]
        finished = HandshakeFinished(
            address(it.client.local), it.server.migrating.stable_id, ALL_PROTOCOLS
        )
        assert migration_events(it.server) == [finished, *ON_SERVER[protocol], completed]


@PROTOCOLS
def test_the_client_is_complete_before_its_server(protocol: MigrationProtocol) -> None:
    with wired_pair(server=server_for(protocol)) as (it, wire):
        migrate(it, protocol)
        (client_at,) = (
            at for at, event in it.client.migration_events if isinstance(event, MigrationCompleted)
        )
        (server_at,) = (
            at for at, event in it.server.migration_events if isinstance(event, MigrationCompleted)
        )
        responses = wire.select(0x1B, source=AWAY)
        assert client_at == pytest.approx(responses[0].time + RTT / 2)
        assert server_at == pytest.approx(client_at + RTT / 2)


@PROTOCOLS
def test_handshake_finished_and_stable_id(protocol: MigrationProtocol) -> None:
    """The stable id stays, whatever connection IDs are used later."""
    with wired_pair(server=server_for(protocol)) as (it, _):
        (finished,) = events_of(it.server, HandshakeFinished)
        stable_ids = {side: side.migrating.stable_id for side in (it.client, it.server)}
        assert isinstance(finished, HandshakeFinished)
        assert finished.connection_id == stable_ids[it.server]
        assert bytes.fromhex(finished.connection_id)
        used = {it.server.connection.host_cid}
        migrate(it, protocol)
        it.client.connection.change_connection_id()
        it.exchange()
        it.server.connection.change_connection_id()
        it.exchange()
        used.add(it.server.connection.host_cid)
        assert len(used) == 2
        assert {side: side.migrating.stable_id for side in stable_ids} == stable_ids
        assert len(events_of(it.server, HandshakeFinished)) == 1


def test_stable_ids_differ_between_connections() -> None:
    with wired_pair(1) as (it, _), wired_pair(2) as (other, _):
        assert it.server.migrating.stable_id != other.server.migrating.stable_id


@PROTOCOLS
def test_lost_frames_and_acknowledgements_raise_no_second_event(
    protocol: MigrationProtocol,
) -> None:
    with wired_pair(client=REACTIVE, server=server_for(protocol)) as (it, wire):
        lose(it.network, lambda datagram: bool(wire.read(datagram.data) & {0x32, 0x33}), 1)
        lose(it.network, lambda datagram: wire.read(datagram.data) == {0x2}, 2)
        migrate(it, protocol)
        it.exchange()
        it.network.run_for(1)
        for side in (it.client, it.server):
            events = migration_events(side)
            assert len(events) == len(set(events)), events
            assert MigrationCompleted(protocol, address(AWAY)) in events


@PROTOCOLS
def test_the_same_events_for_each_of_several_migrations(protocol: MigrationProtocol) -> None:
    options = ServerMigration(pool=pool(AWAY, HOME)) if protocol is POOL else ServerMigration()
    with wired_pair(client=REACTIVE, server=options) as (it, _):
        for round_trip in range(1, 4):
            for to in (AWAY, HOME):
                migrate(it, protocol, to)
            for side in (it.client, it.server):
                completed = [e for e in migration_events(side) if isinstance(e, MigrationCompleted)]
                assert completed == round_trip * [
                    MigrationCompleted(protocol, address(AWAY)),
                    MigrationCompleted(protocol, address(HOME)),
                ]
        assert len(events_of(it.server, MigrationReady)) == 6
        if protocol in (EXPLICIT, SYNCHRONIZED):
            assert len(events_of(it.client, ServerMigrationReceived)) == 6
            assert len(events_of(it.server, ServerMigrationAcknowledged)) == 6
        if protocol in (EXPLICIT, POOL):
            assert len(events_of(it.client, ProbingStarted)) == 6


def test_probing_started_once_for_explicit() -> None:
    """Also when false alarms interrupt it."""
    with wired_pair(client=REACTIVE) as (it, _):
        it.imminent(EXPLICIT, AWAY)
        for _ in range(3):
            lose(it.network, lambda datagram: datagram.source == it.client.external, 2)
            it.exchange()
            it.network.run_for(1)
        migrate_to_announced(it)
        assert events_of(it.client, ProbingStarted) == [ProbingStarted(EXPLICIT, address(AWAY))]


def migrate_to_announced(it: Pair) -> None:
    it.relocate(AWAY, frozen=0.1)
    it.exchange()
    it.network.run_for(0.5)
    assert it.client.connection.get_peer_address() == AWAY


def test_client_migration_detected() -> None:
    with wired_pair() as (it, _):
        moved: SimulatedAddress = ("10.1.0.50", 5000)
        it.client.migrate(moved)
        it.exchange()
        assert events_of(it.server, ClientMigrationDetected) == [
            ClientMigrationDetected(address(moved))
        ]
        assert events_of(it.client, ClientMigrationDetected) == []


def test_nat_rebinding_is_detected_once() -> None:
    with wired_pair(nat=NatKind.FULL_CONE) as (it, _):
        rebound: SimulatedAddress = ("203.0.113.9", 999)
        it.client.rebind(rebound, grace=1)
        for _ in range(3):
            it.exchange()
        assert events_of(it.server, ClientMigrationDetected) == [
            ClientMigrationDetected(address(rebound))
        ]


@pytest.mark.parametrize("closing", ["client", "server"])
def test_connection_closed(closing: str) -> None:
    with wired_pair() as (it, _):
        endpoint = it.client if closing == "client" else it.server
        endpoint.connection.close(error_code=0x42, reason_phrase="done")
        endpoint.flush()
        it.network.run_for(3)
        for side in (it.client, it.server):
            assert migration_events(side)[-1] == ConnectionClosed(0x42, "done")
            assert len(events_of(side, ConnectionClosed)) == 1


def test_connection_closed_by_idle_timeout() -> None:
    with wired_pair() as (it, _):
        it.host.freeze()
        it.network.run_for(100)
        (closed,) = events_of(it.client, ConnectionClosed)
        assert isinstance(closed, ConnectionClosed)
        assert "timeout" in closed.reason.lower()
