"""What must hold in every run, apart from what the observer and the traffic check all the time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from quicferry.protocol.events import (
    AnnouncementWithdrawn,
    ClientMigrationDetected,
    MigrationCompleted,
    MigrationEvent,
    MigrationFailed,
    MigrationReady,
    PoolAddressReceived,
    ProbingStarted,
    ServerMigrationReceived,
    WithdrawalAcknowledged,
)
from quicferry.protocol.suite import MigrationProtocol
from quicferry.transport import PathEstimate, address_from_network

from .endpoint import Client, Endpoint, ServerEndpoint
from .errors import InvariantError
from .network import SimulatedAddress
from .scenario import ANNOUNCING_PROTOCOLS, Ending, Move

_ENDS = MigrationCompleted | MigrationReady | AnnouncementWithdrawn | WithdrawalAcknowledged
"""After these the same may happen again."""

EventT = TypeVar("EventT", bound=MigrationEvent)


def check_alive(*sides: Endpoint) -> None:
    """No connection is lost."""
    for side in sides:
        if side.terminated is not None:
            raise InvariantError(f"{side.name} lost its connection: {side.terminated}")


def check_pool(client: Client, pool: Sequence[SimulatedAddress]) -> None:
    """The client has heard of each address of the pool once."""
    received = [str(event.address) for event in events_of(client, PoolAddressReceived)]
    expected = [str(address_from_network(address)) for address in pool]
    if sorted(received) != sorted(expected):
        raise InvariantError(f"the pool {received} was received, not {expected}")


def disagreement(client: Client, server: ServerEndpoint) -> str | None:
    """What the two sides do not agree on, or None."""
    believed = client.connection.get_peer_address()
    if believed != server.local:
        return f"the server is at {server.local}, and its client believes it at {believed}"
    known = server.migrating.server_address
    if known != server.local:
        return f"the server is at {server.local}, and believes itself at {known}"
    seen = server.connection.get_peer_address()
    if seen != client.external:
        return f"the client is at {client.external}, and its server believes it at {seen}"
    return None


class EventCheck:
    """Events are raised once, for what happened, and in an order that makes sense.

    Args:
        client: One side.
        server: The other.

    Attributes:
        slowest: The longest time from a network switch to the client's completion, seconds.
    """

    def __init__(self, client: Client, server: ServerEndpoint) -> None:
        self.slowest = 0.0
        self._client_completions = 0
        self._client = client
        self._server = server
        self._moves: list[Move] = []
        self._ready = 0
        self._completions = 0
        self._switched_at = 0.0

    def begin(self, move: Move) -> None:
        """A move begins."""
        self._moves.append(move)
        self._ready = len(events_of(self._server, MigrationReady))

    def completed(self, side: Endpoint) -> bool:
        """Whether `side` has reported the completion of every move that was switched."""
        expected = sum(move.ending is Ending.SWITCH for move in self._moves)
        return len(events_of(side, MigrationCompleted)) >= expected

    def ready(self) -> bool:
        """Whether the server has reported that it is ready for the latest move."""
        return len(events_of(self._server, MigrationReady)) > self._ready

    def switched(self) -> None:
        """The server is about to come up at its new address."""
        self._switched_at = self._client.network.now

    def __call__(self) -> None:
        """To be called after every event: what completes a server is an answer to its answer."""
        completions = len(events_of(self._client, MigrationCompleted))
        if completions > self._client_completions:
            self._client_completions = completions
            self.slowest = max(self.slowest, self._client.network.now - self._switched_at)
        completions = len(events_of(self._server, MigrationCompleted))
        if completions > self._completions:
            self._completions = completions
            if self._client.heard.get(self._server.local, 0.0) < self._switched_at:
                raise InvariantError(f"{self._server.name} completed, and was not heard by anyone")

    def check(self) -> None:
        """Check everything since the last check; all moves have come to their end."""
        expected = [move.protocol for move in self._moves if move.ending is Ending.SWITCH]
        for side in (self._client, self._server):
            completions = events_of(side, MigrationCompleted)
            if [event.protocol for event in completions] != expected:
                raise InvariantError(f"{side.name} completed {completions}, not {expected}")
            failures = events_of(side, MigrationFailed)
            if failures:
                raise InvariantError(f"{side.name} failed: {failures}")
            self._check_once(side)
        self._check_withdrawals()

    def _check_withdrawals(self) -> None:
        """What the client was told of, and has not come about, it was told to forget."""
        if not self._server.migrating.knows_withdrawals:
            return
        announced = len(events_of(self._client, ServerMigrationReceived))
        withdrawn = len(events_of(self._client, AnnouncementWithdrawn))
        switched = [move for move in self._moves if move.ending is Ending.SWITCH]
        come_about = sum(move.protocol in ANNOUNCING_PROTOCOLS for move in switched)
        if announced != withdrawn + come_about:
            raise InvariantError(
                f"{self._client.name} was told of {announced} moves, {withdrawn} were withdrawn, "
                f"and {come_about} came about"
            )

    def _check_once(self, side: Endpoint) -> None:
        """The same event comes at most once for each move, and while nothing moves, not at all."""
        log = [event for _, event in side.migration_events]
        counts = Counter(event for event in log if not _may_repeat(event))
        for event, count in counts.items():
            limit = 1 if isinstance(event, PoolAddressReceived) else len(self._moves)
            if count > limit:
                raise InvariantError(f"{side.name} raised {count} times: {event}")
        between: set[MigrationEvent] = set()
        for event in log:
            if isinstance(event, _ENDS):
                between.clear()
            elif not _may_repeat(event):
                if event in between:
                    raise InvariantError(f"{side.name} raised twice in one migration: {event}")
                between.add(event)


class PathStateCheck:
    """A false alarm leaves no trace: back at home the client has the path state that it left.

    Args:
        client: The client.
        home: Where its server is; the client itself may be looking for it elsewhere already.
    """

    def __init__(self, client: Client, home: SimulatedAddress) -> None:
        self.returns = 0
        self._client = client
        self._home: SimulatedAddress | None = home
        self._at_home: PathEstimate | None = None
        self._away = False
        self._completed = 0

    def __call__(self) -> None:
        """To be called after every event."""
        completed = len(events_of(self._client, MigrationCompleted))
        peer = self._client.connection.get_peer_address()
        if completed != self._completed:
            self._completed = completed
            self._home, self._away = peer, False
        elif peer != self._home:
            self._away = True
            return
        now = self._client.migrating.path_estimate
        before = self._at_home
        if self._away and before is not None:
            self._away = False
            self.returns += 1
            if now.generation != before.generation:
                raise InvariantError(f"{self._client.name} came home to another path state")
            if before.min_rtt is not None and (now.min_rtt or math.inf) > before.min_rtt:
                raise InvariantError(f"{self._client.name} came home to another RTT")
        self._at_home = now


def events_of(side: Endpoint, kind: type[EventT]) -> list[EventT]:
    """The migration events of one kind."""
    return [event for _, event in side.migration_events if isinstance(event, kind)]


def _may_repeat(event: MigrationEvent) -> bool:
    # A pool's schedule comes back to the same address; and a client's new address that could not be
    # validated is given up, and detected again.
    return isinstance(event, ClientMigrationDetected) or (
        isinstance(event, ProbingStarted) and event.protocol is MigrationProtocol.POOL_OF_ADDRESSES
    )
