"""Streams and their limits as records, and back."""

from __future__ import annotations

from collections.abc import Iterable

from aioquic.quic.connection import Limit, stream_is_client_initiated, stream_is_unidirectional
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender

from ..connection import Connection
from .parts import flat, range_set
from .records import LimitState, LocalState, ReceiverState, RemoteState, SenderState, StreamState

# Limits


def _capture_limit(limit: Limit) -> LimitState:
    return LimitState(limit.value, limit.sent, limit.used)


def _restore_limit(limit: Limit, state: LimitState) -> None:
    limit.value, limit.sent, limit.used = state.value, state.sent, state.used


def capture_local(connection: Connection) -> LocalState:
    """Return what the client was told, and may use."""
    configuration = connection.configuration
    return LocalState(
        max_data=_capture_limit(connection._local_max_data),
        max_streams_bidi=_capture_limit(connection._local_max_streams_bidi),
        max_streams_uni=_capture_limit(connection._local_max_streams_uni),
        max_stream_data_bidi_local=connection._local_max_stream_data_bidi_local,
        max_stream_data_bidi_remote=connection._local_max_stream_data_bidi_remote,
        max_stream_data_uni=connection._local_max_stream_data_uni,
        next_stream_bidi=connection._local_next_stream_id_bidi,
        next_stream_uni=connection._local_next_stream_id_uni,
        idle_timeout=float(configuration.idle_timeout),
        max_datagram_frame_size=configuration.max_datagram_frame_size,
    )


def restore_local(connection: Connection, state: LocalState) -> None:
    """Hold to what the client was told."""
    _restore_limit(connection._local_max_data, state.max_data)
    _restore_limit(connection._local_max_streams_bidi, state.max_streams_bidi)
    _restore_limit(connection._local_max_streams_uni, state.max_streams_uni)
    connection._local_max_stream_data_bidi_local = state.max_stream_data_bidi_local
    connection._local_max_stream_data_bidi_remote = state.max_stream_data_bidi_remote
    connection._local_max_stream_data_uni = state.max_stream_data_uni
    connection._local_next_stream_id_bidi = state.next_stream_bidi
    connection._local_next_stream_id_uni = state.next_stream_uni


def capture_remote(connection: Connection) -> RemoteState:
    """Return what the client allows."""
    idle_timeout = connection._remote_max_idle_timeout
    return RemoteState(
        active_connection_id_limit=connection._remote_active_connection_id_limit,
        max_idle_timeout=None if idle_timeout is None else float(idle_timeout),
        max_datagram_frame_size=connection._remote_max_datagram_frame_size,
        max_data=connection._remote_max_data,
        max_data_used=connection._remote_max_data_used,
        max_stream_data_bidi_local=connection._remote_max_stream_data_bidi_local,
        max_stream_data_bidi_remote=connection._remote_max_stream_data_bidi_remote,
        max_stream_data_uni=connection._remote_max_stream_data_uni,
        max_streams_bidi=connection._remote_max_streams_bidi,
        max_streams_uni=connection._remote_max_streams_uni,
    )


def restore_remote(connection: Connection, state: RemoteState) -> None:
    """Hold to what the client allows."""
    connection._remote_active_connection_id_limit = state.active_connection_id_limit
    connection._remote_max_idle_timeout = state.max_idle_timeout
    connection._remote_max_datagram_frame_size = state.max_datagram_frame_size
    connection._remote_max_data = state.max_data
    connection._remote_max_data_used = state.max_data_used
    connection._remote_max_stream_data_bidi_local = state.max_stream_data_bidi_local
    connection._remote_max_stream_data_bidi_remote = state.max_stream_data_bidi_remote
    connection._remote_max_stream_data_uni = state.max_stream_data_uni
    connection._remote_max_streams_bidi = state.max_streams_bidi
    connection._remote_max_streams_uni = state.max_streams_uni


# Streams


def capture_sender(sender: QuicStreamSender) -> SenderState:
    """Return the sending part of a stream."""
    return SenderState(
        start=sender._buffer_start,
        data=bytes(sender._buffer),
        highest_sent=sender.highest_offset,
        pending=flat(sender._pending),
        acknowledged=flat(sender._acked),
        has_end=sender._buffer_fin is not None,
        end_pending=sender._pending_eof,
        end_acknowledged=sender._acked_fin,
        is_idle=sender.buffer_is_empty,
        is_finished=sender.is_finished,
        reset_code=_code(sender._reset_error_code),
        reset_pending=sender.reset_pending,
    )


def restore_sender(sender: QuicStreamSender, state: SenderState) -> None:
    """Go on sending."""
    sender._buffer_start = state.start
    sender._buffer = bytearray(state.data)
    sender._buffer_stop = state.start + len(state.data)
    sender._buffer_fin = sender._buffer_stop if state.has_end else None
    sender.highest_offset = state.highest_sent
    sender._pending = range_set(state.pending)
    sender._acked = range_set(state.acknowledged)
    sender._pending_eof = state.end_pending
    sender._acked_fin = state.end_acknowledged
    sender.buffer_is_empty = state.is_idle
    sender.is_finished = state.is_finished
    sender._reset_error_code = state.reset_code
    sender.reset_pending = state.reset_pending


def capture_receiver(receiver: QuicStreamReceiver) -> ReceiverState:
    """Return the receiving part of a stream."""
    return ReceiverState(
        start=receiver._buffer_start,
        data=bytes(receiver._buffer),
        received=flat(receiver._ranges),
        highest_received=receiver.highest_offset,
        final_size=receiver._final_size,
        is_finished=receiver.is_finished,
        stop_code=_code(receiver._stop_error_code),
        stop_pending=receiver.stop_pending,
    )


def restore_receiver(receiver: QuicStreamReceiver, state: ReceiverState) -> None:
    """Go on receiving."""
    receiver._buffer_start = state.start
    receiver._buffer = bytearray(state.data)
    receiver._ranges = range_set(state.received)
    receiver.highest_offset = state.highest_received
    receiver._final_size = state.final_size
    receiver.is_finished = state.is_finished
    receiver._stop_error_code = state.stop_code
    receiver.stop_pending = state.stop_pending


def _code(error_code: int | None) -> int | None:
    """Return an application's error code as a plain number; it may be of an enum."""
    return None if error_code is None else int(error_code)


def _is_readable(stream_id: int) -> bool:
    return stream_is_client_initiated(stream_id) or not stream_is_unidirectional(stream_id)


def _is_writable(stream_id: int) -> bool:
    return not (stream_is_client_initiated(stream_id) and stream_is_unidirectional(stream_id))


def capture_streams(connection: Connection) -> tuple[StreamState, ...]:
    """Return the streams, in the order in which it is their turn to be served."""
    return tuple(
        StreamState(
            stream_id=stream.stream_id,
            is_blocked=stream.is_blocked,
            max_data_local=stream.max_stream_data_local,
            max_data_local_sent=stream.max_stream_data_local_sent,
            max_data_remote=stream.max_stream_data_remote,
            consumed=connection._consumed.get(stream.stream_id),
            sender=capture_sender(stream.sender) if _is_writable(stream.stream_id) else None,
            receiver=capture_receiver(stream.receiver) if _is_readable(stream.stream_id) else None,
        )
        for stream in connection._streams_queue
        if stream.stream_id is not None
    )


def restore_streams(connection: Connection, states: Iterable[StreamState]) -> None:
    """Go on with the streams."""
    for state in states:
        stream = QuicStream(
            stream_id=state.stream_id,
            max_stream_data_local=state.max_data_local,
            max_stream_data_remote=state.max_data_remote,
            readable=_is_readable(state.stream_id),
            writable=_is_writable(state.stream_id),
        )
        stream.is_blocked = state.is_blocked
        stream.max_stream_data_local_sent = state.max_data_local_sent
        if state.sender is not None:
            restore_sender(stream.sender, state.sender)
        if state.receiver is not None:
            restore_receiver(stream.receiver, state.receiver)
        connection._streams[state.stream_id] = stream
        connection._streams_queue.append(stream)
        if state.consumed is not None:
            connection._consumed[state.stream_id] = state.consumed
    blocked = sorted(i for i, stream in connection._streams.items() if stream.is_blocked)
    for stream_id in blocked:
        waiting = (
            connection._streams_blocked_uni
            if stream_is_unidirectional(stream_id)
            else connection._streams_blocked_bidi
        )
        waiting.append(connection._streams[stream_id])
