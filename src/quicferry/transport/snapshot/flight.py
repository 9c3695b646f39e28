"""Stream data on its way to the client, as records, and back.

What is in flight at the freeze will be acknowledged to whoever goes on with the connection. So
packets with stream data are carried, and their data is sent again only if it is found lost. All
else that is in flight is given up for lost, without a sign of congestion, and waits to be sent:
it is little, and tied to the connection in too many ways.

Once a connection has been silent, nobody knows when an acknowledgement of these packets has come.
So they are treated like packets of another path: they give no RTT sample, and the congestion
controller does not count them. That holds for the copy, and for a source that goes on.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.stream import QuicStreamSender
from aioquic.tls import Epoch

from ..connection import Connection
from ..paths.recovery import MigratingRecovery
from .format import SnapshotError
from .records import MOST_FRAMES, MOST_PACKETS, SentDataState, SentPacketState

_Handler = tuple[Any, tuple[Any, ...]]


def separate_flight(connection: Connection, now: float) -> None:
    """Give up for lost what is in flight, apart from stream data that can be carried."""
    space = connection._spaces[Epoch.ONE_RTT]
    given_up: list[QuicSentPacket] = []
    had_something = space.ack_eliciting_in_flight > 0
    surplus = len(space.sent_packets) - MOST_PACKETS
    for place, packet in enumerate(space.sent_packets.values()):
        carried = [each for each in packet.delivery_handlers if _is_carried(connection, each)]
        if not carried or len(carried) > MOST_FRAMES or place < surplus:
            given_up.append(packet)
            continue
        for handler in packet.delivery_handlers:
            if handler not in carried:
                handler[0](QuicDeliveryState.LOST, *handler[1])
        packet.delivery_handlers = carried
    connection._loss._on_packets_lost(
        congestion_event=False, now=now, packets=given_up, space=space
    )
    space.loss_time = None
    if had_something and not space.sent_packets:
        # As after a probe timeout: a PING that was lost is replaced by one.
        connection._probe_pending = True


def capture_flight(connection: Connection, now: float) -> tuple[SentPacketState, ...]:
    """Return what `separate_flight` has left in flight."""
    return tuple(
        SentPacketState(
            number=packet.packet_number,
            size=packet.sent_bytes,
            sent_ago=0.0 if packet.sent_time is None else max(now - packet.sent_time, 0.0),
            data=tuple(
                SentDataState(_sender(handler)._stream_id, start, stop, is_end)
                for handler, (start, stop, is_end) in packet.delivery_handlers
            ),
        )
        for packet in connection._spaces[Epoch.ONE_RTT].sent_packets.values()
    )


def restore_flight(connection: Connection, states: Iterable[SentPacketState], now: float) -> None:
    """Await the acknowledgement of these packets.

    Raises:
        SnapshotError: If they do not fit to the streams.
    """
    space, loss = connection._spaces[Epoch.ONE_RTT], connection._loss
    streams: set[int] = set()
    for state in states:
        streams.update(each.stream_id for each in state.data)
        space.sent_packets[state.number] = QuicSentPacket(
            epoch=Epoch.ONE_RTT,
            in_flight=False,
            is_ack_eliciting=True,
            is_crypto_packet=False,
            packet_number=state.number,
            packet_type=QuicPacketType.ONE_RTT,
            sent_time=now - state.sent_ago,
            sent_bytes=state.size,
            delivery_handlers=[_handler(connection, each) for each in state.data],
        )
        space.ack_eliciting_in_flight += 1
        loss._time_of_last_sent_ack_eliciting_packet = now - state.sent_ago
    _check_ranges(connection, streams)


def postpone_flight(connection: Connection, pause: float, now: float) -> None:
    """Let time run on for what is in flight, after it has stood still."""
    space, loss = connection._spaces[Epoch.ONE_RTT], connection._loss
    packets = list(space.sent_packets.values())
    loss._cc.on_packets_expired(packets=[packet for packet in packets if packet.in_flight])
    for packet in packets:
        packet.in_flight = False
        if packet.sent_time is not None:
            packet.sent_time += pause
    loss._time_of_last_sent_ack_eliciting_packet += pause
    # What was sent before is no part of a period of persistent congestion (RFC 9002 7.6.2).
    loss._rtt_first_sample_time = now
    if isinstance(loss, MigratingRecovery):
        loss._has_changed_path = True
    # Some may have been overtaken by what was acknowledged: they have a timer of their own.
    loss._detect_loss(now=now, space=space)


def _sender(handler: Any) -> Any:
    """Return whose method this is."""
    return getattr(handler, "__self__", None)


def _is_carried(connection: Connection, handler: _Handler) -> bool:
    sender = _sender(handler[0])
    if not isinstance(sender, QuicStreamSender) or sender._stream_id is None:
        return False
    if handler[0].__func__ is not QuicStreamSender.on_data_delivery:
        return False
    stream = connection._streams.get(sender._stream_id)
    is_open = stream is not None and stream.sender is sender
    return is_open and isinstance(connection._loss, MigratingRecovery)


def _handler(connection: Connection, state: SentDataState) -> _Handler:
    stream = connection._streams.get(state.stream_id)
    if stream is None:
        raise SnapshotError("the snapshot cannot be used: data in flight of no stream")
    sender = stream.sender
    if not sender._buffer_start <= state.start <= state.stop <= sender.highest_offset:
        raise SnapshotError("the snapshot cannot be used: data in flight that is not there")
    if not state.is_end and state.start == state.stop:
        raise SnapshotError("the snapshot cannot be used: nothing in flight")
    if state.is_end and state.stop != sender._buffer_fin:
        raise SnapshotError("the snapshot cannot be used: an end in flight of an open stream")
    return sender.on_data_delivery, (state.start, state.stop, state.is_end)


def _check_ranges(connection: Connection, stream_ids: Iterable[int]) -> None:
    """Refuse data that is said to be in flight twice, or to be acknowledged or waiting as well."""
    in_flight: dict[int, list[tuple[int, int]]] = {stream_id: [] for stream_id in stream_ids}
    for packet in connection._spaces[Epoch.ONE_RTT].sent_packets.values():
        for handler, (start, stop, _) in packet.delivery_handlers:
            if start < stop:
                in_flight[_sender(handler)._stream_id].append((start, stop))
    for stream_id, ranges in in_flight.items():
        sender = connection._streams[stream_id].sender
        ranges += [(r.start, r.stop) for r in (*sender._pending, *sender._acked)]
        if any(before[1] > after[0] for before, after in pairwise(sorted(ranges))):
            raise SnapshotError("the snapshot cannot be used: data in flight in two ways")
