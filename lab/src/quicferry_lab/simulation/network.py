"""A network of datagrams in virtual time.

Everything that happens is an event on one heap, ordered by (time, sequence number), so a run takes
no longer than its computation and happens again exactly for the same seed. A datagram travels along
the link of its (source, destination) pair of addresses: it waits in the link's queue, takes its
time on the wire, and may be lost, delayed, overtaken or doubled on the way, as the link's `Path`
says. It is handed to whoever listens at the destination address *when it arrives*; where nobody
does it vanishes, which is all that is needed to model a server on the move.
"""

from __future__ import annotations

import enum
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass

from .errors import SimulationError

SimulatedAddress = tuple[str, int] | tuple[str, int, int, int]
Receiver = Callable[[bytes, SimulatedAddress], None]

START = 1000.0
"""The time at which every simulation starts: like a real clock's, it is not zero."""

IP_UDP_OVERHEAD_BYTES = {4: 28, 6: 48}

EVENTS_AT_ONE_INSTANT = 100_000
"""More than any sane run has: somebody's timer is always due."""


@dataclass(frozen=True)
class Path:
    """What happens to datagrams in one direction.

    Args:
        delay: Propagation time, seconds.
        rate: Bits per second; None: as fast as they come.
        queue: Bytes that may wait for the link; what comes on top is dropped.
        loss: Probability that a datagram is lost.
        jitter: Up to this many seconds more, drawn for each datagram; the order is kept.
        reordering: Probability that a datagram is held back, so that later ones overtake it.
        reordering_delay: By how much it is held back, seconds.
        duplication: Probability that a datagram arrives twice.
    """

    delay: float = 0.01
    rate: float | None = None
    queue: int = 100_000
    loss: float = 0.0
    jitter: float = 0.0
    reordering: float = 0.0
    reordering_delay: float = 0.01
    duplication: float = 0.0


@dataclass(frozen=True)
class Datagram:
    """One datagram as an observer on the wire sees it when it is sent."""

    time: float
    source: SimulatedAddress
    destination: SimulatedAddress
    data: bytes


class Sharing(enum.Enum):
    """Which datagrams wait for each other."""

    PER_ADDRESS = "per address"
    """Each pair of addresses has a link of its own."""
    PER_HOST = "per host"
    """All ports of a host share its links, as they share its interface."""


@dataclass
class _Link:
    path: Path
    idle_at: float = START
    last_arrival: float = START


@dataclass
class Counters:
    """What became of the datagrams."""

    sent: int = 0
    delivered: int = 0
    lost: int = 0
    overflowed: int = 0
    filtered: int = 0
    unreachable: int = 0


class Network:
    """The clock, the links, and who listens where.

    Args:
        seed: Of everything random on the network.
        default_path: For pairs of addresses without a path of their own.
        sharing: Whether clients of one host share their paths. If so, paths are set for hosts:
            ports of the addresses do not matter.

    Attributes:
        now: The current virtual time, seconds.
        counters: What became of the datagrams so far.
        taps: Called with every datagram when it is sent, whatever becomes of it.
        filters: Asked for every datagram; if one answers False it is dropped.
        watchers: Called after every event.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        default_path: Path | None = None,
        sharing: Sharing = Sharing.PER_ADDRESS,
    ) -> None:
        self.now = START
        self.counters = Counters()
        self.taps: list[Callable[[Datagram], None]] = []
        self.filters: list[Callable[[Datagram], bool]] = []
        self.watchers: list[Callable[[], None]] = []
        self.random = random.Random(f"network {seed}")
        self._default_path = default_path or Path()
        self._sharing = sharing
        self._paths: dict[tuple[SimulatedAddress | None, SimulatedAddress | None], Path] = {}
        self._links: dict[tuple[SimulatedAddress | None, SimulatedAddress | None], _Link] = {}
        self._receivers: dict[SimulatedAddress, Receiver] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0

    # Time.

    def call_at(self, when: float, callback: Callable[[], None]) -> None:
        """Call `callback` at the virtual time `when`, or as soon as possible."""
        self._sequence += 1
        heapq.heappush(self._events, (max(when, self.now), self._sequence, callback))

    def call_later(self, delay: float, callback: Callable[[], None]) -> None:
        """Call `callback` in `delay` seconds."""
        self.call_at(self.now + delay, callback)

    def run_for(self, duration: float) -> None:
        """Let `duration` seconds go by."""
        self._run(self.now + duration, None)

    def run_until(self, condition: Callable[[], bool], *, limit: float, what: str) -> None:
        """Run until `condition` holds.

        Args:
            condition: Looked at after each event.
            limit: Seconds of virtual time that it may take.
            what: The condition in words, for the error.

        Raises:
            SimulationError: The time is up.
        """
        if not self._run(self.now + limit, condition):
            raise SimulationError(f"{what}: not within {limit:g} s of virtual time")

    def _run(self, end: float, condition: Callable[[], bool] | None) -> bool:
        if condition is not None and condition():
            return True
        events = self._events
        at_one_instant = 0
        while events and events[0][0] <= end:
            when, _, callback = heapq.heappop(events)
            at_one_instant = at_one_instant + 1 if when == self.now else 0
            if at_one_instant > EVENTS_AT_ONE_INSTANT:
                raise SimulationError(f"time stands still at {self.now - START:.6f} s")
            self.now = when
            callback()
            for watcher in self.watchers:
                watcher()
            if condition is not None and condition():
                return True
        self.now = end
        return False

    # Links.

    def set_path(
        self,
        path: Path,
        *,
        source: SimulatedAddress | None = None,
        destination: SimulatedAddress | None = None,
    ) -> None:
        """Use `path` from `source` to `destination` from now on; None stands for any address.

        The most specific path wins: both addresses, then the source, then the destination.
        """
        if source is None and destination is None:
            self._default_path = path
        else:
            self._paths[self._end(source), self._end(destination)] = path
        for (link_source, link_destination), link in self._links.items():
            link.path = self.path(link_source, link_destination)

    def path(self, source: SimulatedAddress | None, destination: SimulatedAddress | None) -> Path:
        """The path that datagrams from `source` to `destination` take."""
        ends = self._end(source), self._end(destination)
        for key in (ends, (ends[0], None), (None, ends[1])):
            if key in self._paths:
                return self._paths[key]
        return self._default_path

    def _end(self, address: SimulatedAddress | None) -> SimulatedAddress | None:
        """Return what stands for an address where links are told apart."""
        if address is None or self._sharing is Sharing.PER_ADDRESS:
            return address
        return (address[0], 0)

    # Who listens where.

    def attach(self, address: SimulatedAddress, receiver: Receiver) -> None:
        """Hand datagrams that arrive at `address` to `receiver(data, source)`.

        Raises:
            SimulationError: Somebody listens there already.
        """
        if address in self._receivers:
            raise SimulationError(f"address {address} is in use")
        self._receivers[address] = receiver

    def detach(self, address: SimulatedAddress) -> None:
        """Nobody listens at `address` any more."""
        self._receivers.pop(address, None)

    # Datagrams.

    def send(self, data: bytes, source: SimulatedAddress, destination: SimulatedAddress) -> None:
        """Send a datagram. The source address is believed, so this is also how to forge one."""
        datagram = Datagram(self.now, source, destination, data)
        self.counters.sent += 1
        for tap in self.taps:
            tap(datagram)
        for allows in self.filters:
            if not allows(datagram):
                self.counters.filtered += 1
                return

        ends = self._end(source), self._end(destination)
        link = self._links.get(ends)
        if link is None:
            link = self._links[ends] = _Link(self.path(source, destination))
        path = link.path

        departure = self.now
        if path.rate is not None:
            waiting = max(0.0, link.idle_at - self.now) * path.rate / 8
            if waiting + len(data) > path.queue:
                self.counters.overflowed += 1
                return
            overhead = IP_UDP_OVERHEAD_BYTES[6 if len(source) == 4 else 4]
            departure = max(self.now, link.idle_at) + (len(data) + overhead) * 8 / path.rate
            link.idle_at = departure
        # Lost on the way: it has taken its share of the link all the same.
        if path.loss and self.random.random() < path.loss:
            self.counters.lost += 1
            return

        arrival = departure + path.delay
        if path.jitter:
            arrival += self.random.random() * path.jitter
        if path.reordering and self.random.random() < path.reordering:
            arrival += path.reordering_delay
        else:
            arrival = max(arrival, link.last_arrival)
            link.last_arrival = arrival
        self._deliver_at(arrival, datagram)
        if path.duplication and self.random.random() < path.duplication:
            self._deliver_at(arrival + self.random.random() * path.delay, datagram)

    def _deliver_at(self, when: float, datagram: Datagram) -> None:
        def deliver() -> None:
            receiver = self._receivers.get(datagram.destination)
            if receiver is None:
                self.counters.unreachable += 1
            else:
                self.counters.delivered += 1
                receiver(datagram.data, datagram.source)

        self.call_at(when, deliver)
