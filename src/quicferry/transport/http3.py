"""HTTP/3 on aioquic, for clients that ask for more than bodies."""

from __future__ import annotations

from aioquic.h3.connection import H3Connection, H3Stream
from aioquic.h3.events import Headers
from aioquic.quic.connection import QuicConnection


class Http3Connection(H3Connection):
    """aioquic's HTTP/3 connection, which knows of responses without a body.

    The content-length of a response to HEAD, or with status 304, says how long a body would have
    been (RFC 9110 8.6). aioquic takes it for the length of the empty body that follows, and
    closes the connection.
    """

    def __init__(self, quic: QuicConnection) -> None:
        super().__init__(quic)
        self._bodiless: set[int] = set()

    def expect_no_body(self, stream_id: int) -> None:
        """Expect a response without a body on a stream: the request's method is HEAD."""
        self._bodiless.add(stream_id)

    def _decode_headers(self, stream_id: int, frame_data: bytes | None) -> Headers:
        headers: Headers = super()._decode_headers(stream_id, frame_data)
        if (b":status", b"304") in headers:
            self._bodiless.add(stream_id)
        return headers

    def _check_content_length(self, stream: H3Stream) -> None:
        if stream.stream_id in self._bodiless:
            self._bodiless.remove(stream.stream_id)
            stream.expected_content_length = 0
        super()._check_content_length(stream)
