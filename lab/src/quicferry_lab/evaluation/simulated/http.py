"""HTTP/3 on simulated endpoints: a client that measures its requests, and a server.

Every body is checked on arrival, on both sides: it is a function of its request's seed, which the
client tells the server in a header field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from aioquic.h3.connection import H3_ALPN
from aioquic.h3.events import DataReceived, H3Event, Headers, HeadersReceived
from aioquic.quic.events import (
    ConnectionTerminated,
    ProtocolNegotiated,
    QuicEvent,
    StreamDataReceived,
    StreamReset,
)

from quicferry.transport import Configuration, Http3Connection
from quicferry_lab.evaluation.result import At, Request
from quicferry_lab.evaluation.workload import Wanted
from quicferry_lab.simulation import (
    SERVER_NAME,
    Client,
    Endpoint,
    Incoming,
    SimulatedAddress,
    SimulationError,
    body,
)

Pace = Callable[[int], float | None]
"""From the number of a request that was answered to the pause before the next; None: no next."""

_SEED = b"body-seed"
_SIZE = b"body-size"


def speak_http3(configuration: Configuration) -> Configuration:
    """Return a configuration whose connections negotiate HTTP/3."""
    configuration.alpn_protocols = H3_ALPN
    return configuration


@dataclass
class _Exchange:
    """A request that is under way."""

    number: int
    wanted: Wanted
    started: float
    incoming: Incoming


class HttpClient:
    """A client that sends requests one after the other.

    Args:
        endpoint: Its end of the connection.
        number: Which client it is, from 1.
        requests: What it sends.
        locate: Tells at which host an address is.

    Attributes:
        endpoint: Its end of the connection.
        number: Which client it is, from 1.
        pace: When the next request follows.
        completed: How many requests have been answered.
        answered_at: When the last one was.
        rows: What became of the requests that are over; times are the simulation's.
    """

    def __init__(
        self,
        endpoint: Client,
        number: int,
        requests: Iterator[Wanted],
        locate: Callable[[SimulatedAddress], At],
    ) -> None:
        self.endpoint = endpoint
        self.pace: Pace = lambda number: None
        self.completed = 0
        self.answered_at = 0.0
        self.rows: list[Request] = []
        self.number = number
        self._requests = requests
        self._locate = locate
        self._http: Http3Connection | None = None
        self._exchanges: dict[int, _Exchange] = {}
        self._sent = 0
        self._has_stopped = False
        endpoint.application = self

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return not self._exchanges

    @property
    def is_lost(self) -> bool:
        """Whether its connection has ended."""
        return self.endpoint.terminated is not None

    def begin(self, delay: float, pace: Pace) -> None:
        """Send the next request in `delay` seconds, and others as `pace` says."""
        self.pace = pace
        self.endpoint.call_later(delay, self._send)

    def stop(self) -> None:
        """Send no further request."""
        self._has_stopped = True

    def outstanding(self, why: str) -> list[Request]:
        """Return what there is to say of requests that are under way."""
        return [self._row(each, error=why) for each in self._exchanges.values()]

    def handle_event(self, event: QuicEvent) -> None:
        """Take an event of the connection in."""
        if isinstance(event, ProtocolNegotiated):
            self._http = Http3Connection(self.endpoint.connection)
        elif isinstance(event, ConnectionTerminated):
            self.rows += self.outstanding(f"connection lost: {describe(event)}")
            self._exchanges.clear()
        elif isinstance(event, StreamReset):
            self._failed(event.stream_id, "the server has given it up")
        elif self._http is not None:
            for http_event in self._http.handle_event(event):
                self._handle_http(http_event)

    def _send(self) -> None:
        if self._has_stopped or self.is_lost:
            return
        if self._http is None:
            raise SimulationError(f"client {self.number} is not connected")
        wanted = next(self._requests)
        self._sent += 1
        quic = self.endpoint.connection
        stream_id = quic.get_next_available_stream_id()
        what = f"response to request {self._sent} of client {self.number}"
        incoming = Incoming(what, wanted.body_seed, wanted.download)
        now = self.endpoint.network.now
        self._exchanges[stream_id] = _Exchange(self._sent, wanted, now, incoming)
        headers = [
            (b":method", wanted.method.encode()),
            (b":scheme", b"https"),
            (b":authority", SERVER_NAME.encode()),
            (b":path", wanted.path.encode()),
            (_SEED, b"%d" % wanted.body_seed),
            (_SIZE, b"%d" % (wanted.upload or wanted.download)),
        ]
        if wanted.upload:
            self._http.send_headers(stream_id, headers)
            data = body(wanted.body_seed, wanted.upload)
            self._http.send_data(stream_id, data, end_stream=True)
        else:
            self._http.send_headers(stream_id, headers, end_stream=True)

    def _handle_http(self, event: H3Event) -> None:
        if not isinstance(event, HeadersReceived | DataReceived):
            return
        exchange = self._exchanges.get(event.stream_id)
        if exchange is None:
            return
        if isinstance(event, DataReceived):
            exchange.incoming.feed(event.data)
        elif (status := dict(event.headers)[b":status"]) != b"200":
            self._failed(event.stream_id, f"answered with {status.decode()}")
            return
        if event.stream_ended:
            exchange.incoming.finish()
            del self._exchanges[event.stream_id]
            self._answered(exchange)

    def _answered(self, exchange: _Exchange) -> None:
        now = self.endpoint.network.now
        self.rows.append(self._row(exchange, service_time=now - exchange.started))
        self.completed += 1
        self.answered_at = now
        if (pause := self.pace(exchange.number)) is not None:
            self.endpoint.call_later(pause, self._send)

    def _failed(self, stream_id: int, error: str) -> None:
        if (exchange := self._exchanges.pop(stream_id, None)) is not None:
            self.rows.append(self._row(exchange, error=error))
            if (pause := self.pace(exchange.number)) is not None:
                self.endpoint.call_later(pause, self._send)

    def _row(
        self, exchange: _Exchange, *, service_time: float | None = None, error: str = ""
    ) -> Request:
        heard = self.endpoint.heard_last
        return Request(
            client=self.number,
            number=exchange.number,
            started=exchange.started,
            service_time=service_time,
            method=exchange.wanted.method,
            upload=exchange.wanted.upload,
            download=exchange.wanted.download,
            server=None if service_time is None or heard is None else self._locate(heard),
            error=error,
        )


@dataclass
class _Incoming:
    """A request that arrives."""

    path: bytes
    seed: int
    size: int
    upload: Incoming
    received: list[bytes] = field(default_factory=list)


class HttpServer:
    """The server's side of one connection: it echoes, sends what is asked for, and takes uploads.

    Args:
        endpoint: The server's end of the connection.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._http: Http3Connection | None = None
        self._requests: dict[int, _Incoming] = {}

    def handle_event(self, event: QuicEvent) -> None:
        """Take an event of the connection in."""
        if isinstance(event, ProtocolNegotiated):
            self._http = Http3Connection(self._endpoint.connection)
        elif self._http is not None and isinstance(event, StreamDataReceived | StreamReset):
            for http_event in self._http.handle_event(event):
                self._handle_http(http_event)

    def _handle_http(self, event: H3Event) -> None:
        if isinstance(event, HeadersReceived):
            self._requests[event.stream_id] = self._request(event.headers)
        elif isinstance(event, DataReceived):
            request = self._requests[event.stream_id]
            request.upload.feed(event.data)
            request.received.append(event.data)
        else:
            return
        if event.stream_ended:
            self._answer(event.stream_id, self._requests.pop(event.stream_id))

    def _request(self, headers: Headers) -> _Incoming:
        fields = dict(headers)
        seed, size = int(fields[_SEED]), int(fields[_SIZE])
        what = f"upload to {self._endpoint.name}"
        upload = Incoming(what, seed, size if fields[b":method"] == b"POST" else 0)
        return _Incoming(fields[b":path"], seed, size, upload)

    def _answer(self, stream_id: int, request: _Incoming) -> None:
        request.upload.finish()
        if request.path == b"/upload":
            data = b""
        elif request.path == b"/echo":
            data = b"".join(request.received)
        else:
            data = body(request.seed, request.size)
        assert self._http is not None
        headers = [(b":status", b"200"), (b"content-length", b"%d" % len(data))]
        self._http.send_headers(stream_id, headers, end_stream=not data)
        if data:
            self._http.send_data(stream_id, data, end_stream=True)


def describe(end: ConnectionTerminated) -> str:
    """Return in words how a connection ended."""
    return end.reason_phrase or f"error {end.error_code:#x}"
