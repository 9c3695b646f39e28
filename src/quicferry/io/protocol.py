"""What drives one connection from the event loop, on a server or a client.

`ConnectionProtocol` is aioquic's `QuicConnectionProtocol` with these differences:

- datagrams come in batches: `receive` each, then `settle` once, which processes events and sends;
- events of server migration are handed on: to `migration_event_received`, to callbacks, and to
  everyone who iterates over `migration_events`;
- the end of the connection is known as soon as it is decided, not when the closing period of three
  PTOs has passed (RFC 9000 10.2): `closed_by`, `on_lost`, `connection_lost_by` and `wait_lost`;
- an error in the handling of an event ends this connection, and nothing else;
- what a closing endpoint receives it answers with its CONNECTION_CLOSE, which may have been lost
  (RFC 9000 10.2.1);
- a connection can be handed over: `resume` begins in the middle of its life, what arrives while it
  is sealed is held for whoever goes on with it, and `depart` is the end of it here.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ClassVar, Generic, Protocol, TypeVar

from aioquic.asyncio.protocol import QuicConnectionProtocol, QuicStreamHandler
from aioquic.quic import events
from aioquic.quic.packet import QuicErrorCode, QuicFrameType

from quicferry.protocol import Address, MigrationEvent, MigrationProtocol
from quicferry.transport import (
    Connection,
    NetworkAddress,
    SnapshotError,
    address_from_network,
)

from .errors import ConnectFailed, ConnectionLost
from .udp import Datagram

logger = logging.getLogger("quicferry.io")

T = TypeVar("T")

MOST_HELD = 256
"""Datagrams that are held for a sealed connection; a network would not queue more either."""

MOST_AHEAD = 2
"""Datagrams of a connection that go ahead of its handover."""

Forward = Callable[[bytes, NetworkAddress], None]
"""Takes a datagram and its sender to where the connection lives now."""


def forward_nowhere(data: bytes, addr: NetworkAddress) -> None:
    """Drop a datagram of a connection that lives nowhere any more; a `Forward`."""


class DatagramSender(Protocol):
    """Where a connection's datagrams go."""

    def send(self, datagrams: Sequence[Datagram]) -> None:
        """Send datagrams in order, or drop them."""


class EventStream(Generic[T]):
    """An asynchronous iterator over events as they happen, from its creation on.

    Attributes:
        has_ended: Whether no more events will come.
    """

    def __init__(self) -> None:
        self.has_ended = False
        self._queue: asyncio.Queue[T | None] = asyncio.Queue()

    def put(self, event: T) -> None:
        """Hand on an event."""
        if not self.has_ended:
            self._queue.put_nowait(event)

    def end(self) -> None:
        """Let no more events come; called by whoever is done first."""
        self.has_ended = True
        self._queue.put_nowait(None)

    def __aiter__(self) -> EventStream[T]:
        return self

    async def __anext__(self) -> T:
        event = await self._queue.get()
        if event is None:
            self._queue.put_nowait(None)
            raise StopAsyncIteration
        return event


class ConnectionProtocol(QuicConnectionProtocol):
    """Drives one connection; the base class of what an application makes of it.

    Args:
        quic: The connection.
        stream_handler: As in aioquic: called with the reader and the writer of a new stream.

    Attributes:
        connection: The connection.
        remote: On a client, the server as the application named it, for example
            ``example.org:4433``; empty on a server.
        closed_by: Why the connection has ended or is about to; None while it lives.
    """

    no_error: ClassVar[int] = QuicErrorCode.NO_ERROR
    """The application protocol's error code for a regular end."""

    def __init__(self, quic: Connection, stream_handler: QuicStreamHandler | None = None) -> None:
        super().__init__(quic, stream_handler)
        self.connection = quic
        self.remote = ""
        self.closed_by: ConnectionLost | None = None
        self._sender: DatagramSender | None = None
        self._settle_task: asyncio.Handle | None = None
        self._decided = asyncio.Event()
        self._lost = asyncio.Event()
        self._farewell: list[Datagram] = []
        self._farewells_due = 1
        self._ignored = 0
        self._held: deque[tuple[bytes, NetworkAddress]] = deque(maxlen=MOST_HELD)
        self._forward: Forward | None = None
        self._connected_callbacks: list[Callable[[], None]] = []
        self._lost_callbacks: list[Callable[[ConnectionLost], None]] = []
        self._migration_callbacks: list[Callable[[MigrationEvent], None]] = []
        self._migration_events_wait = False
        self._migration_streams: list[EventStream[MigrationEvent]] = []
        self._keepers = 0
        self._keeping: asyncio.TimerHandle | None = None

    # For applications

    @property
    def negotiated(self) -> MigrationProtocol | None:
        """The migration protocols agreed on; None where server migration is off."""
        return self.connection.negotiated

    @property
    def is_connected(self) -> bool:
        """Whether the handshake has completed."""
        return self._connected

    @property
    def peer_address(self) -> Address | None:
        """Where the peer is at present, once that is known."""
        address = self.connection.get_peer_address()
        return None if address is None else address_from_network(address)

    @property
    def server_address(self) -> Address | None:
        """On a client, where its server is at present."""
        return self.peer_address

    def probe_server_address(self) -> None:
        """On a client with the policy proactive, look for the server now, where it will be."""
        self.connection.probe_server_address(now=self._loop.time())
        self.settle()

    def migration_events(self) -> EventStream[MigrationEvent]:
        """Return an iterator over the migration events from now on, until the connection ends."""
        stream: EventStream[MigrationEvent] = EventStream()
        if self._closed.is_set():
            stream.end()
        live = [other for other in self._migration_streams if not other.has_ended]
        self._migration_streams = [*live, stream]
        return stream

    def hold_migration_events(self) -> None:
        """Keep migration events while there is nobody yet who could have asked for them."""
        self._migration_events_wait = True

    def hand_on_migration_events(self) -> None:
        """Hand on what was kept, and from now on everything at once."""
        self._migration_events_wait = False
        self._process_migration_events()

    def on_connected(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the handshake has completed, if it has not yet."""
        self._connected_callbacks.append(callback)

    def on_lost(self, callback: Callable[[ConnectionLost], None]) -> None:
        """Call `callback` once, as soon as the end of the connection is decided."""
        self._lost_callbacks.append(callback)

    def on_migration_event(self, callback: Callable[[MigrationEvent], None]) -> None:
        """Call `callback` with every migration event from now on, as it happens."""
        self._migration_callbacks.append(callback)

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Keep the connection from timing out while nothing is said, as long as the context lasts.

        A PING asks the peer for a sign of life when it is due (RFC 9000 10.1.2). A peer that is
        gone is still noticed, since it gives none.
        """
        self._keepers += 1
        self._keep_open()
        try:
            yield
        finally:
            self._keepers -= 1
            if not self._keepers and self._keeping is not None:
                self._keeping.cancel()
                self._keeping = None

    def ask_for_life(self) -> None:
        """Send a PING, which a peer that lives acknowledges."""
        self._quic.send_ping(_PING_FOR_LIFE)
        self.transmit()

    def close(self, error_code: int | None = None, reason_phrase: str = "") -> None:
        """Close the connection.

        Args:
            error_code: An application error code; by default `no_error`.
            reason_phrase: A reason for the peer to read.
        """
        code = self.no_error if error_code is None else error_code
        self._end(code, None, reason_phrase)

    def refuse(self, reason_phrase: str) -> None:
        """Close a connection whose handshake is not finished, with CONNECTION_REFUSED."""
        self._end(QuicErrorCode.CONNECTION_REFUSED, QuicFrameType.PADDING, reason_phrase)

    def unreachable(self, reason: str) -> None:
        """End a connection whose handshake is not finished, because nothing answers to it.

        Nobody is waited for who might have to be told that it has ended.
        """
        if not self._connected and self.closed_by is None:
            self.refuse(reason)
            self._closed.set()

    def abandon(self, reason: str, *, is_validated: bool) -> None:
        """End a connection at once whose handshake is not finished, and keep nothing of it.

        The peer is told if it is known to be where it says: others get no more than three times
        what they have sent (RFC 9000 8.1).

        Args:
            reason: For the peer, if it is told.
            is_validated: Whether its address was validated before the handshake.
        """
        if self.closed_by is None and (is_validated or self.connection.is_peer_validated):
            self.refuse(reason)
        self.connection.end_now(reason)
        self.settle()

    async def wait_connected(self) -> None:
        """Wait until the handshake has completed.

        Raises:
            ConnectFailed: If it does not.
        """
        await self._decided.wait()
        if not self._connected:
            assert self.closed_by is not None, "a handshake completes or fails"
            lost = self.closed_by
            raise ConnectFailed(self.remote or "the peer", lost.error_code, lost.reason)

    async def wait_left(self) -> None:
        """Wait after `close` for as long as the socket is of any use.

        Who closes it then need not wait for the end of the closing period, which takes seconds
        where the path is long (RFC 9000 10.2). But a peer that is sending may have to be told a
        second time that nobody listens any more.
        """
        if self.closed_by is not None and not self.connection.is_receiving:
            ends_at = self._quic.get_timer()
            if ends_at is not None:
                self._quic.handle_timer(now=max(ends_at, self._loop.time()))
                self.settle()
        await self.wait_closed()

    async def wait_lost(self) -> ConnectionLost:
        """Wait until the connection has ended or is about to, and return why."""
        await self._lost.wait()
        assert self.closed_by is not None, "it is set first"
        return self.closed_by

    # For subclasses

    def migration_event_received(self, event: MigrationEvent) -> None:
        """Called for each migration event, before callbacks and iterators."""

    def connection_lost_by(self, lost: ConnectionLost) -> None:
        """Called once, as soon as the end of the connection is decided."""

    def export_state(self) -> bytes:
        """Return what this object knows beside the connection, for a hand-over.

        The connection is frozen then. The default is for subclasses that know nothing.

        Raises:
            SnapshotError: If it cannot be carried; the text says why.
        """
        if self._stream_readers:
            raise SnapshotError(
                "its streams are read by the application through asyncio; let them end first, or "
                "override export_state and import_state"
            )
        return b""

    def import_state(self, data: bytes) -> None:
        """Go on from what `export_state` returned, instead of from the events of a handshake.

        Raises:
            SnapshotError: If it is damaged, or not of this class.
        """
        if data:
            raise SnapshotError("the other host serves another application protocol")

    async def wind_down(self) -> None:
        """Begin with nothing new, and wait until what is under way has ended.

        The connection is closed then. The default is for subclasses that know of nothing.
        """

    def withheld_events(self) -> list[events.QuicEvent]:
        """Return the events that were not acted upon yet, in order, and forget them."""
        return []

    # For endpoints

    def attach(self, sender: DatagramSender) -> None:
        """Send datagrams to `sender` from now on."""
        self._sender = sender

    def follow_connection_ids(
        self,
        issued: Callable[[bytes], None],
        retired: Callable[[bytes], None],
        terminated: Callable[[], None],
    ) -> None:
        """Call these when a connection ID is issued or retired, and at the connection's end."""
        self.connection.on_connection_id_sent = issued
        self._connection_id_issued_handler = issued
        self._connection_id_retired_handler = retired
        self._connection_terminated_handler = terminated

    def resume(self, state: bytes) -> None:
        """Begin with a connection that was thawed, and what `export_state` returned for it.

        Raises:
            SnapshotError: If the state cannot be used.
        """
        self._connected = True
        self._decided.set()
        self.import_state(state)

    def show_held(self) -> Sequence[tuple[bytes, NetworkAddress]]:
        """Return the newest datagrams that have arrived while the connection is sealed.

        They go ahead where it is handed over: what they acknowledge and allow includes what those
        before them do. They stay here, too, in case that the connection is resumed.
        """
        return tuple(self._held)[-MOST_AHEAD:]

    def replay_held(self) -> None:
        """Take in what arrived while the connection was sealed; `settle` has to follow."""
        while self._held:
            self.receive(*self._held.popleft())

    def depart(self, forward: Forward, reason_phrase: str) -> None:
        """End here, because the connection goes on elsewhere; nothing is said to the client.

        Args:
            forward: Given what was held, and what still arrives.
            reason_phrase: What those are told who use the connection here.
        """
        self._forward = forward
        while self._held:
            forward(*self._held.popleft())
        self._decide_end(
            events.ConnectionTerminated(QuicErrorCode.NO_ERROR, None, reason_phrase),
        )
        self._closed.set()
        self.settle()

    def receive(self, data: bytes, addr: NetworkAddress) -> None:
        """Take a datagram in; `settle` has to follow."""
        if self._forward is not None:
            self._forward(data, addr)
            return
        if self.connection.is_sealed:
            self._held.append((data, addr))
            return
        if self._farewell:
            self._repeat_farewell()
            return
        try:
            self._quic.receive_datagram(data, addr, now=self._loop.time())
        except Exception:
            self._fail()

    def settle(self) -> None:
        """Process events and send what there is to send."""
        if self._settle_task is not None:
            self._settle_task.cancel()
            self._settle_task = None
        try:
            self._process_events()
            self.transmit()
        except Exception:
            self._fail()

    def settle_soon(self) -> None:
        """Do `settle` when what is under way in the event loop is done."""
        if self._settle_task is None:
            self._settle_task = self._loop.call_soon(self.settle)

    def transmit_soon(self) -> None:
        """Do `transmit` when what is under way in the event loop is done."""
        self._transmit_soon()

    # Overridden from aioquic

    def datagram_received(self, data: bytes | str, addr: NetworkAddress) -> None:
        """Take a datagram in, and do what follows from it."""
        assert isinstance(data, bytes)
        self.receive(data, addr)
        self.settle()

    def transmit(self) -> None:
        """Send pending datagrams and arm the timer; call it after using `connection` directly."""
        if self._transmit_task is not None:
            self._transmit_task.cancel()
            self._transmit_task = None
        if self.connection.get_peer_address() is None:
            return  # nothing received or connected yet, so there is no one to send to
        datagrams = self._quic.datagrams_to_send(now=self._loop.time())
        if datagrams and self._sender is not None:
            self._sender.send(datagrams)
        if self.closed_by is not None and datagrams and not self._farewell:
            self._farewell = datagrams
        self._arm_timer()

    def _arm_timer(self) -> None:
        timer_at = self._quic.get_timer()
        if timer_at is None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        elif self._timer is None or self._timer_at is None or timer_at < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(timer_at, self._handle_timer)
            self._timer_at = timer_at
        # A later deadline needs no other timer: `_handle_timer` sees that nothing is due yet.

    def _handle_timer(self) -> None:
        self._timer = None
        due = self._quic.get_timer()
        now = self._loop.time()
        if due is None:
            return
        if due > now + _CLOCK_RESOLUTION:
            self._arm_timer()
            return
        self._quic.handle_timer(now=max(due, now))
        self.settle()

    def _process_events(self) -> None:
        while (event := self._quic.next_event()) is not None:
            if isinstance(event, events.ConnectionIdIssued):
                self._connection_id_issued_handler(event.connection_id)
            elif isinstance(event, events.ConnectionIdRetired):
                self._connection_id_retired_handler(event.connection_id)
            elif isinstance(event, events.HandshakeCompleted):
                self._connected = True
                self._decided.set()
                self._keep_open()
                for connected in self._connected_callbacks:
                    connected()
            elif isinstance(event, events.PingAcknowledged):
                waiter = self._ping_waiters.pop(event.uid, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(None)
            elif isinstance(event, events.ConnectionTerminated):
                self._decide_end(event)
                self._connection_terminated_handler()
                self._closed.set()
            self.quic_event_received(event)
        if self.closed_by is None and (reason := self.connection.close_reason) is not None:
            self._decide_end(reason)
        self._process_migration_events()

    def _process_migration_events(self) -> None:
        if self._migration_events_wait:
            return
        while (event := self.connection.next_migration_event()) is not None:
            self.migration_event_received(event)
            for callback in list(self._migration_callbacks):
                callback(event)
            for stream in self._migration_streams:
                stream.put(event)
        if self._closed.is_set():
            for stream in self._migration_streams:
                stream.end()
            self._migration_streams.clear()

    def _keep_open(self, not_before: float = 0.0) -> None:
        since = self.connection.quiet_since
        if self._keepers and self._keeping is None and since is not None:
            due = max(since + self.connection.longest_quiet, not_before)
            self._keeping = self._loop.call_at(due, self._ask_for_life)

    def _ask_for_life(self) -> None:
        self._keeping = None
        since, now = self.connection.quiet_since, self._loop.time()
        if since is None:
            return
        longest = self.connection.longest_quiet
        if since + longest > now + _CLOCK_RESOLUTION:
            self._keep_open()
        else:
            self._keep_open(now + longest)  # if it is lost, loss recovery sends it again
            self.ask_for_life()

    def _end(self, error_code: int, frame_type: int | None, reason_phrase: str) -> None:
        self._quic.close(error_code, frame_type, reason_phrase)
        self._process_events()
        self.transmit()

    def _fail(self) -> None:
        """End the connection after an error of this program, so that all others can go on."""
        logger.exception("connection %s fails", self.connection.stable_id)
        self._quic.close(QuicErrorCode.INTERNAL_ERROR, QuicFrameType.PADDING)
        if (reason := self.connection.close_reason) is not None:
            self._decide_end(reason)
        self.transmit()

    def _decide_end(self, reason: events.ConnectionTerminated) -> None:
        if self.closed_by is not None:
            return
        self.closed_by = ConnectionLost(reason.error_code, reason.reason_phrase)
        for waiter in self._ping_waiters.values():
            if not waiter.done():
                waiter.set_exception(self.closed_by)
        self._ping_waiters.clear()
        self.connection_lost_by(self.closed_by)
        for callback in self._lost_callbacks:
            callback(self.closed_by)
        self._lost.set()
        self._decided.set()

    def _repeat_farewell(self) -> None:
        """Send CONNECTION_CLOSE again, ever more rarely (RFC 9000 10.2.1)."""
        self._ignored += 1
        if self._ignored >= self._farewells_due and self._sender is not None:
            self._ignored = 0
            self._farewells_due *= 2
            self._sender.send(self._farewell)


_CLOCK_RESOLUTION = 1e-6

_PING_FOR_LIFE = 0
"""Names the PINGs that nobody waits for; those of `ping` have the identity of an object."""
