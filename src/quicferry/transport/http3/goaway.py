"""GOAWAY: how an HTTP/3 server says that it takes no more requests on a connection (RFC 9114 5.2).

aioquic has no use for the frame and discards its content, so it is looked for beside aioquic's own
reading of the control stream.
"""

from __future__ import annotations

from aioquic.buffer import Buffer, BufferReadError, encode_uint_var
from aioquic.h3.connection import FrameError, FrameType, IdError, encode_frame

_LARGEST = 8
"""Bytes: the content is one varint (RFC 9114 7.2.6)."""


def encode_goaway(stream_id: int) -> bytes:
    """Return the frame that says which request, by its stream, is the first not to be served."""
    return encode_frame(FrameType.GOAWAY, encode_uint_var(stream_id))


class GoawayReader:
    """Finds GOAWAY frames in what a client gets on its server's control stream, from its beginning.

    Attributes:
        first_refused: The first stream whose request is not served; None while none is refused.
    """

    def __init__(self) -> None:
        self.first_refused: int | None = None
        self._pending = b""
        self._to_skip = 0
        self._knows_type = False

    def feed(self, data: bytes) -> None:
        """Take in what has come.

        Raises:
            FrameError: If a GOAWAY frame is malformed.
            IdError: If it names no request, or refuses fewer than one before (RFC 9114 5.2).
        """
        self._pending += data[self._to_skip :]
        self._to_skip = max(0, self._to_skip - len(data))
        while self._pending and self._read_one():
            pass

    def _read_one(self) -> bool:
        """Read what comes next; return whether it was complete."""
        buf = Buffer(data=self._pending)
        try:
            if not self._knows_type:
                buf.pull_uint_var()  # of the stream
                self._knows_type = True
                self._pending = self._pending[buf.tell() :]
                return True
            kind, size = buf.pull_uint_var(), buf.pull_uint_var()
            if kind == FrameType.GOAWAY:
                if size > _LARGEST:
                    raise FrameError("GOAWAY frame has trailing data")
                self._take(buf.pull_bytes(size))
                size = 0
        except BufferReadError:
            return False
        rest = self._pending[buf.tell() :]
        self._pending, self._to_skip = rest[size:], max(0, size - len(rest))
        return True

    def _take(self, content: bytes) -> None:
        buf = Buffer(data=content)
        try:
            stream_id = buf.pull_uint_var()
        except BufferReadError:
            raise FrameError("Could not parse GOAWAY frame") from None
        if not buf.eof():
            raise FrameError("GOAWAY frame has trailing data")
        if stream_id % 4:
            raise IdError("GOAWAY names no request")
        if self.first_refused is not None and stream_id > self.first_refused:
            raise IdError("GOAWAY refuses less than before")
        self.first_refused = stream_id
