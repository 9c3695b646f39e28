"""The parts of a connection as records, and back: each `capture_` has its `restore_`.

This is where a snapshot meets aioquic's private parts. Times on the connection are those of its
host's clock, in records they are relative to `now`.
"""

from __future__ import annotations

from collections.abc import Iterable

from aioquic import tls
from aioquic.quic.connection import (
    QuicConnectionId,
    QuicNetworkPath,
)
from aioquic.quic.crypto import CryptoContext, apply_key_phase
from aioquic.quic.rangeset import RangeSet

from ..addresses import NetworkAddress
from ..connection import Connection
from ..paths.recovery import MigratingRecovery
from .format import SnapshotError, pairs
from .records import (
    AddressState,
    ConnectionIdState,
    KeyState,
    PacketState,
    PathRecord,
    RecoveryState,
    RttState,
)

_ONE_RTT = tls.Epoch.ONE_RTT
_RECEIVE, _SEND = tls.Direction.DECRYPT, tls.Direction.ENCRYPT


def after(moment: float | None, now: float) -> float | None:
    """Return how long after `now` a moment is."""
    return None if moment is None else moment - now


def at(delay: float | None, now: float) -> float | None:
    """Return the moment that is so long after `now`."""
    return None if delay is None else now + delay


def flat(ranges: Iterable[range]) -> tuple[int, ...]:
    """Return ranges as a record has them."""
    return tuple(bound for item in ranges for bound in (item.start, item.stop))


def range_set(ranges: tuple[int, ...]) -> RangeSet:
    """Return the ranges of a record as aioquic has them."""
    return RangeSet(range(start, stop) for start, stop in pairs(ranges))


def ranges_of(numbers: Iterable[int]) -> tuple[int, ...]:
    """Return a set of numbers as ranges."""
    result: list[int] = []
    for number in sorted(numbers):
        if result and result[-1] == number:
            result[-1] += 1
        else:
            result += (number, number + 1)
    return tuple(result)


def numbers_in(ranges: tuple[int, ...]) -> set[int]:
    """Return ranges as a set of numbers."""
    return {number for start, stop in pairs(ranges) for number in range(start, stop)}


# Addresses and connection IDs


def capture_address(address: NetworkAddress) -> AddressState:
    """Return a socket's address as a record."""
    match address:
        case (str(host), int(port)):
            return AddressState(host, port, None, None)
        case (str(host), int(port), int(flow), int(scope)):
            return AddressState(host, port, flow, scope)
    raise SnapshotError("the connection cannot be frozen: its addresses are not those of sockets")


def capture_connection_id(connection_id: QuicConnectionId) -> ConnectionIdState:
    """Return a connection ID as a record."""
    return ConnectionIdState(
        connection_id.sequence_number,
        bytes(connection_id.cid),
        bytes(connection_id.stateless_reset_token),
        connection_id.was_sent,
    )


def restore_connection_id(state: ConnectionIdState) -> QuicConnectionId:
    """Return the connection ID of a record."""
    return QuicConnectionId(state.cid, state.sequence_number, state.reset_token, state.was_sent)


# Keys


def capture_keys(connection: Connection) -> KeyState:
    """Return the 1-RTT secrets."""
    crypto = connection._cryptos[_ONE_RTT]
    assert crypto.recv.cipher_suite is not None, "the handshake is confirmed"
    assert crypto.recv.secret is not None, "the handshake is confirmed"
    assert crypto.send.secret is not None, "the handshake is confirmed"
    return KeyState(
        cipher_suite=int(crypto.recv.cipher_suite),
        phase=crypto.recv.key_phase,
        update_pending=crypto._update_key_requested,
        receive=crypto.recv.secret,
        first_receive=connection._first_secrets[_RECEIVE],
        send=crypto.send.secret,
        first_send=connection._first_secrets[_SEND],
    )


def restore_keys(connection: Connection, state: KeyState) -> None:
    """Install the 1-RTT secrets: the first for header protection, then those in use."""
    crypto = connection._cryptos[_ONE_RTT]
    version = connection._version
    assert version is not None, "it is known before"
    suite = tls.CipherSuite(state.cipher_suite)
    for direction, context, first, current in (
        (_RECEIVE, crypto.recv, state.first_receive, state.receive),
        (_SEND, crypto.send, state.first_send, state.send),
    ):
        context.setup(cipher_suite=suite, secret=first, version=version)
        connection._first_secrets[direction] = first
        if current != first:
            updated = CryptoContext(key_phase=state.phase)
            updated.setup(cipher_suite=suite, secret=current, version=version)
            apply_key_phase(context, updated, trigger="thawed")
        context.key_phase = state.phase
    crypto._update_key_requested = state.update_pending


# Packet numbers


def capture_packets(connection: Connection, now: float) -> PacketState:
    """Return the packet number space; `snapshot_flight` has what is in flight."""
    space = connection._spaces[_ONE_RTT]
    window = space.received_packets
    return PacketState(
        next_number=connection._packet_number,
        largest_acknowledged=space.largest_acked_packet,
        expected=space.expected_packet_number,
        largest_received=space.largest_received_packet,
        largest_received_ago=(
            None if space.largest_received_time is None else now - space.largest_received_time
        ),
        acknowledge_in=after(space.ack_at, now) if len(space.ack_queue) else None,
        to_acknowledge=flat(space.ack_queue),
        window_start=window._lower,
        window=ranges_of(n for n in window._received if n >= window._lower),
        sent_since_receipt=connection._ack_eliciting_sent_since_receipt,
        spin_bit=bool(connection._spin_bit),
        spin_number=connection._spin_highest_pn,
    )


def restore_packets(connection: Connection, state: PacketState, now: float) -> None:
    """Go on in a packet number space."""
    space = connection._spaces[_ONE_RTT]
    connection._packet_number = state.next_number
    space.largest_acked_packet = state.largest_acknowledged
    space.expected_packet_number = state.expected
    space.largest_received_packet = state.largest_received
    if state.largest_received_ago is not None:
        space.largest_received_time = now - state.largest_received_ago
    space.ack_at = at(state.acknowledge_in, now)
    space.ack_queue = range_set(state.to_acknowledge)
    space.received_packets._lower = state.window_start
    space.received_packets._received = numbers_in(state.window)
    connection._ack_eliciting_sent_since_receipt = state.sent_since_receipt
    connection._spin_bit = state.spin_bit
    connection._spin_highest_pn = state.spin_number


# Paths


def capture_path(path: QuicNetworkPath, now: float) -> PathRecord:
    """Return a path as a record."""
    return PathRecord(
        address=capture_address(path.addr),
        bytes_received=path.bytes_received,
        bytes_sent=path.bytes_sent,
        is_validated=path.is_validated,
        is_challenged=path.local_challenge_sent,
        sent_challenges=tuple(path.local_challenges),
        unanswered_challenges=tuple(path.remote_challenges),
        reserved_cid=None if path.peer_cid is None else capture_connection_id(path.peer_cid),
        validated_in=after(path.validation_deadline, now),
    )


def restore_path(state: PathRecord, now: float) -> QuicNetworkPath:
    """Return the path of a record."""
    path = QuicNetworkPath(state.address.value, is_validated=state.is_validated)
    path.bytes_received = state.bytes_received
    path.bytes_sent = state.bytes_sent
    path.local_challenge_sent = state.is_challenged
    path.local_challenges.extend(state.sent_challenges)
    path.remote_challenges.extend(state.unanswered_challenges)
    if state.reserved_cid is not None:
        path.peer_cid = restore_connection_id(state.reserved_cid)
    path.validation_deadline = at(state.validated_in, now)
    return path


def capture_recovery(connection: Connection) -> RecoveryState:
    """Return what loss recovery and congestion control know."""
    loss = connection._loss
    threshold = loss._cc.ssthresh
    return RecoveryState(
        congestion_window=int(loss._cc.congestion_window),
        slow_start_threshold=None if threshold is None else int(threshold),
        initial_rtt=float(loss._rtt_initial),
        rtt=RttState(loss._rtt_latest, loss._rtt_min, loss._rtt_smoothed, loss._rtt_variance)
        if loss._rtt_initialized
        else None,
        max_ack_delay=float(loss.max_ack_delay),
        generation=getattr(loss, "generation", 0),
    )


def restore_recovery(connection: Connection, state: RecoveryState, now: float) -> None:
    """Go on with what loss recovery and congestion control knew."""
    loss = connection._loss
    loss._cc.congestion_window = state.congestion_window
    loss._cc.ssthresh = state.slow_start_threshold
    loss._rtt_initial = state.initial_rtt
    loss.max_ack_delay = state.max_ack_delay
    loss.handshake_confirmed = True
    if state.rtt is not None:
        loss._rtt_initialized = True
        loss._rtt_first_sample_time = now
        loss._rtt_latest = state.rtt.latest
        loss._rtt_min = state.rtt.least
        loss._rtt_smoothed = state.rtt.smoothed
        loss._rtt_variance = state.rtt.variance
        loss._pacer.update_rate(
            congestion_window=state.congestion_window, smoothed_rtt=state.rtt.smoothed
        )
    if isinstance(loss, MigratingRecovery):
        loss.generation = loss._generations = state.generation
