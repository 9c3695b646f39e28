"""What an application wants to know and to decide about its streams, beyond what aioquic offers."""

from __future__ import annotations

from typing import Any

from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    QuicConnection,
    QuicConnectionError,
    QuicReceiveContext,
    stream_is_unidirectional,
)
from aioquic.quic.packet import QuicErrorCode
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

_MOST_GAPS = 256
"""So many parts of a stream may have arrived without what is between them."""

STREAM_WINDOWS = 16
"""So many streams' windows is what a whole paced connection may have sent and nobody has read."""


class _HeldStream(QuicStream):
    """A stream that is not over for the limit of streams, whatever has come and gone on it."""

    @property
    def is_finished(self) -> bool:
        return False


class StreamControl(QuicConnection):
    """A connection whose application paces both directions of its streams.

    Args:
        configuration: A `Configuration`, or aioquic's own.
        arguments: As in aioquic.
    """

    def __init__(self, *, configuration: QuicConfiguration, **arguments: Any) -> None:
        super().__init__(configuration=configuration, **arguments)
        self._consumed: dict[int, int] = {}
        self._window = 0
        limit = self._local_max_streams_bidi
        limit.value = limit.sent = getattr(configuration, "max_streams", limit.value)

    def hold_stream(self, stream_id: int) -> None:
        """Let the peer open no stream for this one, also when it has ended, until its release."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.__class__ = _HeldStream

    def release_stream(self, stream_id: int) -> None:
        """Let the peer open a stream for this one, when it has ended; transmit then."""
        stream = self._streams.get(stream_id)
        if stream is not None:
            stream.__class__ = QuicStream

    def is_stopped(self, stream_id: int) -> bool:
        """Return whether nothing more can be sent on a stream: it was reset, or the peer asked."""
        stream = self._streams.get(stream_id)
        return stream is not None and stream.sender._reset_error_code is not None

    def pace_connection(self) -> None:
        """Count what nobody has read of paced streams against the limit of the connection.

        aioquic doubles that limit as data arrives, whether anyone reads it or not.
        """
        configuration = self._configuration
        self._window = max(configuration.max_data, STREAM_WINDOWS * configuration.max_stream_data)

    def stream_backlog(self, stream_id: int) -> int:
        """Return how many bytes written to a stream have not been sent for the first time."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.sender.is_finished or stream.sender.reset_pending:
            return 0
        sender = stream.sender
        return int(sender._buffer_stop - sender.highest_offset)

    @property
    def backlog(self) -> int:
        """How many bytes are kept of what was written to all streams: the peer may want them."""
        return sum(len(stream.sender._buffer) for stream in self._streams.values())

    def stream_consumed(self, stream_id: int, offset: int) -> bool:
        """Let the application pace what the peer may send on a stream.

        aioquic extends a stream's limit as data arrives, whether anyone reads it or not. From the
        first call on for a stream, the limit is what was read plus the configured window.

        Args:
            stream_id: The stream.
            offset: How many bytes the application has read from its beginning.

        Returns:
            Whether the peer should be told now: transmit then.
        """
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        if len(self._consumed) > 2 * len(self._streams):
            self._consumed = {i: n for i, n in self._consumed.items() if i in self._streams}
        self._consumed[stream_id] = max(offset, self._consumed.get(stream_id, 0))
        limit = self._local_max_data
        return self._grant(stream) is not None or (
            limit.value - limit.used < self._window // 4 and self._data_limit() > limit.value
        )

    def stream_unread(self, stream_id: int, size: int) -> bool:
        """Do the same, where the application knows how much it has not read of what has arrived."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        return self.stream_consumed(stream_id, stream.receiver._buffer_start - size)

    def stream_unpaced(self, stream_id: int) -> None:
        """Extend a stream's limit as data arrives again, as before the first `stream_consumed`."""
        self._consumed.pop(stream_id, None)

    @property
    def is_receiving(self) -> bool:
        """Whether there is a stream for both directions whose end the peer has not sent yet."""
        return any(
            not (stream_is_unidirectional(stream_id) or stream.receiver.is_finished)
            for stream_id, stream in self._streams.items()
        )

    def has_data_to_send(self) -> bool:
        """Return whether a packet sent now would carry something the peer has to acknowledge."""
        credit = self._remote_max_data - self._remote_max_data_used
        return bool(
            self._ping_pending
            or self._probe_pending
            or self._datagrams_pending
            or any(
                stream.sender.reset_pending
                or (
                    not stream.sender.buffer_is_empty
                    and stream.sender.next_offset
                    < min(stream.sender.highest_offset + credit, stream.max_stream_data_remote)
                )
                for stream in self._streams_queue
                if not stream.is_blocked
            )
        )

    @property
    def first_unopened_stream(self) -> int:
        """The first bidirectional stream that the peer has not opened yet."""
        return int(4 * self._local_max_streams_bidi.used)

    def undelivered(self, *, control: bool) -> int:
        """Return how much of what was written to the streams the peer has not acknowledged.

        Args:
            control: Whether streams count that are open as long as the connection.

        Returns:
            The bytes, and one for the end of each stream.
        """
        senders = [stream.sender for stream in self._streams.values()]
        return sum(
            len(sender._buffer) + 1 if sender._reset_error_code is None else 1
            for sender in senders
            if not sender.is_finished
            and (
                sender._buffer_fin is not None
                or sender._reset_error_code is not None
                or (control and sender._buffer)
            )
        )

    # Overridden from aioquic

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        if not self._window:
            super()._write_connection_limits(builder, space)
            return
        limit = self._local_max_data
        used = limit.used
        if limit.value - used < self._window // 2:
            limit.value = max(limit.value, self._data_limit())
        limit.used = 0  # what has arrived must not make aioquic double the limit
        try:
            super()._write_connection_limits(builder, space)
        finally:
            limit.used = used

    def _data_limit(self) -> int:
        """What the peer may send on all streams: a window beyond what has been read."""
        unread = sum(
            stream.receiver._buffer_start + len(stream.receiver._buffer) - consumed
            for stream_id, consumed in self._consumed.items()
            if (stream := self._streams.get(stream_id)) is not None
        )
        return self._local_max_data.used - unread + self._window

    def _write_reset_stream_frame(self, builder: QuicPacketBuilder, stream: QuicStream) -> None:
        # It would open a stream beyond the peer's limit (RFC 9000 4.6); aioquic sends it.
        if not stream.is_blocked:
            super()._write_reset_stream_frame(builder, stream)

    def _write_stop_sending_frame(self, builder: QuicPacketBuilder, stream: QuicStream) -> None:
        if not stream.is_blocked:
            super()._write_stop_sending_frame(builder, stream)

    def _handle_stream_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        start, known = buf.tell(), len(self._events)
        super()._handle_stream_frame(context, frame_type, buf)
        if len(self._events) == known:  # it is not what comes next on its stream
            end = buf.tell()
            buf.seek(start)
            self._check_gaps(buf.pull_uint_var(), frame_type)
            buf.seek(end)

    def _check_gaps(self, stream_id: int, frame_type: int) -> None:
        """End a connection whose peer leaves gaps everywhere; each takes time to look at.

        A gap of every fourth kilobyte of the window is more than a network makes.
        """
        most = max(_MOST_GAPS, self._configuration.max_stream_data // 4096)
        stream = self._streams.get(stream_id)
        if stream is not None and len(stream.receiver._ranges) > most:
            raise QuicConnectionError(
                QuicErrorCode.INTERNAL_ERROR, frame_type, "there are too many gaps in a stream"
            )

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        if stream.stream_id not in self._consumed:
            super()._write_stream_limits(builder, space, stream)
            return
        stream.max_stream_data_local = self._grant(stream) or stream.max_stream_data_local
        # What has arrived must not make aioquic double the limit.
        highest_offset, stream.receiver.highest_offset = stream.receiver.highest_offset, 0
        try:
            super()._write_stream_limits(builder, space, stream)
        finally:
            stream.receiver.highest_offset = highest_offset

    def _grant(self, stream: QuicStream) -> int | None:
        if stream.receiver.is_finished:
            return None
        window = self._configuration.max_stream_data
        assert stream.stream_id is not None, "only CRYPTO streams have no id"
        limit = self._consumed[stream.stream_id] + window
        return limit if limit - stream.max_stream_data_local >= window // 2 else None
