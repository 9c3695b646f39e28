"""HTTP/3 on aioquic, for clients that ask for more than bodies and servers that move.

A server's `Http3Connection` has no dynamic QPACK table, so all that it knows can be carried to
another host: `export` here, and the argument `state` there.
"""

from __future__ import annotations

from contextlib import suppress

from aioquic.buffer import Buffer, BufferReadError
from aioquic.h3.connection import (
    ErrorCode,
    FrameType,
    H3Connection,
    H3Stream,
    HeadersState,
    MessageError,
    ProtocolError,
    StreamCreationError,
)
from aioquic.h3.events import DataReceived, H3Event, Headers
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import QuicEvent, StreamDataReceived, StreamReset

from ..snapshot.format import SnapshotError, decode, encode
from ..streams import StreamControl
from .goaway import GoawayReader, encode_goaway
from .messages import (
    MAX_FIELD_SECTION,
    MAX_FIELDS,
    MessageMalformed,
    SectionLimits,
    SectionTooLargeError,
    check_fields,
    complete_request,
)
from .qpack import StaticDecoder, StaticEncoder
from .state import HTTP3, Http3State, capture_http3, restore_http3

MAX_SETTINGS = 4096
"""Bytes of a frame on the control stream that is kept until its end."""

_MAX_FIELD_SECTION_SIZE = 0x6  # RFC 9114 7.2.4.1; aioquic has no name for it
_NO_FIELDS = b"\0\0"  # RFC 9204 4.5.1
_WITH_FIELDS = frozenset({FrameType.HEADERS, FrameType.PUSH_PROMISE})
_KEPT_WHOLE = _WITH_FIELDS | {FrameType.SETTINGS, FrameType.MAX_PUSH_ID}
_UNKNOWN = 0x21  # RFC 9114 7.2.8: reserved, so that it means nothing to anyone
_SMALL = 63
"""Bytes of a frame whose length takes one (RFC 9000 16)."""
_SECTIONS = 2
"""Field sections of a message: its header and its trailer."""
_MOST_EMPTY = 1000
"""By so many the frames without content may be more than those with some."""


class _ExcessiveLoadError(ProtocolError):
    error_code = ErrorCode.H3_EXCESSIVE_LOAD


class Http3Connection(H3Connection):
    """aioquic's HTTP/3 connection, with these differences.

    - It knows of responses without a body. The content-length of a response to HEAD, or with
      status 204 or 304, says nothing of a body (RFC 9114 4.1.2, RFC 9110 8.6). aioquic takes it
      for the length of the empty body that follows.
    - A malformed message costs its stream, not the connection (RFC 9114 4.1.2): the stream is
      reset with H3_MESSAGE_ERROR in both directions, nothing of it is looked at any more, and
      `MessageMalformed` says so. A body that becomes longer than announced is noticed at once. More
      is malformed than for aioquic, and a request without ``:authority`` is not if it has
      ``host``; see `http3_messages`.
    - What it keeps of a peer's frames is bounded: a field section of the size that the
      configuration allows and the settings announce (`max_header_size`, `max_header_fields`),
      settings of 4 KiB. A request with a larger header is answered with status 431
      (RFC 9114 4.2.2, 10.5). Fields are counted before they are expanded. aioquic waits for the
      end of a frame of any length, and looks at all of it again with every packet; here each byte
      is looked at twice.
    - Many more frames without content than with any are excessive load (RFC 9114 10.5), and
      WebTransport is not known.
    - On a server it offers no dynamic QPACK table and uses none. A client that uses one all the
      same has broken the protocol (RFC 9204 2.2.3, 3.2.3), and the connection is closed.
    - A request can be ignored, from the middle of a frame on.
    - A server can say that it takes no more requests, and a client knows what that means.

    Args:
        quic: The connection.
        state: What `export` returned on another host, for the connection that was thawed of the
            snapshot which belongs to it. Nothing is written then. None for a new connection.

    Raises:
        SnapshotError: If the state is damaged, or not that of this connection.
    """

    def __init__(self, quic: QuicConnection, *, state: bytes | None = None) -> None:
        self._bodiless: set[int] = set()
        self._ignored: set[int] = set()
        self._malformed: dict[int, str] = {}
        self._too_large: set[int] = set()
        self._goaway = GoawayReader()
        self._empty = 0
        self._limits = SectionLimits(
            getattr(quic.configuration, "max_header_size", MAX_FIELD_SECTION),
            getattr(quic.configuration, "max_header_fields", MAX_FIELDS),
        )
        self._begin_with = None if state is None else decode(state, Http3State, HTTP3)
        super().__init__(quic)
        if isinstance(quic, StreamControl):
            quic.pace_connection()

    def export(self) -> bytes:
        """Return what a server knows of its connection; nothing changes.

        Raises:
            SnapshotError: If it cannot be carried; the text says why.
        """
        if not isinstance(self._encoder, StaticEncoder):
            raise SnapshotError("this is a client's connection, and only servers move")
        state = capture_http3(self, unread_instruction=self._encoder.unread, ignored=self._ignored)
        return encode(state, HTTP3)

    # Requests, on a server

    def has_request(self, stream_id: int) -> bool:
        """Return whether a stream is past the header of its request, as far as it is known."""
        stream = self._stream.get(stream_id)
        if stream is None:
            return stream_id in self._ignored
        return (
            stream.headers_recv_state is not HeadersState.INITIAL or stream.session_id is not None
        )

    def ignore_request(self, stream_id: int) -> None:
        """Look at nothing any more that comes on a stream; its end is noticed."""
        self._stream.pop(stream_id, None)
        self._ignored.add(stream_id)

    def blocked(self, stream_id: int) -> int:
        """Return how many bytes of a stream wait behind a header that refers to what is to come."""
        stream = self._stream.get(stream_id)
        return len(stream.buffer) if stream is not None and stream.blocked else 0

    def handle_event(self, event: QuicEvent) -> list[H3Event]:
        """Take an event of the connection in, and return what it means."""
        if self._ignored and (stream_id := getattr(event, "stream_id", None)) in self._ignored:
            is_last = isinstance(event, StreamReset) or (
                isinstance(event, StreamDataReceived) and event.end_stream
            )
            if is_last:
                self._ignored.remove(stream_id)
            return []
        http_events = super().handle_event(event)
        if isinstance(event, StreamDataReceived):
            self._check_excess(event.stream_id)
        if self._malformed:
            http_events = [*self._without_malformed(http_events), *self._give_up_malformed()]
        return http_events

    def send_goaway(self, stream_id: int) -> None:
        """Tell the client that requests from this stream on are not served (RFC 9114 5.2)."""
        assert self._local_control_stream_id is not None, "it was the first"
        self._quic.send_stream_data(self._local_control_stream_id, encode_goaway(stream_id))

    # Responses, on a client

    @property
    def first_refused(self) -> int | None:
        """The first stream whose request the server will not serve; None while it serves all."""
        return self._goaway.first_refused

    def expect_no_body(self, stream_id: int) -> None:
        """Expect a response without a body on a stream: the request's method is HEAD."""
        self._bodiless.add(stream_id)

    def forget_response(self, stream_id: int) -> None:
        """Expect nothing more on a stream: its request is over, or was cancelled."""
        self._bodiless.discard(stream_id)

    # Overridden from aioquic

    def _receive_stream_data(self, event: StreamDataReceived) -> list[H3Event]:
        if self._is_client and event.stream_id % 4 == 1:
            raise StreamCreationError("only clients open streams for requests")  # RFC 9114 6.1
        stream = self._stream.get(event.stream_id)
        if stream is not None and stream.buffer:
            if self._has_to_wait(stream, event):
                return []
            stream.buffer = bytes(stream.buffer)
        http_events: list[H3Event] = super()._receive_stream_data(event)
        if self._is_client and event.stream_id == self._peer_control_stream_id:
            self._goaway.feed(event.data)
        return http_events

    def _has_to_wait(self, stream: H3Stream, event: StreamDataReceived) -> bool:
        """Keep what nothing can be made of yet. aioquic would copy all of it, time and again."""
        is_incomplete = (
            stream.frame_type in _KEPT_WHOLE
            and len(stream.buffer) + len(event.data) < (stream.frame_size or 0)
            and not event.end_stream
        )
        if not (stream.blocked or is_incomplete):
            return False
        if not isinstance(stream.buffer, bytearray):
            # It grows in place, and is bytes again before aioquic looks at it.
            stream.buffer = bytearray(stream.buffer)  # type: ignore[assignment]
        stream.buffer += event.data
        stream.receiving_ended |= event.end_stream
        return True

    def _init_connection(self) -> None:
        if not self._is_client:
            self._max_table_capacity = self._blocked_streams = 0
            empty = type(self._decoder)(self._max_table_capacity, self._blocked_streams)
            unread = b"" if self._begin_with is None else self._begin_with.unread_instruction
            # These are no pylsqpack's, which aioquic's hints name, but have all that it calls.
            self._decoder = StaticDecoder(empty)  # type: ignore[assignment]
            self._encoder = StaticEncoder(self._encoder, unread)  # type: ignore[assignment]
        if self._begin_with is None:
            super()._init_connection()
            return
        restore_http3(self, self._begin_with)
        self._ignored.update(self._begin_with.ignored)
        self._begin_with = None

    def _get_local_settings(self) -> dict[int, int]:
        return super()._get_local_settings() | {_MAX_FIELD_SECTION_SIZE: self._limits.size}

    def _check_control_frame_type(self, frame_type: int) -> None:
        super()._check_control_frame_type(frame_type)
        assert self._peer_control_stream_id is not None, "a frame has come on it"
        size = self._stream[self._peer_control_stream_id].frame_size or 0
        self._count_frames(not size, bool(size))
        if frame_type in (FrameType.SETTINGS, FrameType.MAX_PUSH_ID) and size > MAX_SETTINGS:
            raise _ExcessiveLoadError(
                f"a frame on the control stream is larger than {MAX_SETTINGS} bytes"
            )

    def _check_request_or_push_frame_type(self, frame_type: int, stream: H3Stream) -> None:
        super()._check_request_or_push_frame_type(frame_type, stream)
        size = stream.frame_size or 0
        self._count_frames(not size, bool(size))
        if frame_type in _WITH_FIELDS:
            self._limits.check_frame(size)
        elif frame_type == FrameType.WEBTRANSPORT_STREAM:
            stream.frame_type = _UNKNOWN

    def _count_frames(self, empty: int, others: int) -> None:
        self._empty = max(0, self._empty + empty - others)
        if self._empty > _MOST_EMPTY:
            raise _ExcessiveLoadError("too many frames are empty")

    def _receive_request_or_push_data(
        self, stream: H3Stream, data: bytes, stream_ended: bool
    ) -> list[H3Event]:
        http_events: list[H3Event] = []
        stream.buffer = bytes(stream.buffer)
        try:
            for _ in range(_SECTIONS if self._quic_logger is None and not stream.blocked else 0):
                data = self._take_small_frames(stream, data, http_events)
                end = _end_of_section(stream, data)
                if not end:
                    break
                http_events += super()._receive_request_or_push_data(stream, data[:end], False)
                data = data[end:]
            http_events += super()._receive_request_or_push_data(stream, data, stream_ended)
        except SectionTooLargeError as exc:
            self._note_malformed(stream, exc)
        return http_events

    def _take_small_frames(
        self, stream: H3Stream, data: bytes, http_events: list[H3Event]
    ) -> bytes:
        """Make one event of all small DATA frames that come first, and return what comes next.

        Hundreds fit into a packet. aioquic makes an event of each, in the time of a whole packet.
        """
        if stream.blocked or stream.headers_recv_state is not HeadersState.AFTER_HEADERS:
            return data
        place, body = 0, []
        if stream.frame_size is None:
            data, stream.buffer = stream.buffer + data, b""
        elif stream.frame_type != FrameType.DATA or stream.frame_size >= len(data):
            return data
        else:  # the rest of a frame that has begun
            place = stream.frame_size
            body.append(data[:place])
            stream.frame_size = stream.frame_type = None
        last = len(data) - 2
        while place <= last and not data[place] and (size := data[place + 1]) <= _SMALL:
            end = place + 2 + size
            if end > last + 2:
                break
            body.append(data[place + 2 : end])
            place = end
        if body:
            empty = body.count(b"")
            self._count_frames(empty, len(body) - empty)
        if taken := b"".join(body):
            stream.content_length += len(taken)
            http_events.append(DataReceived(taken, stream.stream_id, False, stream.push_id))
        return data[place:]

    def _decode_headers(self, stream_id: int, frame_data: bytes | None) -> Headers:
        # pylsqpack takes a section without any field for damaged.
        is_empty = frame_data == _NO_FIELDS
        if frame_data is not None:
            self._limits.check_encoded(frame_data)
        headers: Headers = [] if is_empty else super()._decode_headers(stream_id, frame_data)
        self._limits.check(headers)
        check_fields(headers)
        if self._is_client:
            if (b":status", b"304") in headers or (b":status", b"204") in headers:
                self._bodiless.add(stream_id)
        elif self._stream[stream_id].headers_recv_state is HeadersState.INITIAL:
            headers = complete_request(headers)
        return headers

    def _handle_request_or_push_frame(
        self,
        frame_type: int,
        frame_data: bytes | None,
        stream: H3Stream,
        stream_ended: bool,
    ) -> list[H3Event]:
        if stream.stream_id in self._malformed:
            return []
        try:
            return super()._handle_request_or_push_frame(
                frame_type, frame_data, stream, stream_ended
            )
        except MessageError as exc:
            self._note_malformed(stream, exc)
            return []

    def _handle_request_or_push_end(self, stream: H3Stream) -> list[H3Event]:
        if stream.stream_id in self._malformed:
            return []
        try:
            return super()._handle_request_or_push_end(stream)
        except MessageError as exc:
            self._note_malformed(stream, exc)
            return []

    def _check_content_length(self, stream: H3Stream) -> None:
        if stream.stream_id in self._bodiless:
            stream.expected_content_length = 0
        super()._check_content_length(stream)

    # Malformed messages

    def _note_malformed(self, stream: H3Stream, error: MessageError) -> None:
        self._malformed[stream.stream_id] = error.reason_phrase
        if (
            isinstance(error, SectionTooLargeError)
            and not self._is_client
            and stream.headers_recv_state is HeadersState.INITIAL
        ):
            self._too_large.add(stream.stream_id)
        if self._is_client and self._local_decoder_stream_id is not None:
            # What is not decoded any more may refer to the dynamic table (RFC 9204 4.4.2).
            cancellation = self._decoder.cancel_stream(stream.stream_id)
            self._quic.send_stream_data(self._local_decoder_stream_id, cancellation)

    def _check_excess(self, stream_id: int) -> None:
        """Notice a body that is longer than announced before its end, which may never come."""
        stream = self._stream.get(stream_id)
        if stream is None:
            self._bodiless.discard(stream_id)
            return
        announced = 0 if stream_id in self._bodiless else stream.expected_content_length
        if announced is not None and stream.content_length > announced:
            self._malformed.setdefault(stream_id, "the body is longer than its content-length")

    def _without_malformed(self, http_events: list[H3Event]) -> list[H3Event]:
        return [
            event
            for event in http_events
            if getattr(event, "stream_id", None) not in self._malformed
        ]

    def _give_up_malformed(self) -> list[H3Event]:
        malformed, self._malformed = self._malformed, {}
        if self._is_done:
            return []
        for stream_id in malformed:
            self._bodiless.discard(stream_id)
            error = ErrorCode.H3_MESSAGE_ERROR
            stream = self._stream.get(stream_id)
            if stream_id in self._too_large:
                self._too_large.remove(stream_id)
                error = ErrorCode.H3_NO_ERROR  # the response is complete (RFC 9114 4.1)
                self.send_headers(stream_id, [(b":status", b"431")], end_stream=True)
            self._stream.pop(stream_id, None)
            if stream is None:
                continue  # it is over in both directions
            if not stream.sending_ended:
                self._quic.reset_stream(stream_id, error)
            if not stream.receiving_ended:
                self._ignored.add(stream_id)
                with suppress(ValueError):  # the peer may have reset it already
                    self._quic.stop_stream(stream_id, error)
        return [MessageMalformed(*item) for item in malformed.items()]


def _end_of_section(stream: H3Stream, data: bytes) -> int:
    """Return where a field section ends after which there is more; 0 if there is none."""
    end = 0
    if stream.frame_size is not None:
        if stream.frame_type in _WITH_FIELDS:
            end = stream.frame_size - len(stream.buffer)
    elif not stream.buffer and data[:1] == bytes([FrameType.HEADERS]):
        buf = Buffer(data=data[1:9])
        with suppress(BufferReadError):
            size = buf.pull_uint_var()
            end = 1 + buf.tell() + size
    return end if end < len(data) else 0
