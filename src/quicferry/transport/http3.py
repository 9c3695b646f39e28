"""HTTP/3 on aioquic, for clients that ask for more than bodies and servers that move.

A server's `Http3Connection` has no dynamic QPACK table, so all that it knows can be carried to
another host: `export` here, and the argument `state` there.
"""

from __future__ import annotations

from contextlib import suppress

from aioquic.h3.connection import (
    ErrorCode,
    H3Connection,
    H3Stream,
    HeadersState,
    MessageError,
)
from aioquic.h3.events import H3Event, Headers
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import QuicEvent, StreamDataReceived, StreamReset

from .http3_messages import MessageMalformed, check_fields, complete_request
from .http3_state import HTTP3, Http3State, capture_http3, restore_http3
from .qpack import StaticDecoder, StaticEncoder
from .snapshot_format import SnapshotError, decode, encode


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
    - On a server it offers no dynamic QPACK table and uses none. A client that uses one all the
      same has broken the protocol (RFC 9204 2.2.3, 3.2.3), and the connection is closed.
    - A request can be ignored, from the middle of a frame on.

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
        self._begin_with = None if state is None else decode(state, Http3State, HTTP3)
        super().__init__(quic)

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

    # Responses, on a client

    def expect_no_body(self, stream_id: int) -> None:
        """Expect a response without a body on a stream: the request's method is HEAD."""
        self._bodiless.add(stream_id)

    # Overridden from aioquic

    def _init_connection(self) -> None:
        if not self._is_client:
            self._max_table_capacity = self._blocked_streams = 0
            empty = type(self._decoder)(self._max_table_capacity, self._blocked_streams)
            unread = b"" if self._begin_with is None else self._begin_with.unread_instruction
            self._decoder = StaticDecoder(empty)  # type: ignore[assignment]  # has what aioquic uses
            encoder = StaticEncoder(self._encoder, unread)
            self._encoder = encoder  # type: ignore[assignment]  # has what aioquic uses
        if self._begin_with is None:
            super()._init_connection()
            return
        restore_http3(self, self._begin_with)
        self._ignored.update(self._begin_with.ignored)
        self._begin_with = None

    def _decode_headers(self, stream_id: int, frame_data: bytes | None) -> Headers:
        headers: Headers = super()._decode_headers(stream_id, frame_data)
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
            self._malformed[stream.stream_id] = exc.reason_phrase
            return []

    def _handle_request_or_push_end(self, stream: H3Stream) -> list[H3Event]:
        if stream.stream_id in self._malformed:
            return []
        try:
            return super()._handle_request_or_push_end(stream)
        except MessageError as exc:
            self._malformed[stream.stream_id] = exc.reason_phrase
            return []

    def _check_content_length(self, stream: H3Stream) -> None:
        if stream.stream_id in self._bodiless:
            stream.expected_content_length = 0
        super()._check_content_length(stream)

    # Malformed messages

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
            stream = self._stream.pop(stream_id, None)
            if stream is None:
                continue  # it is over in both directions
            if not stream.sending_ended:
                self._quic.reset_stream(stream_id, ErrorCode.H3_MESSAGE_ERROR)
            if not stream.receiving_ended:
                self._ignored.add(stream_id)
                with suppress(ValueError):  # the peer may have reset it already
                    self._quic.stop_stream(stream_id, ErrorCode.H3_MESSAGE_ERROR)
        return [MessageMalformed(*item) for item in malformed.items()]
