"""One request of an HTTP/3 client, and the response to it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from quicferry.protocol import QuicferryError

from .errors import RequestFailed

Fields = tuple[tuple[str, str], ...]
"""Header fields in their order, the names in lower case."""


@dataclass(frozen=True)
class ResponseHead:
    """The beginning of a response.

    Attributes:
        status: The status code.
        headers: The header fields.
    """

    status: int
    headers: Fields

    def header(self, name: str, default: str | None = None) -> str | None:
        """Return the value of the first header field of that name, or `default`."""
        return next((value for key, value in self.headers if key == name.lower()), default)


@dataclass(frozen=True)
class Response(ResponseHead):
    """A complete response.

    Attributes:
        body: The body.
    """

    body: bytes


class Exchange:
    """A request that is under way.

    Args:
        stream_id: Its stream.
        unread: Called with the number of bytes of the body that have not been read.

    Attributes:
        is_given_up: Whether its stream was reset in both directions already.
    """

    def __init__(self, stream_id: int, unread: Callable[[int], None]) -> None:
        self.stream_id = stream_id
        self.request_ended = False
        self.response_ended = False
        self.is_given_up = False
        self.error: QuicferryError | None = None
        self.head: ResponseHead | None = None
        self.uploader: asyncio.Task[None] | None = None
        self.room: asyncio.Future[None] | None = None
        self._tell_unread = unread
        self._chunks: deque[bytes] = deque()
        self._unread = 0
        self._news = asyncio.Event()

    # From the connection

    def received(self) -> None:
        """Note that the stream has grown."""
        self._tell_unread(self._unread)

    def begin(self, head: ResponseHead) -> None:
        """Take in the beginning of the response."""
        self.head = head
        self._news.set()

    def put(self, data: bytes) -> None:
        """Take in a part of the body."""
        self._chunks.append(data)
        self._unread += len(data)
        self._news.set()

    def end(self) -> None:
        """Note that the response is complete."""
        if self.head is None:
            self.fail(RequestFailed("the server ended the stream without a response"))
        self.response_ended = True
        self._news.set()

    def fail(self, error: QuicferryError) -> None:
        """Note that the response will never be complete."""
        if self.error is None and not self.response_ended:
            self.error = error
        self.stop_upload()
        self._news.set()

    def stop_upload(self) -> None:
        """Send no more of the body: nobody wants it."""
        if self.uploader is not None:
            self.uploader.cancel()

    # For the application

    async def wait_begin(self) -> ResponseHead:
        """Wait for the beginning of the response."""
        while self.head is None:
            await self._wait()
        return self.head

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes in."""
        while True:
            while self._chunks:
                chunk = self._chunks.popleft()
                self._unread -= len(chunk)
                self._tell_unread(self._unread)
                yield chunk
            if self.response_ended:
                return
            await self._wait()

    async def _wait(self) -> None:
        if self.error is not None:
            raise self.error
        await self._news.wait()
        self._news.clear()


class StreamedResponse:
    """A response whose body is read piece by piece: iterate over it, or `read` all of it.

    Args:
        exchange: The request that it answers.
        head: Its beginning.

    Attributes:
        head: Its beginning.
    """

    def __init__(self, exchange: Exchange, head: ResponseHead) -> None:
        self.head = head
        self._exchange = exchange

    @property
    def status(self) -> int:
        """The status code."""
        return self.head.status

    @property
    def headers(self) -> Fields:
        """The header fields."""
        return self.head.headers

    def header(self, name: str, default: str | None = None) -> str | None:
        """Return the value of the first header field of that name, or `default`."""
        return self.head.header(name, default)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._exchange.chunks()

    async def read(self) -> bytes:
        """Return the rest of the body.

        Raises:
            RequestFailed: If the server does not complete it.
            ConnectionLost: If the connection ends before it is complete.
        """
        return b"".join([chunk async for chunk in self])
