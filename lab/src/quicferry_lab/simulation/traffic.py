"""Applications whose every byte is checked.

A client carries out *exchanges*, each on a stream of its own: it uploads so many bytes, and the
server answers with as many as it was asked for. What is sent on a stream is a function of the
stream and the direction, so the receiver knows at every byte what must come next: data that is
lost, doubled, reordered or put on another stream does not go unnoticed.
"""

from __future__ import annotations

import enum
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from aioquic.quic import events

from .endpoint import Client, Endpoint
from .errors import InvariantError

_PATTERN_SIZE = 1 << 18
_PATTERN = random.Random("traffic").randbytes(_PATTERN_SIZE) * 2
_REQUEST = struct.Struct("!BIId")


class Answer(enum.Enum):
    """When the server starts to answer."""

    AFTER_UPLOAD = 0
    AT_ONCE = 1


@dataclass(frozen=True)
class Exchange:
    """One request and its response.

    Args:
        upload: Bytes from the client.
        download: Bytes from the server.
        pause: Seconds that the client waits before it, counted from the end of the one before.
        think: Seconds that the server takes before it answers.
        answer: When it starts to do so.
    """

    upload: int
    download: int
    pause: float = 0.0
    think: float = 0.0
    answer: Answer = Answer.AFTER_UPLOAD


class Incoming:
    """Checks one direction of a stream as it arrives.

    Args:
        what: What arrives, for the error.
        offset: Where its body begins in the pattern: see `body`.
        size: Bytes of the body.
    """

    def __init__(self, what: str, offset: int, size: int) -> None:
        self._what = what
        self._offset = offset
        self._size = size
        self._received = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            InvariantError: They are wrong, or more than there should be.
        """
        if data != body(self._offset, len(data), self._received):
            raise InvariantError(f"{self._what}: wrong data at byte {self._received}")
        self._received += len(data)
        if self._received > self._size:
            raise InvariantError(f"{self._what}: {self._received} bytes instead of {self._size}")

    def finish(self) -> None:
        """Take note that the body has ended.

        Raises:
            InvariantError: There are fewer bytes than there should be.
        """
        if self._received != self._size:
            raise InvariantError(f"{self._what}: {self._received} bytes instead of {self._size}")


def body(offset: int, size: int, start: int = 0) -> bytes:
    """Bytes `start` to `start + size` of the body that begins at `offset` of the pattern."""
    position = (offset + start) % _PATTERN_SIZE
    if position + size <= len(_PATTERN):
        return _PATTERN[position : position + size]
    return (_PATTERN * (size // _PATTERN_SIZE + 2))[position : position + size]


def _upload_offset(stream_id: int) -> int:
    return stream_id * 7919


def _download_offset(stream_id: int) -> int:
    return stream_id * 7919 + 104_729


class Requests:
    """The client's application: a number of lanes, each a sequence of exchanges.

    Args:
        client: The client that it runs on.

    Attributes:
        completed: How many exchanges are complete.
        completion_times: When each of them was.
    """

    def __init__(self, client: Client) -> None:
        self.completed = 0
        self.completion_times: list[float] = []
        self._client = client
        self._outstanding = 0
        self._responses: dict[int, tuple[Incoming, Sequence[Exchange]]] = {}
        client.application = self

    @property
    def done(self) -> bool:
        """Whether every exchange that was started so far is complete."""
        return self._outstanding == 0

    def start(self, lanes: Sequence[Sequence[Exchange]]) -> None:
        """Start these lanes now; the caller flushes nothing."""
        for lane in lanes:
            self._outstanding += len(lane)
            self._next(lane)

    def handle_event(self, event: events.QuicEvent) -> None:
        """Check what arrives, and go on with the lane when a response is complete."""
        if not isinstance(event, events.StreamDataReceived):
            return
        incoming, lane = self._responses[event.stream_id]
        incoming.feed(event.data)
        if event.end_stream:
            incoming.finish()
            del self._responses[event.stream_id]
            self.completed += 1
            self.completion_times.append(self._client.network.now)
            self._outstanding -= 1
            self._next(lane)

    def _next(self, lane: Sequence[Exchange]) -> None:
        if lane:
            exchange, rest = lane[0], lane[1:]
            self._client.call_later(exchange.pause, lambda: self._send(exchange, rest))

    def _send(self, exchange: Exchange, rest: Sequence[Exchange]) -> None:
        connection = self._client.connection
        stream_id = connection.get_next_available_stream_id()
        what = f"{self._client.name}, stream {stream_id}, download"
        incoming = Incoming(what, _download_offset(stream_id), exchange.download)
        self._responses[stream_id] = (incoming, rest)
        request = _REQUEST.pack(
            exchange.answer.value, exchange.upload, exchange.download, exchange.think
        )
        data = request + body(_upload_offset(stream_id), exchange.upload)
        connection.send_stream_data(stream_id, data, end_stream=True)


class _Request:
    def __init__(self, stream_id: int) -> None:
        self.stream_id = stream_id
        self.header = b""
        self.incoming: Incoming | None = None
        self.answer = Answer.AFTER_UPLOAD
        self.download = 0
        self.think = 0.0


class Responder:
    """The server's application: does what the requests ask for."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._requests: dict[int, _Request] = {}
        self._finished: set[int] = set()

    def handle_event(self, event: events.QuicEvent) -> None:
        """Check what arrives, and answer when it is time to."""
        if not isinstance(event, events.StreamDataReceived):
            return
        stream_id = event.stream_id
        if stream_id in self._finished:
            raise InvariantError(f"{self._endpoint.name}, stream {stream_id}: data after its end")
        request = self._requests.setdefault(stream_id, _Request(stream_id))
        data = event.data
        if request.incoming is None:
            request.header += data
            if len(request.header) < _REQUEST.size:
                return
            data = request.header[_REQUEST.size :]
            self._begin(request)
        assert request.incoming is not None
        request.incoming.feed(data)
        if event.end_stream:
            request.incoming.finish()
            del self._requests[stream_id]
            self._finished.add(stream_id)
            if request.answer is Answer.AFTER_UPLOAD:
                self._answer(request)

    def _begin(self, request: _Request) -> None:
        answer, upload, request.download, request.think = _REQUEST.unpack(
            request.header[: _REQUEST.size]
        )
        request.answer = Answer(answer)
        what = f"{self._endpoint.name}, stream {request.stream_id}, upload"
        request.incoming = Incoming(what, _upload_offset(request.stream_id), upload)
        if request.answer is Answer.AT_ONCE:
            self._answer(request)

    def _answer(self, request: _Request) -> None:
        def send() -> None:
            if self._endpoint.terminated is None:
                self._endpoint.connection.send_stream_data(
                    request.stream_id,
                    body(_download_offset(request.stream_id), request.download),
                    end_stream=True,
                )

        if request.think:
            self._endpoint.call_later(request.think, send)
        else:
            send()
