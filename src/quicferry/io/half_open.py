"""Connections whose handshake is under way: how many there may be, for how long, and from whom.

Whoever sends a valid Initial packet makes the server work, and keep something, for an address that
may not be its own. So what is kept is bounded:

- From `1/RETRY_FROM` of the bound on, clients have to prove their address first, by a Retry packet
  (RFC 9000 8.1.2), for which nothing is kept. Who forges addresses gets no further than that.
- One network has `1/ONE_NETWORK` of the bound at most, and all together have the bound. What is
  over that is refused; but a network that has fewer than another takes the place of its oldest.
- A handshake that takes longer than `HANDSHAKE_DEADLINE` is given up.

How much time they may take of those that are connected already is the matter of `knocks`.
"""

from __future__ import annotations

import asyncio
import enum
from collections import Counter
from dataclasses import dataclass
from operator import itemgetter

from quicferry.transport import NetworkAddress

from .knocks import Knock, Knocks, network_of
from .protocol import ConnectionProtocol

DEFAULT_MAX_HALF_OPEN = 1000
"""Connections whose handshake is under way."""

RETRY_FROM = 10
ONE_NETWORK = 4

HANDSHAKE_DEADLINE = 10.0
"""Seconds."""

MOST_LATER_PARTS = 64
"""Datagrams with a later part of a ClientHello that are held until its beginning comes."""


class Verdict(enum.Enum):
    """What becomes of a client that wants to connect."""

    ADMIT = "admit"
    RETRY = "retry"
    REFUSE = "refuse"


@dataclass
class HandshakeCounts:
    """Handshakes of a server, as its operator sees them.

    Attributes:
        half_open: Connections whose handshake is under way, now, or is about to begin.
        refused: Attempts answered with CONNECTION_REFUSED: too many are half-open, or the server is
            about to move.
        retried: Retry packets sent.
        dropped: Datagrams with an Initial packet that were dropped without an answer, because they
            cannot begin a connection.
        expired: Handshakes that were given up because they had taken too long.
    """

    half_open: int = 0
    refused: int = 0
    retried: int = 0
    dropped: int = 0
    expired: int = 0


class HalfOpen:
    """The half-open connections of a server.

    Args:
        most: How many there may be, at least 1.
        always_retry: Whether every client has to prove its address.

    Attributes:
        counts: What has happened.
    """

    def __init__(self, most: int, *, always_retry: bool) -> None:
        if most < 1:
            raise ValueError("a server needs at least one half-open connection to be of use")
        self.counts = HandshakeCounts()
        self._most = most
        self._always_retry = always_retry
        self._loop = asyncio.get_running_loop()
        # In the order of their deadlines, each with who has proved to be its client
        self._open: dict[ConnectionProtocol, tuple[float, bytes | None]] = {}
        self._knocks = Knocks()
        self._of_network: Counter[bytes] = Counter()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._knocks)

    def is_waiting(self, name: tuple[bytes, NetworkAddress]) -> bool:
        """Whether the connection waits for its turn that a datagram belongs to."""
        return name in self._knocks

    def judge(self, source: NetworkAddress, *, is_validated: bool) -> Verdict:
        """Return what becomes of a client.

        Args:
            source: Its address.
            is_validated: Whether it has proved that it receives what is sent there.
        """
        if not is_validated:
            many = self.counts.half_open >= self._most // RETRY_FROM
            return Verdict.RETRY if many or self._always_retry else Verdict.ADMIT
        of_this = self._of_network[network_of(source)]
        if of_this >= max(1, self._most // ONE_NETWORK):
            return Verdict.REFUSE
        if self.counts.half_open < self._most or self._gives_way(of_this + 1) is not None:
            return Verdict.ADMIT
        return Verdict.REFUSE

    def _gives_way(self, number: int) -> ConnectionProtocol | None:
        """Return the oldest connection of the network with most, if that is more than `number`."""
        network, most = max(self._of_network.items(), key=itemgetter(1), default=(b"", 0))
        if most <= number:
            return None
        own = (protocol for protocol, (_, who) in self._open.items() if who == network)
        return next(own, None)

    def wait(self, knock: Knock) -> None:
        """Let one wait for its turn that was admitted; if all places are taken, one gives way."""
        if self.counts.half_open >= self._most and (protocol := self._gives_way(1)) is not None:
            self.counts.refused += 1
            self.remove(protocol)
            protocol.abandon("too many of this network are connecting", is_validated=True)
        self._knocks.put(knock)
        if knock.original is not None:
            self._of_network[network_of(knock.source)] += 1
        self._count()

    def take(self) -> Knock | None:
        """Return whose turn it is, if anyone waits; it counts no more, unless it is added."""
        if not self._knocks:
            return None
        knock = self._knocks.take()
        if knock.original is not None:
            self._forget(network_of(knock.source))
        self._count()
        return knock

    def add(self, protocol: ConnectionProtocol, knock: Knock) -> None:
        """Take note of a connection whose handshake begins."""
        who = None if knock.original is None else network_of(knock.source)
        self._open[protocol] = (self._loop.time() + HANDSHAKE_DEADLINE, who)
        if who is not None:
            self._of_network[who] += 1
        self._count()
        protocol.on_connected(lambda: self.remove(protocol))
        self._arm()

    def remove(self, protocol: ConnectionProtocol) -> None:
        """Take note of one whose handshake is complete, or that has ended; others do not matter."""
        _, who = self._open.pop(protocol, (0.0, None))
        if who is not None:
            self._forget(who)
        self._count()

    def close(self) -> None:
        """Forget all of them."""
        self._open.clear()
        self._knocks = Knocks()
        self._of_network.clear()
        self._count()
        if self._timer is not None:
            self._timer.cancel()

    def _count(self) -> None:
        self.counts.half_open = len(self._open) + len(self._knocks)

    def _forget(self, network: bytes) -> None:
        self._of_network[network] -= 1
        if not self._of_network[network]:
            del self._of_network[network]

    def _arm(self) -> None:
        if self._timer is None and self._open:
            due, _ = next(iter(self._open.values()))
            self._timer = self._loop.call_at(due, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        late = [(protocol, who) for protocol, (due, who) in self._open.items() if due <= now]
        for protocol, who in late:
            self.counts.expired += 1
            self.remove(protocol)
            protocol.abandon("the handshake takes too long", is_validated=who is not None)
        self._arm()


class LaterParts:
    """Later parts of ClientHellos that have overtaken the beginning; the oldest make room."""

    def __init__(self) -> None:
        self._held: dict[tuple[bytes, NetworkAddress], list[bytes]] = {}
        self._count = 0

    def hold(self, connection_id: bytes, source: NetworkAddress, data: bytes) -> None:
        """Hold a datagram to a connection ID until the beginning comes from the same address."""
        if self._count >= MOST_LATER_PARTS:
            self.take(*next(iter(self._held)))
        self._held.setdefault((connection_id, source), []).append(data)
        self._count += 1

    def take(self, connection_id: bytes, source: NetworkAddress) -> list[bytes]:
        """Return what was held for a connection, and forget it."""
        held = self._held.pop((connection_id, source), [])
        self._count -= len(held)
        return held
