"""Two ends that talk HTTP/3 over the simulated network: ours, and aioquic's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, H3Event, Headers, HeadersReceived
from aioquic.quic.events import QuicEvent, StopSendingReceived, StreamReset
from quicferry_lab.simulation import Endpoint
from simulated_pair import Pair, pair

from quicferry.transport import Http3Connection, MessageMalformed

AUTHORITY = (b":authority", b"server.example")
GET = [(b":method", b"GET"), (b":scheme", b"https"), AUTHORITY, (b":path", b"/")]
POST = [(b":method", b"POST"), *GET[1:]]
OK = [(b":status", b"200")]
LENGTH_4 = (b"content-length", b"4")


@dataclass
class Side:
    """HTTP/3 at one end, and what came of each stream."""

    endpoint: Endpoint
    http: H3Connection
    headers: dict[int, Headers] = field(default_factory=dict)
    bodies: dict[int, bytes] = field(default_factory=dict)
    malformed: dict[int, str] = field(default_factory=dict)
    codes: dict[int, set[int]] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)

    def handle_event(self, event: QuicEvent) -> None:
        if isinstance(event, StreamReset | StopSendingReceived):
            self.codes.setdefault(event.stream_id, set()).add(event.error_code)
        for http_event in self.http.handle_event(event):
            self._note(http_event)

    def _note(self, event: H3Event) -> None:
        if isinstance(event, MessageMalformed):
            assert event.stream_id not in self.malformed
            self.malformed[event.stream_id] = event.reason
        elif isinstance(event, HeadersReceived | DataReceived):
            assert event.stream_id not in self.malformed
            if isinstance(event, HeadersReceived):
                self.headers.setdefault(event.stream_id, event.headers)
            else:
                body = self.bodies.get(event.stream_id, b"")
                self.bodies[event.stream_id] = body + event.data
            if event.stream_ended:
                self.ended.add(event.stream_id)


@dataclass
class Both:
    """Two ends that talk HTTP/3: ours, and aioquic's own, which sends whatever it is told."""

    it: Pair
    ours: Side
    theirs: Side

    def settle(self) -> None:
        for side in (self.ours, self.theirs):
            side.endpoint.flush()
        self.it.network.run_for(0.1)

    def send(self, stream_id: int, *parts: Headers | bytes, ends: bool = True) -> None:
        """Send the parts of a message from their end: field sections, and pieces of a body."""
        for number, part in enumerate(parts, 1):
            end = ends and number == len(parts)
            if isinstance(part, bytes):
                self.theirs.http.send_data(stream_id, part, end)
            else:
                self.theirs.http.send_headers(stream_id, part, end)
        self.settle()

    @property
    def lives(self) -> bool:
        connections = [self.ours.endpoint.migrating, self.theirs.endpoint.migrating]
        return all(connection.close_reason is None for connection in connections)


@contextmanager
def both(*, client: bool) -> Iterator[Both]:
    """Provide a connection of which our end is the client's, or the server's."""
    with pair() as it:
        ends = (it.client, it.server) if client else (it.server, it.client)
        ours = Side(ends[0], Http3Connection(ends[0].connection))
        theirs = Side(ends[1], H3Connection(ends[1].connection))
        ends[0].application, ends[1].application = ours, theirs
        this = Both(it, ours, theirs)
        this.settle()
        yield this
