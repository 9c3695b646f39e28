"""What an application wants to know and to decide about its streams, beyond what aioquic offers."""

from __future__ import annotations

from typing import Any

from aioquic.quic.connection import QuicConnection, stream_is_unidirectional
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream


class StreamControl(QuicConnection):
    """A connection whose application paces both directions of its streams.

    Args:
        arguments: As in aioquic.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._consumed: dict[int, int] = {}

    def stream_backlog(self, stream_id: int) -> int:
        """Return how many bytes written to a stream have not been sent for the first time."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.sender.is_finished or stream.sender.reset_pending:
            return 0
        sender = stream.sender
        return int(sender._buffer_stop - sender.highest_offset)

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
        return self._grant(stream) is not None

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
                    not stream.is_blocked
                    and not stream.sender.buffer_is_empty
                    and stream.sender.next_offset
                    < min(stream.sender.highest_offset + credit, stream.max_stream_data_remote)
                )
                for stream in self._streams_queue
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
        window = self._configuration.max_stream_data
        assert stream.stream_id is not None, "only CRYPTO streams have no id"
        limit = self._consumed[stream.stream_id] + window
        return limit if limit - stream.max_stream_data_local >= window // 2 else None
