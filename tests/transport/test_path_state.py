"""Section 5: congestion and RTT state, timers, acknowledgements, and unvalidated paths."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from aioquic.quic.packet import QuicFrameType
from quicferry_lab.simulation import Answer, Endpoint, Exchange, Path, SimulatedAddress
from simulated_pair import AWAY, HOME, RTT, Pair, pool
from support import (
    EXPLICIT,
    POOL,
    SYMMETRIC,
    SYNCHRONIZED,
    THIRD,
    in_state,
    inject,
    lose,
    named,
    ping,
    server_for,
    silence,
    thaw,
    wait_for_state,
    wired_pair,
)

from quicferry.protocol import (
    ClientMigration,
    MigrationProtocol,
    Policy,
    Scheduler,
    ServerMigration,
)

PROTOCOLS = pytest.mark.parametrize("protocol", MigrationProtocol)
SMALL = Exchange(100, 100)
TRANSFER = Exchange(60_000, 60_000, answer=Answer.AT_ONCE)
FAR = Path(delay=0.1)


@dataclass(frozen=True)
class PathNumbers:
    """What loss recovery knows of the path in use, as far as it is of public interest."""

    congestion_window: int
    bytes_in_flight: int
    rtt: float
    rtt_min: float
    rtt_variance: float
    timeouts: int
    probe_timeout: float


def numbers(endpoint: Endpoint) -> PathNumbers:
    loss = endpoint.connection._loss
    return PathNumbers(
        loss.congestion_window,
        loss.bytes_in_flight,
        loss._rtt_smoothed,
        loss._rtt_min,
        loss._rtt_variance,
        loss._pto_count,
        loss.get_probe_timeout(),
    )


FRESH_WINDOW = 10 * 1200


def wait_for_address(it: Pair, address: SimulatedAddress) -> None:
    """Run until the client sends there."""
    it.network.run_until(
        lambda: it.client.connection.get_peer_address() == address, limit=8, what=str(address)
    )


def imminent(it: Pair, protocol: MigrationProtocol) -> None:
    it.imminent(protocol, AWAY if protocol is EXPLICIT else None)


# A false alarm leaves no trace


@pytest.mark.parametrize("state", ["announced", "pool"])
def test_rollback_restores_congestion_and_rtt(state: str) -> None:
    with in_state(state) as (it, _):
        it.exchange(TRANSFER, SMALL)
        it.network.run_for(1)
        before = numbers(it.client)
        assert before.congestion_window > FRESH_WINDOW
        it.host.freeze()
        ping(it.client)
        it.network.run_for(0.3)
        wait_for_address(it, AWAY)
        away = numbers(it.client)
        assert away.congestion_window == FRESH_WINDOW
        assert away.rtt == 0
        thaw(it)
        wait_for_state(it, "idle" if state == "pool" else state, limit=1)
        after = numbers(it.client)
        assert after.congestion_window >= before.congestion_window
        assert after.rtt == pytest.approx(before.rtt, rel=0.01)
        assert after.rtt_min == before.rtt_min
        assert after.timeouts == 0
        assert after.probe_timeout == pytest.approx(before.probe_timeout, rel=0.01)
        it.network.run_for(1)
        assert numbers(it.client).bytes_in_flight == 0


@pytest.mark.parametrize("state", ["announced", "pool"])
def test_rollback_in_the_middle_of_an_upload(state: str) -> None:
    """What was in flight at home counts there again, and what was thrown away counts nowhere."""
    with in_state(state) as (it, _):
        it.exchange(TRANSFER, SMALL)
        it.requests.start([[Exchange(200_000, 10)]])
        it.network.run_for(RTT)
        before = numbers(it.client)
        end = it.network.now + 0.15
        it.network.filters.append(lambda sent: sent.source != HOME or it.network.now >= end)
        wait_for_address(it, AWAY)
        wait_for_address(it, HOME)
        after = numbers(it.client)
        assert after.congestion_window >= before.congestion_window * 0.99
        assert after.rtt == pytest.approx(before.rtt, rel=0.5)
        assert 0 <= after.bytes_in_flight <= after.congestion_window
        it.network.run_until(lambda: it.requests.done, limit=2, what="the upload")
        it.network.run_for(0.5)
        assert numbers(it.client).bytes_in_flight == 0
        assert numbers(it.client).congestion_window >= before.congestion_window * 0.7


def test_forged_path_leaves_no_trace() -> None:
    with wired_pair() as (it, _):
        it.exchange(TRANSFER, SMALL)
        it.network.run_for(1)
        before = numbers(it.client)
        silence(it, AWAY)
        inject(it, b"\x01", AWAY)
        assert numbers(it.client).rtt in (0, before.rtt)
        it.network.run_for(0.2)
        assert it.client.connection.get_peer_address() == HOME
        after = numbers(it.client)
        assert after.congestion_window >= before.congestion_window
        assert after.rtt == pytest.approx(before.rtt, rel=0.01)
        assert (after.rtt_min, after.bytes_in_flight, after.timeouts) == (before.rtt_min, 0, 0)


# A move starts afresh, on both sides


@PROTOCOLS
def test_fresh_after_the_move_on_both_sides(protocol: MigrationProtocol) -> None:
    """The new path is nearer, and nothing of the old one remains."""
    with wired_pair(server=server_for(protocol, AWAY), path=FAR) as (it, _):
        it.network.set_path(Path(delay=RTT / 2), source=AWAY)
        it.network.set_path(Path(delay=RTT / 2), destination=AWAY)
        it.exchange(TRANSFER, SMALL)
        assert numbers(it.client).rtt_min == pytest.approx(0.2)
        imminent(it, protocol)
        it.network.run_for(1)
        server_before = numbers(it.server)
        assert server_before.congestion_window > FRESH_WINDOW
        it.host.freeze()
        it.network.run_for(0.1)
        it.host.resume(AWAY)
        after_switch = numbers(it.server)
        assert after_switch.congestion_window == FRESH_WINDOW
        assert after_switch.rtt == 0
        it.exchange(SMALL)
        it.network.run_for(0.5)
        it.exchange(SMALL)
        it.network.run_for(0.5)
        for side in (it.client, it.server):
            assert numbers(side).rtt_min == pytest.approx(RTT, rel=0.2)
            assert numbers(side).congestion_window < 2 * FRESH_WINDOW
            assert numbers(side).bytes_in_flight == 0


@PROTOCOLS
def test_packets_of_the_old_path_give_no_sample_and_no_congestion(
    protocol: MigrationProtocol,
) -> None:
    """A window full of data was lost by the move: that says nothing about the new path."""
    with wired_pair(server=server_for(protocol, AWAY)) as (it, _):
        it.exchange(TRANSFER, SMALL)
        imminent(it, protocol)
        it.requests.start([[Exchange(300_000, 300_000, answer=Answer.AT_ONCE)]])
        it.network.run_for(0.03)
        it.relocate(AWAY, frozen=0.4)
        it.network.run_until(lambda: it.requests.done, limit=5, what="the transfer")
        it.network.run_for(1)
        for side in (it.client, it.server):
            assert numbers(side).rtt_min >= RTT * 0.99
            assert numbers(side).rtt < 3 * RTT
            assert numbers(side).congestion_window >= FRESH_WINDOW
            assert numbers(side).bytes_in_flight == 0


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("protocol", [EXPLICIT, POOL])
def test_what_was_sent_before_the_server_was_there_is_no_congestion(
    protocol: MigrationProtocol, lost: int
) -> None:
    """Whichever of the server's packets is the first one that arrives."""
    client = ClientMigration(policy=Policy.REACTIVE, scheduler=Scheduler.CYCLIC)
    with wired_pair(client=client, server=server_for(protocol, AWAY), path=FAR) as (it, _):
        it.exchange()
        imminent(it, protocol)
        it.requests.start([[Exchange(100_000, 100)]])
        it.network.run_for(0.01)
        lose(it.network, lambda datagram: datagram.source == AWAY, count=lost)
        it.relocate(AWAY, frozen=1)
        wait_for_address(it, AWAY)
        least = FRESH_WINDOW
        while not it.requests.done:
            it.network.run_for(0.01)
            least = min(least, numbers(it.client).congestion_window)
        assert least == FRESH_WINDOW


def test_a_late_acknowledgement_is_no_sample_of_the_new_path() -> None:
    """The server got what was sent to the old address, and says so after the switch."""
    with in_state("announced") as (it, _):
        it.exchange(SMALL)
        it.network.run_for(0.5)
        for _ in range(10):
            ping(it.client)
        it.network.run_for(RTT / 2 + 0.0005)
        it.host.freeze()
        wait_for_address(it, AWAY)
        it.network.run_for(0.02)
        it.host.resume(AWAY)
        it.network.run_for(RTT / 2 + 0.0005)
        assert it.client.connection._loss.bytes_in_flight > 0
        assert numbers(it.client).rtt == 0, "nothing that was sent there has been acknowledged"
        it.network.run_for(1)
        assert numbers(it.client).rtt == pytest.approx(RTT, rel=0.2)


# Timers


@PROTOCOLS
def test_the_servers_backoff_starts_from_zero(protocol: MigrationProtocol) -> None:
    """Timers that expired while it was frozen count as one."""
    with wired_pair(server=server_for(protocol, AWAY)) as (it, wire):
        imminent(it, protocol)
        silence(it, it.client.external)
        it.server.connection.send_stream_data(
            it.server.connection.get_next_available_stream_id(is_unidirectional=True), bytes(100)
        )
        it.client.application = None
        it.server.flush()
        it.network.run_for(2)
        assert numbers(it.server).timeouts >= 3
        it.relocate(AWAY, frozen=5)
        switched = it.network.now
        assert numbers(it.server).timeouts <= 1
        it.network.filters.clear()
        it.network.run_for(1)
        sent = [sent.time - switched for sent in wire.select(source=AWAY)]
        assert sent[0] == 0, "what has expired is sent at once"
        assert sent[1] <= 0.05
        assert it.client.connection.get_peer_address() == AWAY


@pytest.mark.parametrize("policy", Policy)
def test_the_clients_backoff_is_capped_while_it_looks(policy: Policy) -> None:
    """Found within one interval after three seconds, not after a timeout of as many."""
    with wired_pair(client=ClientMigration(policy=policy)) as (it, _):
        it.exchange(TRANSFER)
        imminent(it, EXPLICIT)
        it.host.freeze()
        it.requests.start([[SMALL]])
        it.network.run_for(3.017)
        switched = it.network.now
        it.host.resume(AWAY)
        it.network.run_until(lambda: it.requests.done, limit=1, what="the request")
        assert it.network.now - switched <= 0.02 + 2.1 * RTT


@pytest.mark.parametrize("scheduler", Scheduler)
def test_the_clients_backoff_is_capped_with_a_pool(scheduler: Scheduler) -> None:
    with wired_pair(
        client=ClientMigration(scheduler=scheduler),
        server=ServerMigration(pool=pool(THIRD, AWAY)),
    ) as (it, _):
        imminent(it, POOL)
        it.host.freeze()
        it.requests.start([[SMALL]])
        it.network.run_for(3.017)
        switched = it.network.now
        it.host.resume(AWAY)
        it.network.run_until(lambda: it.requests.done, limit=1, what="the request")
        assert it.network.now - switched <= 3 * 0.02 + 2.1 * RTT


@PROTOCOLS
def test_the_clients_backoff_starts_from_zero_after_the_move(protocol: MigrationProtocol) -> None:
    with wired_pair(server=server_for(protocol, AWAY)) as (it, _):
        imminent(it, protocol)
        it.host.freeze()
        it.requests.start([[SMALL]])
        it.network.run_for(3)
        it.host.resume(AWAY)
        wait_for_address(it, AWAY)
        it.network.run_for(0.2)
        assert numbers(it.client).timeouts == 0


@PROTOCOLS
def test_a_long_relocation_is_no_idle_timeout_of_the_server(protocol: MigrationProtocol) -> None:
    """The client's own timeout goes on, so the relocation may take a little less than that."""
    with wired_pair(server=server_for(protocol, AWAY)) as (it, _):
        imminent(it, protocol)
        it.network.run_for(1)
        it.relocate(AWAY, frozen=50)
        it.network.run_for(2)
        assert it.server.terminated is None
        it.exchange(SMALL)
        assert it.client.connection.get_peer_address() == AWAY


def test_a_relocation_longer_than_the_servers_idle_timeout() -> None:
    """It could hear nobody, so that it heard nobody counts for nothing."""
    with wired_pair() as (it, _):
        imminent(it, EXPLICIT)
        it.host.freeze()
        it.network.run_for(30)
        ping(it.client)
        it.network.run_for(35)
        it.host.resume(AWAY)
        it.network.run_for(1)
        it.exchange(SMALL)
        assert it.client.connection.get_peer_address() == AWAY


# Acknowledgements


@pytest.mark.parametrize("protocol", [EXPLICIT, SYNCHRONIZED])
def test_migration_frames_are_acknowledged_at_once(protocol: MigrationProtocol) -> None:
    with wired_pair() as (it, wire):
        imminent(it, protocol)
        (announcement,) = wire.select(0x32)
        (acknowledgement,) = wire.select(QuicFrameType.ACK, source=it.client.external)
        assert acknowledgement.time == pytest.approx(announcement.time + RTT / 2)


def test_server_migrated_is_acknowledged_at_once() -> None:
    with wired_pair() as (it, wire):
        imminent(it, SYMMETRIC)
        wire.clear()
        it.relocate(AWAY)
        it.network.run_for(0.2)
        first = wire.select(source=it.client.external)[0]
        assert first.time == pytest.approx(wire.select(0x33)[0].time + RTT / 2)
        assert QuicFrameType.ACK in first


def test_other_frames_are_acknowledged_as_ever() -> None:
    with wired_pair() as (it, wire):
        ping(it.server)
        it.network.run_for(0.2)
        (acknowledgement,) = wire.select(QuicFrameType.ACK)
        assert acknowledgement.time - wire.sent[0].time > RTT / 2 + 0.0005


# Unvalidated paths


@pytest.mark.parametrize("protocol", [SYMMETRIC, SYNCHRONIZED])
def test_amplification_until_the_path_is_validated(protocol: MigrationProtocol) -> None:
    """Three times what came from there, however much is to be said."""
    with wired_pair() as (it, wire):
        imminent(it, protocol)
        silence(it, AWAY)
        wire.clear()
        it.requests.start([[Exchange(500_000, 10)]])
        it.relocate(AWAY)
        received = 0
        sent = 0
        for _ in range(40):
            it.network.run_for(0.05)
            received = sum(item.size for item in wire.select(source=AWAY))
            sent = sum(item.size for item in wire.select(destination=AWAY))
            assert sent <= 3 * received
        assert sent > 0
        it.network.filters.clear()
        it.network.run_until(lambda: it.requests.done, limit=20, what="the upload")
        assert it.client.connection.get_peer_address() == AWAY


@pytest.mark.parametrize("state", ["probing", "pool_probing"])
def test_probing_sends_little_to_an_address_that_does_not_answer(state: str) -> None:
    """The limit allows nothing before something came; what is needed to find the server is sent."""
    with in_state(state) as (it, wire):
        it.requests.start([[Exchange(500_000, 10)]])
        it.network.run_for(1)
        sent = wire.select(destination=AWAY)
        assert sum(item.size for item in sent) <= 10 * 1200 + 30 * 300
        it.network.run_for(1)
        wire.clear()
        it.network.run_for(1)
        late = sum(item.size for item in wire.select(destination=AWAY))
        assert late <= 30 * 300


@PROTOCOLS
def test_the_path_challenge_is_expanded_once_the_limit_allows(protocol: MigrationProtocol) -> None:
    """RFC 9000 8.2.1: to find out about the path MTU."""
    with wired_pair(server=server_for(protocol, AWAY)) as (it, wire):
        imminent(it, protocol)
        it.relocate(AWAY, frozen=0.1)
        it.exchange(SMALL)
        it.network.run_for(2)
        assert named(it.client)[-1] == named(it.server)[-1] == "MigrationCompleted"
        challenges = wire.select(QuicFrameType.PATH_CHALLENGE, destination=AWAY)
        assert max(sent.size for sent in challenges) == 1200


@PROTOCOLS
def test_lost_path_validation_is_repeated(protocol: MigrationProtocol) -> None:
    """Whichever of the two frames is lost (RFC 9000 8.2.1)."""
    for frame_type in (QuicFrameType.PATH_CHALLENGE, QuicFrameType.PATH_RESPONSE):
        with wired_pair(server=server_for(protocol, AWAY)) as (it, wire):
            imminent(it, protocol)
            it.relocate(AWAY)
            lose(it.network, lambda datagram, k=frame_type: k in wire.read(datagram.data), 2)  # type: ignore[misc]
            it.exchange(SMALL)
            it.network.run_for(2)
            assert named(it.client)[-1] == named(it.server)[-1] == "MigrationCompleted"
