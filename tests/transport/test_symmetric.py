"""Symmetric and Synchronized Symmetric between real connections."""

from __future__ import annotations

import pytest
from aioquic.quic.packet import QuicFrameType
from quicferry_lab.simulation import Answer, Exchange, NatKind, Path
from quicferry_lab.simulation.invariants import events_of
from simulated_pair import AWAY, ELSEWHERE, HOME, RTT, address
from support import (
    SYMMETRIC,
    SYNCHRONIZED,
    genuine_elsewhere,
    inject,
    lose,
    named,
    ping,
    silence,
    wait_for_state,
    wired_pair,
)

from quicferry.protocol import MigrationCompleted, MigrationProtocol

PROTOCOLS = pytest.mark.parametrize("protocol", [SYMMETRIC, SYNCHRONIZED])
SMALL = Exchange(100, 100)
STREAM = set(range(0x08, 0x10))


def test_symmetric_is_ready_at_once_and_says_nothing() -> None:
    with wired_pair() as (it, wire):
        before = it.network.now
        it.imminent(SYMMETRIC)
        assert it.network.now == before
        it.network.run_for(1)
        assert wire.sent == []


@pytest.mark.parametrize("rtt", [0.004, 0.018, 0.3])
def test_synchronized_is_ready_in_exactly_one_round_trip(rtt: float) -> None:
    with wired_pair(path=Path(delay=rtt / 2)) as (it, _):
        before = it.network.now
        it.imminent(SYNCHRONIZED)
        assert it.network.now - before == pytest.approx(rtt)


@PROTOCOLS
def test_server_migrated_where_nothing_is_pending(protocol: MigrationProtocol) -> None:
    with wired_pair() as (it, wire):
        it.imminent(protocol)
        it.network.run_for(0.5)
        wire.clear()
        it.relocate(AWAY, frozen=0.1)
        (sent,) = wire.sent
        assert (sent.time, sent.source) == (it.network.now, AWAY)
        assert sent.types == {0x33}
        it.network.run_for(0.5)
        assert len(wire.select(0x33)) == 1


@PROTOCOLS
def test_pending_data_takes_its_place(protocol: MigrationProtocol) -> None:
    with wired_pair() as (it, wire):
        it.imminent(protocol)
        it.network.run_for(0.5)
        it.host.freeze()
        it.server.connection.send_stream_data(
            it.server.connection.get_next_available_stream_id(is_unidirectional=True), b"hello"
        )
        wire.clear()
        it.client.application = None
        it.host.resume(AWAY)
        assert wire.sent[0].source == AWAY
        assert wire.sent[0].types & STREAM
        it.network.run_for(0.5)
        assert wire.select(0x33) == []
        assert it.client.connection.get_peer_address() == AWAY
        assert "ServerMigratedReceived" not in named(it.client)
        assert named(it.client)[-1] == named(it.server)[-1] == "MigrationCompleted"


@PROTOCOLS
def test_in_the_middle_of_a_download(protocol: MigrationProtocol) -> None:
    with wired_pair(path=Path(delay=RTT / 2, rate=20e6)) as (it, _):
        it.imminent(protocol)
        it.requests.start([[Exchange(10, 300_000, answer=Answer.AT_ONCE)]])
        it.network.run_for(0.05)
        it.relocate(AWAY, frozen=0.05)
        it.network.run_until(lambda: it.requests.done, limit=2, what="the download")
        it.network.run_for(0.2)
        assert named(it.client)[-1] == named(it.server)[-1] == "MigrationCompleted"


@PROTOCOLS
def test_the_client_follows_after_half_a_round_trip(protocol: MigrationProtocol) -> None:
    with wired_pair() as (it, _):
        it.imminent(protocol)
        it.relocate(AWAY, frozen=0.3)
        switched = it.network.now
        it.network.run_until(
            lambda: it.client.connection.get_peer_address() == AWAY, limit=1, what="the move"
        )
        assert it.network.now - switched == pytest.approx(RTT / 2)
        it.network.run_for(RTT)
        assert it.exchange(SMALL) == pytest.approx(RTT, rel=0.05)


@PROTOCOLS
@pytest.mark.parametrize("count", [1, 2, 3])
def test_lost_first_packets(protocol: MigrationProtocol, count: int) -> None:
    """The server's probe timeout is short at a new address: it is not known how far it is."""
    with wired_pair() as (it, _):
        it.imminent(protocol)
        lose(it.network, lambda datagram: datagram.source == AWAY, count)
        it.relocate(AWAY)
        switched = it.network.now
        it.network.run_until(
            lambda: named(it.server)[-1] == "MigrationCompleted", limit=2, what="completion"
        )
        assert it.network.now - switched < 0.04 * 2**count + 2 * RTT


@PROTOCOLS
@pytest.mark.parametrize("kind", NatKind)
def test_behind_a_nat(protocol: MigrationProtocol, kind: NatKind) -> None:
    """It works where the client can be reached from the new address, and only there."""
    with wired_pair(nat=kind) as (it, _):
        it.imminent(protocol)
        it.relocate(AWAY)
        it.network.run_for(1)
        reached = it.client.connection.get_peer_address() == AWAY
        assert reached == (kind is NatKind.FULL_CONE)
        assert it.client.terminated is None


@PROTOCOLS
def test_home_is_asked_before_the_new_address_is_believed(protocol: MigrationProtocol) -> None:
    """RFC 9000 9.3.3: the answer of a server that has not moved is worth more."""
    with wired_pair() as (it, wire):
        if protocol is SYNCHRONIZED:
            it.imminent(protocol)
        silence(it, ELSEWHERE)
        inject(it, b"\x01", ELSEWHERE)
        assert wire.select(QuicFrameType.PING, destination=HOME)
        assert not wire.select(QuicFrameType.PATH_CHALLENGE, destination=HOME)
        wait_for_state(it, "idle" if protocol is SYMMETRIC else "awaiting", limit=0.2)
        assert it.client.connection.get_peer_address() == HOME
        assert events_of(it.client, MigrationCompleted) == []
        it.exchange(SMALL)


@PROTOCOLS
def test_an_address_that_cannot_be_validated_is_given_up(protocol: MigrationProtocol) -> None:
    with wired_pair() as (it, wire):
        if protocol is SYNCHRONIZED:
            it.imminent(protocol)
        it.host.freeze()
        silence(it, ELSEWHERE)
        it.network.send(genuine_elsewhere(it, b"\x01"), ELSEWHERE, it.client.external)
        it.network.run_for(0.1)
        assert it.client.connection.get_peer_address() == ELSEWHERE
        wait_for_state(it, "idle" if protocol is SYMMETRIC else "awaiting", limit=5)
        assert it.client.connection.get_peer_address() == HOME
        received = 3 * 31
        sent = sum(sent.size for sent in wire.select(destination=ELSEWHERE))
        assert sent <= received


@PROTOCOLS
def test_older_packets_from_a_new_address_move_nothing(protocol: MigrationProtocol) -> None:
    with wired_pair() as (it, _):
        late = genuine_elsewhere(it, b"\x33")
        if protocol is SYNCHRONIZED:
            it.imminent(protocol)
        it.exchange(SMALL)
        it.network.send(late, AWAY, it.client.external)
        it.network.run_for(0.1)
        assert it.client.connection.get_peer_address() == HOME
        assert "ServerMigratedReceived" not in named(it.client)


def test_probing_packets_from_a_new_address_move_nothing() -> None:
    with wired_pair() as (it, _):
        inject(it, b"\x1a" + bytes(8) + bytes(16), AWAY)
        assert it.client.connection.get_peer_address() == HOME


@PROTOCOLS
def test_unannounced_migrations_in_quick_succession(protocol: MigrationProtocol) -> None:
    stops = [AWAY, ("10.0.0.3", 4433), ("10.0.0.4", 4433), HOME, AWAY]
    with wired_pair() as (it, _):
        for stop in stops:
            it.imminent(protocol)
            it.relocate(stop)
            it.network.run_until(
                lambda: it.server.migrating.migration_state == "idle", limit=1, what="completion"
            )
        it.exchange(SMALL)
        expected = [MigrationCompleted(protocol, address(stop)) for stop in stops]
        assert events_of(it.client, MigrationCompleted) == expected
        assert events_of(it.server, MigrationCompleted) == expected


def test_a_ping_is_pending_too() -> None:
    with wired_pair() as (it, wire):
        it.imminent(SYMMETRIC)
        it.host.freeze()
        it.server.connection.send_ping(7)
        it.host.resume(AWAY)
        assert [sent.types for sent in wire.select(source=AWAY)] == [{QuicFrameType.PING}]
        ping(it.client)
        it.network.run_for(0.2)
        assert named(it.server)[-1] == "MigrationCompleted"
