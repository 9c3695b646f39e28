"""One HTTP/3 request to an ASGI application, and its response."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aioquic.h3.events import Headers
from hypercorn.protocol.events import Response
from hypercorn.typing import (
    AppWrapper,
    ASGIReceiveCallable,
    ASGIReceiveEvent,
    ASGISendCallable,
    ASGISendEvent,
    Scope,
)

from .content import may_have_content
from .draining import RunningRequest
from .errors import ClientDisconnected

logger = logging.getLogger("quicferry.server")


class Exchange:
    """One request and its response; to hypercorn, the application that is called for it.

    Args:
        request: The request.
        application: The application.
        granted: Called when the application has read a part of the body.
        complain: Called with what is wrong about a response that is sent all the same.
        ended: Called once, when the call of the application has ended or will never begin.

    Attributes:
        request: The request.
        stream_id: Its stream.
        method: Its method.
        is_disconnected: Whether the client is gone, or wants no response.
        request_ended: Whether the request is complete.
        response_ended: Whether the response is.
        sending: Held by the task of the application whose turn to send it is.
        ask: Asks the client for the body, if it holds that back until then (RFC 9110 10.1.1).
        room: Done when there is room again for more of the response; None while nobody waits.
        pump: Hands the request to the application.
        trailers: Header fields to be sent at the end of the response.
    """

    def __init__(
        self,
        request: RunningRequest,
        application: AppWrapper,
        granted: Callable[[Exchange], None],
        complain: Callable[[str], None],
        ended: Callable[[Exchange], None],
    ) -> None:
        self.request = request
        self.stream_id = request.stream_id
        self.method = request.method
        self.is_disconnected = False
        self.over = asyncio.Event()
        self.sending = asyncio.Lock()
        self.ask: Callable[[], None] | None = None
        self.request_ended = False
        self.response_ended = False
        self.room: asyncio.Future[None] | None = None
        self.pump: asyncio.Task[None] | None = None
        self.trailers: Headers = []
        self._application = application
        self._granted = granted
        self._complain = complain
        self._ended: Callable[[Exchange], None] | None = ended
        self._is_called = False
        self._chunks: list[bytes] = []
        self._news = asyncio.Event()
        self._unread = 0
        self._status = 0
        self._may_have_content = True
        self._announced: int | None = None
        self._sent = 0

    # The request

    @property
    def unread(self) -> int:
        """How much of the body the application has not read."""
        return self._unread

    def put(self, data: bytes) -> None:
        """Take a part of the body in."""
        self.ask = None
        self._chunks.append(data)
        self._unread += len(data)
        self._news.set()

    def end(self) -> None:
        """Note that the body is complete."""
        self.ask = None
        self.request_ended = True
        self._news.set()

    def disconnect(self) -> None:
        """Note that the client is gone, or wants no response."""
        self.ask = None
        self._chunks.clear()
        self.is_disconnected = True
        self._news.set()
        if self.room is not None and not self.room.done():
            self.room.set_result(None)

    async def news(self) -> tuple[bytes, bool]:
        """Wait for more, and return the data and whether nothing will follow."""
        await self._news.wait()
        self._news.clear()
        data = b"".join(self._chunks)
        self._chunks.clear()
        return data, self.request_ended

    # The response

    def started(self, response: Response) -> None:
        """Note whether there may be a body, and how long it is announced to be."""
        self.ask = None
        self._status = response.status_code
        self._may_have_content = may_have_content(self.method, self._status)
        if self._may_have_content:
            lengths = [value for name, value in response.headers if name == b"content-length"]
            self._announced = int(lengths[0]) if lengths else None

    def sends(self, size: int) -> None:
        """Note that the body grows.

        Raises:
            ValueError: If it becomes longer than announced.
        """
        self._sent += size
        if self._announced is not None and self._sent > self._announced:
            raise ValueError(f"the body is longer than its content-length of {self._announced}")

    @property
    def is_too_short(self) -> bool:
        """Whether the body is shorter than announced."""
        return self._announced is not None and self._sent < self._announced

    # The application

    async def __call__(
        self,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        sync_spawn: Callable[..., Any],
        call_soon: Callable[..., Any],
    ) -> None:
        """Run the application for this request, unless its client is gone before it begins."""
        self._is_called = True
        try:
            if not self.is_disconnected:
                await self._call(scope, receive, send, sync_spawn, call_soon)
        finally:
            self._tell_ended()

    def pumped(self) -> None:
        """Note that nothing more is handed to the application; it may not have been called."""
        if not self._is_called:
            self._tell_ended()

    def _tell_ended(self) -> None:
        if self._ended is not None:
            self._ended(self)
            self._ended = None

    async def _call(
        self,
        scope: Scope,
        receive: ASGIReceiveCallable,
        send: ASGISendCallable,
        sync_spawn: Callable[..., Any],
        call_soon: Callable[..., Any],
    ) -> None:
        receiving = asyncio.Lock()
        last: ASGIReceiveEvent | None = None

        async def paced_receive() -> ASGIReceiveEvent:
            nonlocal last
            if self.ask is not None:
                self.ask()
                self.ask = None
            async with receiving:
                if last is not None:
                    return last  # hypercorn says it once, and lets who asks again wait for good
                message = await receive()
                if message["type"] == "http.request":
                    self._unread -= len(message["body"])
                    self._granted(self)
                elif message["type"] in ("http.disconnect", "websocket.disconnect"):
                    last = message
                return message

        async def allowed_send(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.body" and not self._may_have_content:
                if message.get("body") and self.method != "HEAD":
                    self._complain(f"a response has status {self._status} and a body")
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._application(scope, paced_receive, allowed_send, sync_spawn, call_soon)
        except ClientDisconnected as exc:
            logger.debug("%s", exc)
        finally:
            if self.pump is not None:
                self.pump.cancel()
