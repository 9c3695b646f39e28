"""Requests of a server that is about to be handed over: some come to their end, others wait.

A running request lives in the application, which cannot be carried to another host. So those that
run are waited for, in two stages. At first new requests are served as ever, but only when they are
complete: then the time that one runs is the application's, not that of a client which sends slowly.
In the end all new ones wait until nothing runs any more. What the client has sent of those that
wait is carried along, or is handed on after all if the server stays.

What is waited for in the end are the application's calls (`Calls`): one may run on although its
client is gone or has its response, and what it does then must not be lost with this process.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from aioquic.h3.connection import ErrorCode, stream_is_request_response
from aioquic.quic.events import QuicEvent, StopSendingReceived, StreamDataReceived, StreamReset

from quicferry.transport import Connection, Http3Connection

MOST_WITHHELD = 8 << 20
"""Bytes that wait on one connection, at most; further requests are turned away."""

LARGEST_COMPLETE = 256 * 1024
"""Bytes of a request that is waited for to be complete; a larger one is served while it comes."""

EVENT_SIZE = 256
"""Bytes that an event takes beside its data, roughly."""

_REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Methods that are idempotent (RFC 9110 9.2.2)."""

_MOST_SHOWN = 100

_StreamEvent = StreamDataReceived | StreamReset | StopSendingReceived


@dataclass(frozen=True)
class RunningRequest:
    """A request that the application is working on.

    Attributes:
        connection_id: The stable id of its connection.
        stream_id: Its stream.
        method: Its method.
        path: Its path, without the query.
    """

    connection_id: str
    stream_id: int
    method: str
    path: str

    def __str__(self) -> str:
        what = _shown(f"{self.method} {self.path}")
        return f"{what} (stream {self.stream_id} of connection {self.connection_id})"

    @classmethod
    def of(cls, connection_id: str, stream_id: int, method: str, target: str) -> Self:
        """Return the request for a target, which is a path and perhaps a query."""
        return cls(connection_id, stream_id, method, target.partition("?")[0])

    @property
    def reset_code(self) -> ErrorCode:
        """How it is given up.

        A client may repeat a request that was rejected as if it had never been sent (RFC 9114
        4.1.1). The application has begun with this one, so that holds only where to do it twice
        has the effect of doing it once (RFC 9110 9.2.2).
        """
        if stream_is_request_response(self.stream_id) and self.method in _REPEATABLE:
            return ErrorCode.H3_REQUEST_REJECTED
        return ErrorCode.H3_REQUEST_CANCELLED


class Calls:
    """The calls of an application that run, also those whose response nobody waits for any more.

    A call goes on when its client has cancelled the request or is gone, and where the application
    does something after its response (a background task).
    """

    def __init__(self) -> None:
        self._running: dict[asyncio.Task[Any], RunningRequest] = {}
        self._over: set[asyncio.Event] = set()

    @property
    def requests(self) -> list[RunningRequest]:
        """What the calls that run were made for."""
        return list(self._running.values())

    @contextmanager
    def one(self, request: RunningRequest) -> Iterator[None]:
        """Note that the task in which this is used is a call, until the context is left."""
        task = asyncio.current_task()
        assert task is not None, "the application is called in a task"
        self._running[task] = request
        try:
            yield
        finally:
            del self._running[task]
            for event in self._over:
                event.set()

    async def wait_running(self) -> None:
        """Wait until those are over that run now."""
        now = set(self._running)
        await self._until(lambda: now.isdisjoint(self._running))

    async def wait_idle(self) -> None:
        """Wait until none runs."""
        await self._until(lambda: not self._running)

    def cancel(self) -> None:
        """Cancel those that run; they may take their time to end."""
        for task in self._running:
            task.cancel()

    async def _until(self, is_so: Callable[[], bool]) -> None:
        over = asyncio.Event()
        self._over.add(over)
        try:
            while not is_so():
                await over.wait()
                over.clear()
        finally:
            self._over.discard(over)


class Admission(enum.Enum):
    """Which new requests are served."""

    ALL = "all"
    COMPLETE = "complete"
    NONE = "none"


class Gate:
    """Lets what comes for requests through to HTTP/3, or makes it wait.

    Those requests may have to wait whose header HTTP/3 has not seen completely. The client can
    send no more of each than one window (`max_stream_data`), and of all together no more than
    `MOST_WITHHELD`: the request that exceeds it is turned away.

    Args:
        quic: The connection.
        http: HTTP/3 on it.
        refuse: Turns the request on a stream away.

    Attributes:
        admission: Which new requests are served from now on; `take` what has waited until then.
        end: The first stream whose request is refused, and so are all after it; None for no end.
    """

    def __init__(
        self, quic: Connection, http: Http3Connection, refuse: Callable[[int], None]
    ) -> None:
        self._quic = quic
        self._http = http
        self._refuse = refuse
        self.admission = Admission.ALL
        self.end: int | None = None
        self._waiting: dict[int, list[_StreamEvent]] = {}
        self._size = 0

    @property
    def has_waiting(self) -> bool:
        """Whether something waits."""
        return bool(self._waiting)

    def admit(self, event: QuicEvent) -> list[QuicEvent]:
        """Return the events that are to be acted upon now; the others wait here."""
        if not isinstance(event, _StreamEvent):
            return [event]
        stream_id = event.stream_id
        if self._is_past_the_end(stream_id):
            if isinstance(event, StreamDataReceived):
                self._ignore(stream_id, [event])
            return []
        if stream_id not in self._waiting and not self._has_to_wait(event):
            return [event]
        self._withhold(event)
        if self.admission is Admission.COMPLETE and self._is_served(stream_id, event):
            self._quic.stream_unpaced(stream_id)
            return [*self._forget(stream_id)]
        return []

    def take(self) -> list[QuicEvent]:
        """Return what waits, each request in order, and forget it."""
        taken: list[QuicEvent] = []
        for stream_id in list(self._waiting):
            taken += self._forget(stream_id)
            self._quic.stream_unpaced(stream_id)
        return taken

    def _has_to_wait(self, event: _StreamEvent) -> bool:
        # A reset of what HTTP/3 has not seen, or not completely, is its own affair.
        return (
            self.admission is not Admission.ALL
            and isinstance(event, StreamDataReceived)
            and stream_is_request_response(event.stream_id)
            and not self._http.has_request(event.stream_id)
        )

    def _is_served(self, stream_id: int, event: _StreamEvent) -> bool:
        if stream_id not in self._waiting:
            return False  # it was turned away
        if not isinstance(event, StreamDataReceived) or event.end_stream:
            return True
        return sum(map(_size, self._waiting[stream_id])) > LARGEST_COMPLETE

    def _withhold(self, event: _StreamEvent) -> None:
        self._waiting.setdefault(event.stream_id, []).append(event)
        self._size += _size(event)
        if self._size > MOST_WITHHELD:
            self._turn_away(event.stream_id)
        else:
            self._quic.stream_consumed(event.stream_id, 0)  # nobody has read any of it

    def _is_past_the_end(self, stream_id: int) -> bool:
        return (
            self.end is not None
            and stream_id >= self.end
            and stream_is_request_response(stream_id)
            and not self._http.has_request(stream_id)
        )

    def _turn_away(self, stream_id: int) -> None:
        self._ignore(stream_id, self._forget(stream_id))

    def _ignore(self, stream_id: int, events: Sequence[_StreamEvent]) -> None:
        self._http.ignore_request(stream_id)
        for event in events:
            self._http.handle_event(event)  # it has to know whether the stream has ended
        self._refuse(stream_id)

    def _forget(self, stream_id: int) -> list[_StreamEvent]:
        events = self._waiting.pop(stream_id)
        self._size -= sum(map(_size, events))
        return events


def _size(event: _StreamEvent) -> int:
    return EVENT_SIZE + (len(event.data) if isinstance(event, StreamDataReceived) else 0)


def _shown(text: str) -> str:
    """Return what a client has sent as it may stand in a message."""
    printable = "".join(char if char.isprintable() else "?" for char in text[:_MOST_SHOWN])
    return printable + ("…" if len(text) > _MOST_SHOWN else "")
