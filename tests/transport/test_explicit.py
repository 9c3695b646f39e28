"""Explicit between real connections: when it is ready, and how each policy finds the server."""

from __future__ import annotations

import itertools

import pytest
from aioquic.quic.packet import QuicFrameType
from quicferry_lab.simulation import Exchange, NatKind, Path, SimulatedAddress
from quicferry_lab.simulation.invariants import events_of
from simulated_pair import AWAY, HOME, RTT, Pair, address, genuine
from support import (
    EXPLICIT,
    Wire,
    in_state,
    inject,
    lose,
    named,
    ping,
    server_migration,
    silence,
    thaw,
    wait_for_state,
    wired_pair,
)

from quicferry.protocol import (
    ClientMigration,
    MigrationCompleted,
    Policy,
    ProbingStarted,
)

PING = QuicFrameType.PING
CHALLENGE, RESPONSE = QuicFrameType.PATH_CHALLENGE, QuicFrameType.PATH_RESPONSE
REACTIVE = ClientMigration(policy=Policy.REACTIVE)
PROACTIVE = ClientMigration(policy=Policy.PROACTIVE)
EAGER = ClientMigration(policy=Policy.EAGER)
ASKING = {frozenset({CHALLENGE}), frozenset({PING})}
"""What is sent to an address where nobody is known to be, one in each packet."""
POLICIES = pytest.mark.parametrize("policy", Policy)
SMALL = Exchange(100, 100)


def probe_timeout(it: Pair) -> float:
    return it.client.connection._loss.get_probe_timeout()


# Ready


@POLICIES
@pytest.mark.parametrize("rtt", [0.004, 0.018, 0.3])
def test_ready_in_exactly_one_round_trip(policy: Policy, rtt: float) -> None:
    """Not in one and the delay of an acknowledgement."""
    client = ClientMigration(policy=policy)
    with wired_pair(client=client, path=Path(delay=rtt / 2)) as (it, _):
        before = it.network.now
        it.imminent(EXPLICIT, AWAY)
        assert it.network.now - before == pytest.approx(rtt)


def test_nothing_is_sent_at_the_network_switch_when_nothing_is_pending() -> None:
    with wired_pair(client=REACTIVE) as (it, wire):
        it.exchange()
        it.imminent(EXPLICIT, AWAY)
        it.network.run_for(0.5)
        wire.clear()
        it.relocate(AWAY, frozen=0.5)
        it.network.run_for(0.5)
        assert wire.sent == []


@POLICIES
def test_a_client_with_nothing_to_send_is_called_after_a_while(policy: Policy) -> None:
    """The server is not ready for its next migration before the client has found it."""
    with wired_pair(client=ClientMigration(policy=policy)) as (it, wire):
        it.imminent(EXPLICIT, AWAY)
        it.relocate(AWAY, frozen=0.5)
        it.network.run_for(8)
        assert it.client.connection.get_peer_address() == AWAY
        assert named(it.client)[-1] == named(it.server)[-1] == "MigrationCompleted"
        if policy is not Policy.EAGER:
            assert len(wire.select(QuicFrameType.PING, source=AWAY)) == 1


def test_what_is_pending_is_sent_at_the_network_switch() -> None:
    with wired_pair(client=REACTIVE) as (it, wire):
        it.imminent(EXPLICIT, AWAY)
        it.host.freeze()
        ping(it.client)
        it.server.connection.send_ping(1)
        wire.clear()
        it.host.resume(AWAY)
        (sent,) = wire.select(QuicFrameType.PING, source=AWAY)
        assert sent.time == it.network.now
        it.network.run_for(0.2)
        assert it.client.connection.get_peer_address() == AWAY


# Reactive


def test_reactive_probes_at_the_first_timeout_after_the_frame() -> None:
    with wired_pair(client=REACTIVE) as (it, wire):
        it.exchange()
        it.imminent(EXPLICIT, AWAY)
        it.network.run_for(0.5)
        it.host.freeze()
        timeout = probe_timeout(it)
        start = it.network.now
        wire.clear()
        ping(it.client)
        it.network.run_for(0.2)
        first = wire.select(destination=AWAY)[0]
        assert first.time - start == pytest.approx(timeout, abs=1e-5)
        assert wire.select(destination=HOME)[0].time == start
        assert events_of(it.client, ProbingStarted) == [ProbingStarted(EXPLICIT, address(AWAY))]


def test_reactive_ignores_a_timeout_before_the_frame() -> None:
    with wired_pair(client=REACTIVE) as (it, wire):
        lose(it.network, lambda datagram: datagram.source == it.client.external, 2)
        it.exchange()
        assert wire.select(destination=AWAY) == []
        assert "ProbingStarted" not in named(it.client)


def test_reactive_is_not_told_by_the_application() -> None:
    """It may be asked all the same: a timeout is what the application simulates then."""
    with wired_pair(client=REACTIVE) as (it, wire):
        it.imminent(EXPLICIT, AWAY)
        it.network.run_for(1)
        assert wire.select(destination=AWAY) == []


def test_reactive_sends_everything_to_the_new_address() -> None:
    with in_state("probing") as (it, wire):
        for stream in range(3):
            it.client.connection.send_stream_data(4 * stream, b"x" * 50)
            it.client.flush()
        it.network.run_for(0.5)
        to_home = wire.select(source=it.client.external, destination=HOME)
        assert {kind for sent in to_home for kind in sent.types} <= {QuicFrameType.PING}
        streams = [sent for sent in wire.sent if any(8 <= kind <= 15 for kind in sent.types)]
        assert streams
        assert {sent.destination for sent in streams} == {AWAY}


def test_probing_finds_the_server_within_one_interval() -> None:
    """And not after a timeout that has doubled all the while."""
    with wired_pair(client=REACTIVE) as (it, wire):
        it.imminent(EXPLICIT, AWAY)
        it.host.freeze()
        ping(it.client)
        it.network.run_for(3.0137)
        switched = it.network.now
        it.host.resume(AWAY)
        it.network.run_for(1)
        assert wire.select(source=AWAY)[0].time - switched <= REACTIVE.probe_interval + RTT / 2
        (completed,) = [
            at for at, event in it.client.migration_events if isinstance(event, MigrationCompleted)
        ]
        assert completed - switched <= REACTIVE.probe_interval + 2.5 * RTT


@pytest.mark.parametrize("interval", [0.01, 0.04, 0.2])
def test_probes_come_at_the_configured_interval(interval: float) -> None:
    client = ClientMigration(policy=Policy.REACTIVE, probe_interval=interval)
    with wired_pair(client=client) as (it, wire):
        it.imminent(EXPLICIT, AWAY)
        it.host.freeze()
        ping(it.client)
        it.network.run_for(1)
        times = sorted({sent.time for sent in wire.select(destination=AWAY)})
        gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert max(gaps) <= interval + 1e-4


# Proactive


def test_proactive_probes_at_once_when_asked() -> None:
    with wired_pair(client=PROACTIVE) as (it, wire):
        it.imminent(EXPLICIT, AWAY)
        it.relocate(AWAY, frozen=0.1)
        wire.clear()
        start = it.network.now
        it.client.migrating.probe_server_address(now=start)
        it.client.flush()
        assert [(sent.time, sent.destination) for sent in wire.sent] == [(start, AWAY)]
        assert it.exchange(SMALL) == pytest.approx(RTT, rel=0.05)


def test_proactive_is_reactive_when_not_asked() -> None:
    with wired_pair(client=PROACTIVE) as (it, wire):
        it.imminent(EXPLICIT, AWAY)
        it.network.run_for(1)
        assert wire.select(destination=AWAY) == []
        it.relocate(AWAY)
        it.exchange(SMALL)
        assert it.client.connection.get_peer_address() == AWAY


def test_proactive_asked_too_early_returns_and_may_be_asked_again() -> None:
    with wired_pair(client=PROACTIVE) as (it, _):
        it.imminent(EXPLICIT, AWAY)
        it.client.migrating.probe_server_address(now=it.network.now)
        it.client.flush()
        assert it.client.connection.get_peer_address() == AWAY
        it.network.run_for(1)
        assert it.client.connection.get_peer_address() == HOME
        it.relocate(AWAY)
        it.client.migrating.probe_server_address(now=it.network.now)
        it.client.flush()
        it.network.run_for(1)
        assert it.client.connection.get_peer_address() == AWAY
        assert "MigrationCompleted" in named(it.client)


# Eager


def test_eager_asks_from_the_frame_on_at_a_short_bounded_interval() -> None:
    with wired_pair(client=EAGER) as (it, wire):
        it.imminent(EXPLICIT, AWAY)
        it.network.run_for(4.9)
        probes = wire.select(destination=AWAY)
        assert {frozenset(sent.types) for sent in probes} == ASKING
        received = it.client.migration_events[0][0]
        assert probes[0].time == received
        gaps = {round(b.time - a.time, 3) for a, b in itertools.pairwise(probes)}
        assert gaps == {EAGER.probe_interval}
        assert max(sent.size for sent in probes) < 50
        # A challenge may cost the server a connection ID, of which it has seven; a PING does not.
        challenges = [sent.time for sent in probes if CHALLENGE in sent]
        assert all(
            later - earlier > 0.5
            for earlier, later in zip(challenges, challenges[6:], strict=False)
        )
        assert len(challenges) > 40


def test_eager_slows_down_and_stops_in_the_end() -> None:
    with wired_pair(client=EAGER) as (it, wire):
        it.imminent(EXPLICIT, AWAY)
        for minute in range(14):
            it.exchange(SMALL)
            it.network.run_for(59)
            assert it.client.terminated is None, minute
            if minute == 2:
                wire.clear()
            elif minute == 3:
                assert len(wire.select(destination=AWAY)) < 300
        it.exchange(SMALL)
        wire.clear()
        it.network.run_for(20)
        assert wire.select(destination=AWAY) == []
        it.relocate(AWAY)
        it.exchange(SMALL)
        assert it.client.connection.get_peer_address() == AWAY


def test_eager_keeps_its_data_on_the_old_path() -> None:
    with wired_pair(client=EAGER) as (it, wire):
        it.imminent(EXPLICIT, AWAY)
        wire.clear()
        it.exchange(Exchange(50_000, 50_000))
        assert {frozenset(sent.types) for sent in wire.select(destination=AWAY)} == ASKING


def test_eager_keeps_its_data_on_the_old_path_when_nobody_is_there() -> None:
    with wired_pair(client=EAGER) as (it, wire):
        it.imminent(EXPLICIT, AWAY)
        it.host.freeze()
        it.requests.start([[Exchange(5_000, 10)]])
        it.network.run_for(2)
        assert {frozenset(sent.types) for sent in wire.select(destination=AWAY)} == ASKING
        it.host.resume(AWAY)
        it.network.run_until(lambda: it.requests.done, limit=0.2, what="the request")


def test_eager_moves_as_soon_as_the_new_address_answers() -> None:
    with wired_pair(client=EAGER) as (it, wire):
        it.imminent(EXPLICIT, AWAY)
        it.relocate(AWAY, frozen=0.5)
        switched = it.network.now
        it.network.run_until(
            lambda: it.client.connection.get_peer_address() == AWAY, limit=1, what="the client"
        )
        assert it.network.now - switched <= EAGER.probe_interval + RTT + 0.001
        it.network.run_for(1)
        assert it.exchange(SMALL) == pytest.approx(RTT, rel=0.05)
        assert wire.select(RESPONSE, source=AWAY)


@pytest.mark.parametrize("frozen", [0.05, 0.1, 0.3, 0.5])
def test_eager_moves_at_once_to_a_server_that_has_only_an_acknowledgement_to_send(
    frozen: float,
) -> None:
    """However many challenges were sent there before there was a server."""
    with wired_pair(client=EAGER) as (it, _):
        it.requests.start([[Exchange(20_000, 100)]])
        it.imminent(EXPLICIT, AWAY)
        it.network.run_for(0.01)
        it.relocate(AWAY, frozen=frozen)
        switched = it.network.now
        wait_for_state(it, "idle")
        assert it.network.now - switched <= EAGER.probe_interval + 2.1 * RTT


def test_eager_recognises_an_answer_after_a_long_round_trip() -> None:
    with wired_pair(client=EAGER, path=Path(delay=1.0)) as (it, _):
        it.network.run_for(10)
        it.imminent(EXPLICIT, AWAY)
        it.relocate(AWAY, frozen=3)
        it.network.run_until(
            lambda: bool(events_of(it.client, MigrationCompleted)),
            limit=EAGER.probe_interval + 2.0,
            what="completion",
        )


def test_eager_resends_at_once_what_the_old_address_has_lost() -> None:
    with wired_pair(client=EAGER) as (it, _):
        it.exchange()
        it.imminent(EXPLICIT, AWAY)
        it.host.freeze()
        it.requests.start([[SMALL]])
        it.network.run_for(0.2)
        switched = it.network.now
        it.host.resume(AWAY)
        it.network.run_until(lambda: it.requests.done, limit=1, what="the request")
        assert it.network.now - switched <= EAGER.probe_interval + 2.1 * RTT


def test_eager_resends_all_of_it() -> None:
    """Not one packet in each round trip."""
    with wired_pair(client=EAGER) as (it, _):
        it.exchange(Exchange(50_000, 10))
        it.imminent(EXPLICIT, AWAY)
        it.host.freeze()
        it.requests.start([[Exchange(8_000, 10)]])
        it.network.run_for(0.03)
        it.host.resume(AWAY)
        wait_for_state(it, "idle")
        moved = it.network.now
        it.network.run_until(lambda: it.requests.done, limit=1, what="the request")
        assert it.network.now - moved <= 1.4 * RTT


def test_eager_with_an_idle_application_completes() -> None:
    """Nobody sends anything, and both sides know of the move all the same."""
    with wired_pair(client=EAGER) as (it, _):
        it.imminent(EXPLICIT, AWAY)
        it.relocate(AWAY, frozen=0.5)
        it.network.run_for(1)
        for side in (it.client, it.server):
            assert named(side)[-1] == "MigrationCompleted"


@POLICIES
def test_a_server_that_speaks_first_is_followed(policy: Policy) -> None:
    with wired_pair(client=ClientMigration(policy=policy)) as (it, _):
        it.imminent(EXPLICIT, AWAY)
        it.relocate(AWAY)
        ping(it.server)
        it.network.run_for(RTT / 2 + 0.001)
        assert it.client.connection.get_peer_address() == AWAY
        it.network.run_for(0.2)
        assert named(it.client)[-1] == named(it.server)[-1] == "MigrationCompleted"


def test_a_new_address_that_answers_before_the_switch() -> None:
    """Some networks bring packets for both addresses to the server while it is still at home."""
    with wired_pair(client=EAGER) as (it, _):
        it.network.attach(AWAY, it.host.receive)
        it.imminent(EXPLICIT, AWAY)
        it.network.run_for(0.5)
        it.network.detach(AWAY)
        it.relocate(AWAY)
        it.exchange(SMALL)
        it.network.run_for(1)
        assert it.client.connection.get_peer_address() == AWAY
        assert named(it.client)[-1] == named(it.server)[-1] == "MigrationCompleted"


# False alarms


def test_false_alarm_with_an_idle_server() -> None:
    """A server that has nothing to say is asked at home as well, by every second probe."""
    with in_state("probing") as (it, wire):
        it.network.run_for(0.5)
        asked = wire.select(QuicFrameType.PING, destination=HOME)
        probes = {sent.time for sent in wire.select(destination=AWAY)}
        assert len(asked) == pytest.approx(len(probes) / 2, abs=1)
        thaw(it)
        wait_for_state(it, "announced", limit=0.5)
        # The thesis's server would take a PATH_CHALLENGE for the end of its migration.
        assert wire.select(CHALLENGE, destination=HOME) == []
        assert it.client.connection.get_peer_address() == HOME
        it.exchange()


def test_false_alarm_ends_with_the_first_packet_from_home() -> None:
    with in_state("probing") as (it, wire):
        inject(it, b"\x01")
        assert it.client.migrating.migration_state == "announced"
        wire.clear()
        ping(it.client)
        assert {sent.destination for sent in wire.sent} == {HOME}


def test_probing_again_at_the_next_timeout() -> None:
    with in_state("probing") as (it, wire):
        inject(it, b"\x01")
        wire.clear()
        timeout = probe_timeout(it)
        start = it.network.now
        ping(it.client)
        wait_for_state(it, "probing")
        assert it.network.now - start <= 1.1 * timeout


def test_a_late_answer_from_home_takes_nothing_back() -> None:
    """Home was asked, and answered, before the server moved; the answer was held up on the way."""
    with in_state("probing") as (it, wire):
        it.network.run_for(0.2)
        asked = [
            body
            for sent in wire.select(CHALLENGE, destination=HOME)
            for kind, body in sent.frames
            if kind == CHALLENGE
        ]
        late = genuine(it.server, b"".join(b"\x1b" + body for body in asked))
        it.host.resume(AWAY)
        ping(it.server)
        silence(it, AWAY)
        wait_for_state(it, "validating_explicit")
        it.network.send(late, HOME, it.client.external)
        it.network.run_for(0.02)
        assert it.client.migrating.migration_state == "validating_explicit"
        assert it.client.connection.get_peer_address() == AWAY


def test_announcement_whose_acknowledgement_is_lost() -> None:
    """The client knows, and the server learns it at the second try."""
    with wired_pair(client=REACTIVE) as (it, wire):
        lose(it.network, lambda datagram: datagram.source == it.client.external)
        it.imminent(EXPLICIT, AWAY)
        assert len(wire.select(0x32)) == 2
        assert named(it.client).count("ServerMigrationReceived") == 1
        it.relocate(AWAY)
        it.exchange(SMALL)


def test_behind_a_nat_that_lets_nobody_in() -> None:
    """The client speaks first, so even a port-restricted NAT does no harm."""
    for policy in Policy:
        with wired_pair(client=ClientMigration(policy=policy), nat=NatKind.PORT_RESTRICTED) as (
            it,
            _,
        ):
            it.imminent(EXPLICIT, AWAY)
            it.relocate(AWAY, frozen=0.1)
            it.exchange(SMALL)
            it.network.run_for(0.5)
            assert named(it.server)[-1] == "MigrationCompleted"


def amplified(wire: Wire, target: SimulatedAddress) -> int:
    return sum(sent.size for sent in wire.select(destination=target))


@POLICIES
def test_a_third_party_gets_little(policy: Policy) -> None:
    """A hostile server names it, and falls silent: it pays for every connection it wants to use."""
    with wired_pair(client=ClientMigration(policy=policy)) as (it, wire):
        inject(it, server_migration(AWAY))
        it.host.freeze()
        it.requests.start([[Exchange(100_000, 10)]])
        it.network.run_for(120)
        assert it.client.terminated is not None
        assert amplified(wire, AWAY) <= 250_000
        assert amplified(wire, AWAY) / 60 <= 4_000, "bytes per second"


def test_silence_is_reached_by_nothing() -> None:
    with wired_pair() as (it, _):
        silence(it, AWAY)
        it.imminent(EXPLICIT, AWAY)
        it.network.run_for(0.5)
        it.exchange()
        assert it.client.connection.get_peer_address() == HOME
