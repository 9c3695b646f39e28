"""An HTTP/3 client on one connection, which goes on while the server moves.

    async with quicferry.connect(host, port, create_protocol=HttpClient) as client:
        response = await client.request("GET", "/")
        print(response.status, response.body)

Any number of requests may be under way at once. While one is, the connection is kept from its idle
timeout; `kept_open` does so at other times. Time limits are set with `asyncio.timeout`. A body
is complete or there is an error: what a response lacks of its announced length is never passed
over in silence.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress

from aioquic.asyncio.protocol import QuicStreamHandler
from aioquic.h3.connection import H3_ALPN, ErrorCode, stream_is_request_response
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.events import QuicEvent, StopSendingReceived, StreamDataReceived, StreamReset

from quicferry.io import ConnectionLost, ConnectionProtocol
from quicferry.transport import Connection, Http3Connection, MessageMalformed

from .errors import GoingAway, RequestFailed, reset_by_server
from .exchange import Exchange, Response, ResponseHead, StreamedResponse
from .head import HeaderFields, request_head
from .names import authority

Body = bytes | AsyncIterable[bytes]

HIGH_WATER = 256 * 1024
"""Bytes of a request body that may wait to be sent before its source has to wait."""

PIECE = 64 * 1024


class HttpClient(ConnectionProtocol):
    """Sends requests on one connection; made by `quicferry.connect`."""

    no_error = ErrorCode.H3_NO_ERROR

    def __init__(self, quic: Connection, stream_handler: QuicStreamHandler | None = None) -> None:
        super().__init__(quic, stream_handler)
        if quic.configuration.alpn_protocols is None:
            quic.configuration.alpn_protocols = H3_ALPN
        self._http = Http3Connection(quic)
        self._exchanges: dict[int, Exchange] = {}

    @property
    def is_going_away(self) -> bool:
        """Whether the server takes no more requests on this connection; those it has go on."""
        return self._http.first_refused is not None

    async def request(
        self, method: str, path: str, *, headers: HeaderFields = (), body: Body = b""
    ) -> Response:
        """Send a request and return the complete response.

        Args:
            method: The method, for example ``GET``.
            path: The path, with the query.
            headers: Header fields to send; ``host`` replaces the server's name, and what is about
                one connection of HTTP/1.1 is left out (RFC 9114 4.2).
            body: The body, or an asynchronous iterable of its pieces.

        Raises:
            ValueError: If HTTP/3 does not allow such a request.
            RequestFailed: If there is no complete response; the connection goes on.
            RequestRejected: Likewise, and the request may be sent again.
            ConnectionLost: If the connection ends before the response is complete.
        """
        async with self.stream(method, path, headers=headers, body=body) as response:
            content = await response.read()
        return Response(response.status, response.headers, content)

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, *, headers: HeaderFields = (), body: Body = b""
    ) -> AsyncIterator[StreamedResponse]:
        """Send a request, and provide the response once it begins.

        Who leaves the context early cancels the request. The server can send no more than one
        window of the body (`max_stream_data`) ahead of what is read.

        Args:
            method: The method, for example ``GET``.
            path: The path, with the query.
            headers: Header fields to send; ``host`` replaces the server's name, and what is about
                one connection of HTTP/1.1 is left out (RFC 9114 4.2).
            body: The body, or an asynchronous iterable of its pieces.

        Raises:
            ValueError: As `request`.
            RequestFailed: As `request`.
            ConnectionLost: As `request`.
        """
        exchange = self._send(method, path, headers, body)
        try:
            with self.kept_open():  # an answer may take long (RFC 9114 5.1)
                yield StreamedResponse(exchange, await exchange.wait_begin())
        finally:
            self._finish(exchange)

    # From the connection

    def quic_event_received(self, event: QuicEvent) -> None:
        """Hand on an event to the request that it belongs to."""
        for http_event in self._http.handle_event(event):
            exchange = self._exchanges.get(getattr(http_event, "stream_id", -1))
            if exchange is not None and isinstance(http_event, MessageMalformed):
                exchange.is_given_up = True
                problem = f"the response is malformed: {http_event.reason}"
                exchange.fail(RequestFailed(problem, ErrorCode.H3_MESSAGE_ERROR))
            if exchange is None or not isinstance(http_event, (HeadersReceived, DataReceived)):
                continue
            if isinstance(http_event, DataReceived):
                if http_event.data:
                    exchange.put(http_event.data)
            elif exchange.head is None and (head := _head(http_event)).status >= 200:
                exchange.begin(head)
            if http_event.stream_ended:
                exchange.end()
        if self.is_going_away:
            for stream_id, exchange in self._exchanges.items():
                if self._is_refused(stream_id):
                    exchange.fail(GoingAway())
        match event:
            case StreamDataReceived(stream_id=stream_id):
                if (exchange := self._exchanges.get(stream_id)) is not None:
                    exchange.received()
                elif stream_is_request_response(stream_id):
                    self.connection.stream_consumed(stream_id, 0)  # nobody reads it any more
            case StreamReset(stream_id=stream_id, error_code=error_code):
                if (exchange := self._exchanges.get(stream_id)) is not None:
                    exchange.fail(reset_by_server(error_code))
            case StopSendingReceived(stream_id=stream_id):
                if (exchange := self._exchanges.get(stream_id)) is not None:
                    exchange.request_ended = True
                    exchange.stop_upload()

    def connection_lost_by(self, lost: ConnectionLost) -> None:
        """Tell all requests that the connection is lost."""
        for exchange in self._exchanges.values():
            exchange.fail(ConnectionLost(lost.error_code, lost.reason))

    def transmit(self) -> None:
        """Send, and let go on what waited for that."""
        super().transmit()
        for exchange in self._exchanges.values():
            room = exchange.room
            if room is not None and not room.done() and self._has_room(exchange):
                room.set_result(None)

    # A request

    def _send(self, method: str, path: str, headers: HeaderFields, body: Body) -> Exchange:
        if self.closed_by is not None:
            raise ConnectionLost(self.closed_by.error_code, self.closed_by.reason)
        if self.is_going_away:
            raise GoingAway
        stream_id = self._quic.get_next_available_stream_id()
        fields = self._fields(method, path, headers, body)
        if method == "HEAD":
            self._http.expect_no_body(stream_id)
        exchange = Exchange(stream_id, lambda size: self._unread(stream_id, size))
        exchange.request_ended = body == b""
        self._exchanges[stream_id] = exchange
        self._http.send_headers(stream_id, fields, end_stream=exchange.request_ended)
        if not exchange.request_ended:
            lengths = [value for name, value in fields if name == b"content-length"]
            announced = int(lengths[0]) if lengths else None
            exchange.uploader = asyncio.create_task(self._upload(exchange, body, announced))
        self.transmit_soon()
        return exchange

    def _fields(
        self, method: str, path: str, headers: HeaderFields, body: Body
    ) -> list[tuple[bytes, bytes]]:
        fields, _ = request_head(method, path, authority(self.remote), headers)
        is_usual = bool(body) or method in ("POST", "PUT", "PATCH")  # RFC 9110 8.6
        if isinstance(body, bytes) and is_usual and b"content-length" not in dict(fields):
            fields.append((b"content-length", b"%d" % len(body)))
        return fields

    async def _upload(self, exchange: Exchange, body: Body, announced: int | None) -> None:
        sent = 0
        try:
            async with aclosing(_pieces(body)) as pieces:
                async for piece in pieces:
                    sent += len(piece)
                    if announced is not None and sent > announced:
                        break
                    self._http.send_data(exchange.stream_id, piece, end_stream=False)
                    self.transmit_soon()
                    await self._wait_for_room(exchange)
        except Exception as exc:
            failure = RequestFailed(f"the source of the request's body failed: {exc!r}")
            failure.__cause__ = exc
            self._give_up(exchange, failure)
            return
        if announced is not None and sent != announced:
            problem = f"the request's body is not as long as its content-length of {announced}"
            self._give_up(exchange, RequestFailed(problem))
            return
        exchange.request_ended = True
        self._http.send_data(exchange.stream_id, b"", end_stream=True)
        self.transmit_soon()

    async def _wait_for_room(self, exchange: Exchange) -> None:
        if not self._has_room(exchange):
            exchange.room = asyncio.get_running_loop().create_future()
            await exchange.room

    def _is_refused(self, stream_id: int) -> bool:
        first = self._http.first_refused
        return first is not None and stream_id >= first

    def _has_room(self, exchange: Exchange) -> bool:
        return self.connection.stream_backlog(exchange.stream_id) < HIGH_WATER

    def _unread(self, stream_id: int, size: int) -> None:
        if self.connection.stream_unread(stream_id, size + self._http.blocked(stream_id)):
            self.transmit_soon()

    # The end of a request

    def _give_up(self, exchange: Exchange, error: RequestFailed) -> None:
        exchange.uploader = None
        exchange.fail(error)

    def _finish(self, exchange: Exchange) -> None:
        """Forget a request, and cancel it as far as it is still under way."""
        del self._exchanges[exchange.stream_id]
        self._http.forget_response(exchange.stream_id)
        exchange.stop_upload()
        if self.closed_by is not None or exchange.is_given_up:
            return
        cancelled = ErrorCode.H3_REQUEST_CANCELLED
        if not exchange.request_ended:
            self._quic.reset_stream(exchange.stream_id, cancelled)
            # The HTTP layer learns from this that it has nothing more to send on the stream.
            self._http.handle_event(
                StopSendingReceived(error_code=cancelled, stream_id=exchange.stream_id)
            )
        if not exchange.response_ended and not isinstance(exchange.error, ConnectionLost):
            with suppress(ValueError):  # the server may have ended it already
                self._quic.stop_stream(exchange.stream_id, cancelled)
        self.transmit_soon()


def _head(event: HeadersReceived) -> ResponseHead:
    fields = dict(event.headers)
    return ResponseHead(
        status=int(fields[b":status"]),
        headers=tuple(
            (name.decode(), value.decode("latin-1"))
            for name, value in event.headers
            if not name.startswith(b":")
        ),
    )


async def _pieces(body: Body) -> AsyncGenerator[bytes, None]:
    """Yield a body in pieces of bounded size; a generator that is not exhausted is closed."""
    if isinstance(body, bytes):
        for start in range(0, len(body), PIECE):
            yield body[start : start + PIECE]
        return
    try:
        async for piece in body:
            for start in range(0, len(piece), PIECE):
                yield piece[start : start + PIECE]
    finally:
        if isinstance(body, AsyncGenerator):
            await body.aclose()
