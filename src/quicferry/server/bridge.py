"""From HTTP/3 to ASGI, on hypercorn's bridge.

hypercorn's `H3Protocol` turns requests into ASGI calls and what the application sends into HTTP/3.
`AsgiBridge` is that class with what it lacks for a server under load:

- *Backpressure*: `send` waits while more than its share of `HIGH_WATER` bytes is unsent, and what
  an application has not read of a request is not granted to the client again (flow control).
- *Isolation*: each request has a queue and a task of its own, so that one whose application does
  not read holds up no other. Tasks of an application that send on one response at the same time
  take turns, a whole message each.
- *Ends*: a request that the client cancels, or whose connection is lost, becomes
  ``http.disconnect``, and what is sent afterwards raises `ClientDisconnected`. A response that the
  application does not finish, or that has another length than announced, is reset
  (RFC 9114 4.1.2), for the client must not take it for complete.
- *Form*: header fields that HTTP/3 does not allow are left out or refused here (RFC 9114 4.2),
  since a client would fail because of them. A malformed request costs its stream, not the
  connection (RFC 9114 4.1.2). Several ``cookie`` fields become one (RFC 9114 4.2.1).
- *Bounds*: a client may open no further stream for a request before the application's call for it
  has ended, and the calls of all clients have a limit. A client that mostly cancels what it has
  asked for is closed (RFC 9114 10.5).
- *Hand-over*: new requests can be made to wait (`draining`). When none is running, what HTTP/3
  knows can be carried to another host.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import replace
from functools import partial
from wsgiref.handlers import format_date_time

from aioquic.h3.connection import ErrorCode, stream_is_request_response
from aioquic.h3.events import DataReceived, H3Event, Headers, HeadersReceived
from aioquic.quic.events import (
    QuicEvent,
    StopSendingReceived,
    StreamDataReceived,
    StreamReset,
)
from hypercorn.protocol.events import (
    Body,
    Data,
    EndBody,
    EndData,
    Event,
    InformationalResponse,
    Request,
    Response,
    StreamClosed,
    Trailers,
)
from hypercorn.protocol.h3 import H3Protocol
from hypercorn.typing import (
    ConnectionState,
)

from quicferry.io import ConnectionProtocol
from quicferry.transport import (
    Http3Connection,
    MessageMalformed,
    SnapshotError,
    sendable_fields,
)

from .application import Application
from .cancellations import Cancellations
from .content import allowed_fields
from .draining import Admission, Gate, RunningRequest
from .errors import ClientDisconnected
from .exchange import Exchange

logger = logging.getLogger("quicferry.server")

HIGH_WATER = 256 * 1024
"""Bytes of a response that may wait to be sent before the application has to wait."""

CONNECTION_WATER = 4 * HIGH_WATER
"""The same for all responses of a connection together, which have equal shares."""

SMALLEST_SHARE = 16 * 1024

DRAIN_WATER = 8 << 20
"""The same while requests are brought to their end: what is not sent is carried along."""

DRAIN_CONNECTION_WATER = 32 << 20
"""The same for all responses of a connection: half of what a snapshot can hold."""

_SILENCE = 3.0
"""Seconds without an acknowledgement after which a client is taken to be gone at the end."""

_PTOS = 3
"""Probe timeouts for which a closing connection lingers (RFC 9000 10.2)."""

AT_ONCE = 8
"""Requests of a connection that begin in a turn of the event loop; a packet may bring a hundred."""

PIECE = 64 * 1024
"""A large body message is handed on in pieces of this size."""


class AsgiBridge(H3Protocol):
    """HTTP/3 on one connection.

    Args:
        protocol: The connection.
        application: What answers the requests.
        state: What `export` returned on another host; None for a new connection.

    Attributes:
        gate: Where new requests may have to wait.
        idle: Set while no request is running.

    Raises:
        SnapshotError: If the state cannot be used.
    """

    connection: Http3Connection

    def __init__(
        self, protocol: ConnectionProtocol, application: Application, state: bytes | None = None
    ) -> None:
        # hypercorn's __init__ would begin an HTTP/3 connection of aioquic's own class, and write
        # to the QUIC connection. So this sets what that sets.
        self.app = application.call
        self.client = self.server = None
        self.config = application.config
        self.connection = Http3Connection(protocol.connection, state=state)
        self.context = application.context
        self.send = self._transmit_soon
        self.state = ConnectionState(application.state.copy())
        self.streams = {}
        self.task_group = application.tasks

        self.idle = asyncio.Event()
        self.idle.set()
        self._news = asyncio.Event()
        self._application = application
        self._protocol = protocol
        self._quic = protocol.connection
        self._exchanges: dict[int, Exchange] = {}
        self._waiting: set[Exchange] = set()
        self._cancellations = Cancellations(asyncio.get_running_loop().time)
        self._is_closing = False
        self._to_begin: deque[tuple[Exchange, HeadersReceived]] = deque()
        self._beginning: asyncio.Handle | None = None
        self.gate = Gate(self._quic, self.connection, self._reject)

    # From the client

    def quic_event_received(self, event: QuicEvent) -> None:
        """Take an event of the connection in."""
        for admitted in self.gate.admit(event):
            self._act_upon(admitted)

    def _act_upon(self, event: QuicEvent) -> None:
        was_complete = isinstance(event, StreamReset) and self.connection.has_request(
            event.stream_id
        )
        for http_event in self.connection.handle_event(event):
            self._http_event_received(http_event)
        match event:
            case StreamDataReceived(stream_id=stream_id) if stream_is_request_response(stream_id):
                self._pace(stream_id)
            case StreamReset(stream_id=stream_id) | StopSendingReceived(stream_id=stream_id):
                if isinstance(event, StreamReset):
                    self._quic.stream_unread(stream_id, 0)  # nobody ever reads what is there
                if (exchange := self._exchanges.get(stream_id)) is not None:
                    self._abort(exchange, ErrorCode.H3_REQUEST_CANCELLED)
                    self._note_cancelled()
                elif isinstance(event, StreamReset) and not was_complete:
                    self._note_cancelled()

    def _pace(self, stream_id: int) -> None:
        """Let the client send no more on a stream than a window beyond what has been read."""
        exchange = self._exchanges.get(stream_id)
        if exchange is None and self.connection.has_request(stream_id):
            return  # nobody reads it any more
        unread = 0 if exchange is None else exchange.unread
        self._quic.stream_unread(stream_id, unread)

    def _note_cancelled(self) -> None:
        """Close the connection of a client that hardly does anything but cancel (RFC 9114 10.5)."""
        if self._cancellations.add() and not self._is_closing:
            self._is_closing = True
            logger.info("connection %s cancels most of its requests", self._quic.stable_id)
            self._quic.close(
                error_code=ErrorCode.H3_EXCESSIVE_LOAD,
                reason_phrase="most requests are cancelled",
            )

    def disconnected(self) -> None:
        """Tell all requests that the connection is lost."""
        for exchange in list(self._exchanges.values()):
            exchange.disconnect()
            self._forget(exchange)

    def _http_event_received(self, event: H3Event) -> None:
        if isinstance(event, MessageMalformed):
            logger.info("a request is malformed: %s", event.reason)
            if (exchange := self._exchanges.get(event.stream_id)) is not None:
                self._abort(exchange, ErrorCode.H3_MESSAGE_ERROR)
            self._note_cancelled()
            return
        if not isinstance(event, (HeadersReceived, DataReceived)):
            return
        exchange = self._exchanges.get(event.stream_id)
        if isinstance(event, HeadersReceived):
            if exchange is None:
                self._open(event)
                exchange = self._exchanges.get(event.stream_id)
        elif exchange is not None and event.data:
            exchange.put(event.data)
        if exchange is not None and event.stream_ended:
            exchange.end()

    def _open(self, request: HeadersReceived) -> None:
        fields = dict(request.headers)
        if b":path" not in fields:  # CONNECT, which only proxies serve
            self.connection.send_headers(request.stream_id, [(b":status", b"501")], end_stream=True)
            self._stop(request.stream_id, ErrorCode.H3_NO_ERROR)
            return
        if self._quic.is_stopped(request.stream_id):  # the client has cancelled before it asked
            self._reset(request.stream_id, ErrorCode.H3_REQUEST_CANCELLED)
            self._note_cancelled()
            return
        if not self._application.has_room:
            head = [(b":status", b"503"), (b"retry-after", b"1")]
            self.connection.send_headers(request.stream_id, head, end_stream=True)
            self._stop(request.stream_id, ErrorCode.H3_NO_ERROR)
            return
        exchange = self._exchange(request)
        if fields.get(b"expect", b"").lower() == b"100-continue":
            exchange.ask = partial(self._ask_for_body, exchange.stream_id)
        self._to_begin.append((exchange, request))
        if self._beginning is None:
            self._begin_some()

    def _begin_some(self) -> None:
        """Begin with a few requests, and with more when others have had their turn."""
        loop, self._beginning = asyncio.get_running_loop(), None
        for _ in range(min(AT_ONCE, len(self._to_begin))):
            exchange, request = self._to_begin.popleft()
            exchange.pump = asyncio.create_task(self._pump(exchange, request))
            self._beginning = self._beginning or loop.call_soon(self._begin_some)

    async def _pump(self, exchange: Exchange, request: HeadersReceived) -> None:
        """Hand a request to its application, at the application's pace."""
        stream_id = exchange.stream_id
        try:
            if exchange.is_disconnected:
                return  # it was cancelled at once, and the application has not heard of it
            await self._create_stream(request)
            stream = self.streams[stream_id]
            ended = False
            while not (exchange.is_disconnected or stream.closed):
                data, last = await exchange.news()
                if data:
                    await stream.handle(Body(stream_id, data))
                if last and not ended:
                    ended = True
                    await stream.handle(EndBody(stream_id))
            await stream.handle(StreamClosed(stream_id))
            if stream_id in self._exchanges:  # refused by hypercorn, without the application
                self._close(exchange)
        except ClientDisconnected:
            pass
        except Exception:
            logger.exception("a request fails")
            self._abort(exchange, ErrorCode.H3_INTERNAL_ERROR)
        finally:
            self.streams.pop(stream_id, None)  # hypercorn keeps those that were cancelled
            exchange.pumped()

    async def _create_stream(self, request: HeadersReceived) -> None:
        exchange = self._exchanges.get(request.stream_id)
        if exchange is None:  # a response that the application pushes
            exchange = self._exchange(request)
            exchange.request_ended = True
        self.app = exchange
        client, server = self._quic.get_peer_address(), self._quic.server_address
        self.client = None if client is None else client[:2]
        self.server = None if server is None else server[:2]
        await super()._create_stream(replace(request, headers=_one_cookie(request.headers)))

    def _exchange(self, request: HeadersReceived) -> Exchange:
        fields = dict(request.headers)
        method, target = fields[b":method"].decode(), fields[b":path"].decode()
        running = RunningRequest.of(self._quic.stable_id, request.stream_id, method, target)
        call = partial(self._application.serve, running)
        exchange = Exchange(
            running, call, self._grant, self._application.complain, self._call_ended
        )
        self._exchanges[request.stream_id] = exchange
        self._application.open_calls += 1
        self._quic.hold_stream(request.stream_id)
        self.idle.clear()
        return exchange

    def _call_ended(self, exchange: Exchange) -> None:
        """Let the client ask for something else now."""
        self._application.open_calls -= 1
        self._quic.release_stream(exchange.stream_id)
        self._protocol.transmit_soon()

    def _ask_for_body(self, stream_id: int) -> None:
        """Let a client send its body, now that the application reads it (RFC 9110 10.1.1)."""
        self.connection.send_headers(stream_id, [(b":status", b"100")])
        self._protocol.transmit_soon()

    def _grant(self, exchange: Exchange) -> None:
        """Let the client send as much as the application has read."""
        if exchange.is_disconnected:
            return
        if self._quic.stream_unread(exchange.stream_id, exchange.unread):
            self._protocol.transmit_soon()

    # To the client

    async def stream_send(self, event: Event) -> None:
        """Send what the application has for a stream.

        Raises:
            ClientDisconnected: If there is no one to send it to.
            ValueError: If HTTP/3 does not allow it.
        """
        exchange = self._exchanges.get(event.stream_id)
        if isinstance(event, StreamClosed):
            await super().stream_send(event)
            if exchange is not None:
                self._close(exchange)
            return
        if exchange is None:
            raise ClientDisconnected("the client has gone away")
        async with exchange.sending:
            if exchange.is_disconnected:
                raise ClientDisconnected("the client has gone away")
            await self._send_event(exchange, event)

    async def _send_event(self, exchange: Exchange, event: Event) -> None:
        match event:
            case Response():
                event = self._allowed(event)
                exchange.started(event)
                await super().stream_send(event)
            case InformationalResponse():
                headers = _response(event.status_code, event.headers)
                await super().stream_send(replace(event, headers=headers))
            case Body() | Data():
                exchange.sends(len(event.data))
                await self._send_pieces(exchange, event)
            case Trailers():
                # They are sent with the end of the stream.
                exchange.trailers += sendable_fields("trailers", event.headers)
            case Request() if not self._application.has_room:
                pass  # a push is never owed to anyone
            case Request():  # a push
                promised = [(b":method", b"GET"), (b":path", event.raw_path), *event.headers]
                headers = sendable_fields("promise", promised)[2:]
                await super().stream_send(replace(event, headers=headers))
            case EndBody() | EndData():
                await self._end(exchange, event)
            case _:
                await super().stream_send(event)

    async def _send_pieces(self, exchange: Exchange, message: Body | Data) -> None:
        for start in range(0, len(message.data), PIECE):
            piece = message.data[start : start + PIECE]
            await super().stream_send(replace(message, data=piece))
            try:
                await self._room(exchange)
            except asyncio.CancelledError:
                if start + PIECE < len(message.data):
                    logger.error("a response is reset: the application has cut a message of it off")
                    self._abort(exchange, ErrorCode.H3_INTERNAL_ERROR)
                raise

    def _allowed(self, event: Response) -> Response:
        """Return the head of a response as HTTP/3 and its status want it.

        Raises:
            ValueError: If it cannot be sent.
        """
        status = event.status_code
        if status < 200:
            raise ValueError(f"a response begins with its final status, not {status}")
        allowed, left_out = allowed_fields(status, event.headers)
        for name in left_out:
            self._application.complain(f"a response has status {status} and {name}")
        return replace(event, headers=_response(status, allowed))

    async def _end(self, exchange: Exchange, event: EndBody | EndData) -> None:
        exchange.response_ended = True
        if exchange.is_too_short:
            logger.error("a response is reset: its body is shorter than its content-length")
            self._reset(exchange.stream_id, ErrorCode.H3_INTERNAL_ERROR)
        elif exchange.trailers:
            self.connection.send_headers(exchange.stream_id, exchange.trailers, end_stream=True)
        else:
            await super().stream_send(event)

    async def _room(self, exchange: Exchange) -> None:
        """Wait until enough of a response has been sent."""
        if self._quic.stream_backlog(exchange.stream_id) < self._water:
            return
        exchange.room = asyncio.get_running_loop().create_future()
        self._waiting.add(exchange)
        try:
            await exchange.room
        finally:
            self._waiting.discard(exchange)
        if exchange.is_disconnected:
            raise ClientDisconnected("the client has gone away")

    def transmitted(self) -> None:
        """Let those go on for whose responses there is room again."""
        self._news.set()
        if self._waiting:
            self._let_go_on(self._water // 2)

    @property
    def _water(self) -> int:
        """Bytes of each response that may wait to be sent."""
        if self.gate.admission is Admission.ALL:
            return self._share
        return DRAIN_WATER if self._quic.backlog < DRAIN_CONNECTION_WATER else 0

    @property
    def _share(self) -> int:
        """Bytes of each response that may wait: a client that reads nothing takes no more."""
        share = CONNECTION_WATER // max(1, len(self._exchanges))
        return min(HIGH_WATER, max(SMALLEST_SHARE, share))

    def _let_go_on(self, limit: int) -> None:
        for exchange in self._waiting:
            if self._quic.stream_backlog(exchange.stream_id) < limit:
                assert exchange.room is not None, "it waits for that"
                if not exchange.room.done():
                    exchange.room.set_result(None)

    async def _transmit_soon(self) -> None:
        self._protocol.transmit_soon()

    # The end of a request

    def _close(self, exchange: Exchange) -> None:
        """Forget a request that the application is done with."""
        self._forget(exchange)
        self._cancellations.subtract()
        if not exchange.response_ended:
            self._reset(exchange.stream_id, ErrorCode.H3_INTERNAL_ERROR)
        elif not exchange.request_ended:
            self._stop(exchange.stream_id, ErrorCode.H3_NO_ERROR)
        exchange.disconnect()

    def _abort(self, exchange: Exchange, error: ErrorCode) -> None:
        """Forget a request that the client is done with, or that failed."""
        self._forget(exchange)
        self._reset(exchange.stream_id, error)
        exchange.disconnect()

    def _forget(self, exchange: Exchange) -> None:
        self._exchanges.pop(exchange.stream_id, None)
        exchange.over.set()
        if not self._exchanges:
            self.idle.set()

    def _reject(self, stream_id: int) -> None:
        """Turn a request away of which the application has not heard (RFC 9114 4.1.1)."""
        self._reset(stream_id, ErrorCode.H3_REQUEST_REJECTED)

    def _reset(self, stream_id: int, error: ErrorCode) -> None:
        """Give a stream up in both directions."""
        self._quic.reset_stream(stream_id, error)
        # The HTTP layer learns from this that it has nothing more to send, and frees the stream.
        self.connection.handle_event(StopSendingReceived(error_code=error, stream_id=stream_id))
        if stream_is_request_response(stream_id):
            self._stop(stream_id, error)
        self._protocol.transmit_soon()

    def _stop(self, stream_id: int, error: ErrorCode) -> None:
        """Ask the client not to send the rest of its request."""
        try:
            self._quic.stop_stream(stream_id, error)
        except ValueError:
            return  # it is complete and forgotten
        self._protocol.transmit_soon()

    # A hand-over

    def admit(self, admission: Admission) -> None:
        """Serve only such new requests from now on, and let those that run come to their end."""
        self.gate.admission = admission
        if admission is not Admission.ALL:
            self._let_go_on(self._water)

    def go_away(self) -> None:
        """Refuse what the client has not begun to ask yet, and tell it so (RFC 9114 5.2)."""
        self.gate.end = self._quic.first_unopened_stream
        self.connection.send_goaway(self.gate.end)
        self._protocol.transmit_soon()

    async def wait_delivered(self) -> None:
        """Wait until no request is running, and the client has the end of every response.

        A client that acknowledges nothing any more is given up. What else was said to it may take
        no longer than a closing connection lingers.
        """
        await self.idle.wait()
        await self._until_delivered(_SILENCE, control=False)
        probe_timeout = self._quic.path_estimate.probe_timeout
        await self._until_delivered(_PTOS * probe_timeout, control=True)

    async def _until_delivered(self, patience: float, *, control: bool) -> None:
        """Wait until all is acknowledged, or none of what is in flight for `patience` seconds."""
        while left := self._quic.undelivered(control=control):
            try:
                async with asyncio.timeout(patience):
                    while self._quic.undelivered(control=control) == left:
                        self._news.clear()
                        await self._news.wait()
            except TimeoutError:
                if control or self._quic.path_estimate.bytes_in_flight:
                    return

    async def wait_running(self) -> None:
        """Wait until those requests are done that are running now."""
        await asyncio.gather(*(exchange.over.wait() for exchange in self._exchanges.values()))

    def running_requests(self) -> list[RunningRequest]:
        """Return the requests whose clients wait for the application."""
        return [exchange.request for exchange in self._exchanges.values()]

    def reject_requests(self) -> None:
        """Give all requests up that the application is working on."""
        for request in self.running_requests():
            self._abort(self._exchanges[request.stream_id], request.reset_code)

    def export(self) -> bytes:
        """Return what HTTP/3 knows of the connection; nothing changes.

        Raises:
            SnapshotError: If requests are running, or wait in the gate.
        """
        if self._exchanges:
            raise SnapshotError(
                f"{', '.join(map(str, self.running_requests()))} is running; wait for the end of "
                "requests, or reject them"
            )
        if self.gate.has_waiting:
            raise SnapshotError("requests are withheld; put their events back before")
        return self.connection.export()


def _response(status: int, headers: Headers) -> Headers:
    """Return the header fields of a response as HTTP/3 wants them.

    Raises:
        ValueError: If one of them cannot be sent.
    """
    sendable = sendable_fields("response", [(b":status", b"%d" % status), *headers])[1:]
    if status >= 200 and not any(name == b"date" for name, _ in sendable):
        sendable.append((b"date", format_date_time(time.time()).encode()))  # RFC 9110 6.6.1
    return sendable


def _one_cookie(headers: Headers) -> Headers:
    """Return the header fields of a request with one ``cookie`` for all (RFC 9114 4.2.1).

    HTTP/2 and HTTP/3 cut it, to compress it better; who reads it elsewhere knows only one.
    """
    cookies = [value for name, value in headers if name == b"cookie"]
    if len(cookies) < 2:
        return headers
    place = [name for name, _ in headers].index(b"cookie")
    others = [field for field in headers[place:] if field[0] != b"cookie"]
    return [*headers[:place], (b"cookie", b"; ".join(cookies)), *others]
