"""The HTTP/3 state of a server's connection as a record, and back.

It goes with the snapshot of the QUIC connection and holds what aioquic's `H3Connection` knows
beside it. Not in it, because a server never has it: what belongs to QPACK's dynamic table
(`qpack`) and to the receiving of pushed responses. aioquic's counts of QPACK bytes are left out
too; nothing reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain
from typing import Annotated

from aioquic.h3.connection import H3Connection, H3Stream, HeadersState, Setting, StreamType

from ..snapshot.format import MAX_SNAPSHOT_SIZE, Form, SnapshotError, Within, demand, pairs
from .qpack import MAX_INSTRUCTION

HTTP3 = Form(b"QFH3", 1, "the HTTP/3 state of a connection")

_NEVER_REACHED = 1 << 62
"""Bytes: a content-length from there on differs from what comes, whatever it is (RFC 9000 4.5)."""

_Number = Annotated[int, Within(0, (1 << 62) - 1)]
_Data = Annotated[bytes, Within(0, MAX_SNAPSHOT_SIZE)]
_Progress = Annotated[int, Within(0, len(HeadersState) - 1)]
_Settings = Annotated[tuple[_Number, ...], Within(0, 1 << 16)]
"""Identifier and value by turns."""


@dataclass(frozen=True, repr=False)
class Http3StreamState:
    """A stream that is not over on both sides."""

    stream_id: _Number
    buffer: _Data
    receiving_ended: bool
    sending_ended: bool
    frame_type: _Number | None
    frame_size: _Number | None
    headers_received: _Progress
    headers_sent: _Progress
    stream_type: _Number | None
    session_id: _Number | None
    expected_content_length: Annotated[int, Within(0, _NEVER_REACHED)] | None
    content_length: _Number

    def __post_init__(self) -> None:
        demand(self.frame_size is None or self.frame_type is not None, "a frame without a type")
        demand(self.stream_type != StreamType.PUSH, "a response pushed by a client")


@dataclass(frozen=True, repr=False)
class Http3State:
    """Everything that HTTP/3 knows of a server's connection.

    The one-way streams that live as long as the connection are those for control, and for QPACK's
    encoder and decoder, in this order.
    """

    local_streams: Annotated[tuple[_Number, ...], Within(3, 3)]
    peer_streams: Annotated[tuple[_Number | None, ...], Within(3, 3)]
    sent_settings: _Settings
    received_settings: _Settings | None
    max_push_id: _Number | None
    next_push_id: _Number
    unread_instruction: Annotated[bytes, Within(0, MAX_INSTRUCTION - 1)]
    ignored: Annotated[tuple[_Number, ...], Within(0, 1 << 20)]
    streams: Annotated[tuple[Http3StreamState, ...], Within(0, 1 << 20)]

    def __post_init__(self) -> None:
        local, peer = self.local_streams, [i for i in self.peer_streams if i is not None]
        demand(len({*local, *peer}) == len(local) + len(peer), "a stream for two purposes")
        demand(all(i % 4 == 3 for i in local), "a stream of its own that is not one-way")
        demand(all(i % 4 == 2 for i in peer), "a stream of the client's that is not one-way")
        for settings in (self.sent_settings, self.received_settings or ()):
            demand(len(settings) % 2 == 0, "half a setting")
            demand(len(set(settings[::2])) == len(settings) // 2, "a setting twice")
        sent = dict(pairs(self.sent_settings))
        has_no_table = sent.get(Setting.QPACK_MAX_TABLE_CAPACITY) == 0
        demand(has_no_table, "a dynamic table for header fields")
        ids = [stream.stream_id for stream in self.streams]
        demand(len(set(ids)) == len(ids), "a stream twice")
        demand(all(i % 4 == 0 for i in self.ignored), "no request to be ignored")
        demand(not set(ids) & set(self.ignored), "a stream that is ignored and is not")


def capture_http3(
    connection: H3Connection, *, unread_instruction: bytes, ignored: Iterable[int]
) -> Http3State:
    """Return what a server's HTTP/3 connection is; nothing changes.

    Args:
        connection: The connection.
        unread_instruction: Of the client's QPACK decoder stream.
        ignored: The streams that are not looked at any more.

    Raises:
        SnapshotError: If it cannot be carried.
    """
    if connection._is_client:
        raise SnapshotError("this is a client's connection, and only servers move")
    if connection._is_done:
        raise SnapshotError("the connection is being closed, because its client broke HTTP/3")
    received = connection._received_settings
    local = (
        connection._local_control_stream_id,
        connection._local_encoder_stream_id,
        connection._local_decoder_stream_id,
    )
    return Http3State(
        local_streams=tuple(stream_id for stream_id in local if stream_id is not None),
        peer_streams=(
            connection._peer_control_stream_id,
            connection._peer_encoder_stream_id,
            connection._peer_decoder_stream_id,
        ),
        sent_settings=_flat(connection._sent_settings or {}),
        received_settings=None if received is None else _flat(received),
        max_push_id=connection._max_push_id,
        next_push_id=connection._next_push_id,
        unread_instruction=unread_instruction,
        ignored=tuple(sorted(ignored)),
        streams=tuple(_capture_stream(stream) for stream in connection._stream.values()),
    )


def restore_http3(connection: H3Connection, state: Http3State) -> None:
    """Go on with an HTTP/3 connection that is new; nothing is written.

    Raises:
        SnapshotError: If the state does not belong to the QUIC connection.
    """
    if connection._is_client:
        raise SnapshotError("this is a client's connection, and only servers move")
    if not all(stream_id in connection._quic._streams for stream_id in state.local_streams):
        raise SnapshotError("the HTTP/3 state is not that of this connection")
    (
        connection._local_control_stream_id,
        connection._local_encoder_stream_id,
        connection._local_decoder_stream_id,
    ) = state.local_streams
    (
        connection._peer_control_stream_id,
        connection._peer_encoder_stream_id,
        connection._peer_decoder_stream_id,
    ) = state.peer_streams
    connection._sent_settings = dict(pairs(state.sent_settings))
    if state.received_settings is not None:
        connection._received_settings = dict(pairs(state.received_settings))
        connection._settings_received = True
    connection._max_push_id = state.max_push_id
    connection._next_push_id = state.next_push_id
    connection._stream = {stream.stream_id: _restore_stream(stream) for stream in state.streams}


def _flat(settings: dict[int, int]) -> tuple[int, ...]:
    return tuple(map(int, chain.from_iterable(settings.items())))


def _capture_stream(stream: H3Stream) -> Http3StreamState:
    expected = stream.expected_content_length
    return Http3StreamState(
        stream_id=stream.stream_id,
        buffer=bytes(stream.buffer),
        receiving_ended=stream.receiving_ended,
        sending_ended=stream.sending_ended,
        frame_type=stream.frame_type,
        frame_size=stream.frame_size,
        headers_received=stream.headers_recv_state.value,
        headers_sent=stream.headers_send_state.value,
        stream_type=stream.stream_type,
        session_id=stream.session_id,
        expected_content_length=None if expected is None else min(expected, _NEVER_REACHED),
        content_length=stream.content_length,
    )


def _restore_stream(state: Http3StreamState) -> H3Stream:
    stream = H3Stream(state.stream_id)
    stream.buffer = state.buffer
    stream.receiving_ended = state.receiving_ended
    stream.sending_ended = state.sending_ended
    stream.frame_type = state.frame_type
    stream.frame_size = state.frame_size
    stream.headers_recv_state = HeadersState(state.headers_received)
    stream.headers_send_state = HeadersState(state.headers_sent)
    stream.stream_type = state.stream_type
    stream.session_id = state.session_id
    stream.expected_content_length = state.expected_content_length
    stream.content_length = state.content_length
    return stream
