"""An emulated network path inside the client process, for machines without ``tc netem``.

Every datagram of a client passes through its :class:`EmulatedNetwork`, in both directions. There it
is lost, queued in front of a bottleneck, and delayed, as the :class:`PathSpec` of the server
address says that it goes to or comes from. So the path changes when the server moves.

One direction of one path is a bottleneck with a tail-drop queue, followed by a delay line:

- a datagram is lost with the probability of the path, each by itself, from a seeded generator;
- the bottleneck is a token bucket that holds two datagrams; its queue is full when a datagram would
  have to wait longer than ``queue_ms``, and a datagram that finds it full is dropped;
- the delay line holds it for half the round-trip time, plus jitter. Order is kept.

Times of departure are computed, not measured, so errors do not add up. A datagram is handed on
within about a millisecond of its time, which is as fine as the event loop's timers are.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from quicferry.io import DatagramLink
from quicferry.transport import NetworkAddress

Forward = Callable[[bytes, NetworkAddress], None]
"""Takes a datagram and the server's address: its destination, or its source on the way back."""

BUCKET_BYTES = 3000
SHORTEST_QUEUE_BYTES = 24_000
TIMER_GRAIN = 0.0005
"""Half of epoll's resolution, which rounds up: so timers are set, and fire, that much early."""


@dataclass(frozen=True)
class PathSpec:
    """What a path between a client and a server address does to datagrams.

    Attributes:
        rtt_ms: round-trip time; each direction delays by half of it.
        rate_mbit: capacity of each direction in Mbit/s; None for no limit.
        loss_percent: share of the datagrams that are lost in each direction.
        queue_ms: longest time that a datagram waits for the bottleneck before it is dropped; None
            for the round-trip time, and not less than twenty datagrams take.
        jitter_ms: each direction adds a uniformly distributed delay of up to this.
        seed: of losses and jitter.
    """

    rtt_ms: float = 0.0
    rate_mbit: float | None = None
    loss_percent: float = 0.0
    queue_ms: float | None = None
    jitter_ms: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rtt_ms, self.queue_ms or 0, self.jitter_ms) < 0:
            raise ValueError("the times of a path cannot be negative")
        if not 0 <= self.loss_percent <= 100:
            raise ValueError("the loss of a path is between 0 and 100 percent")
        if self.rate_mbit is not None and self.rate_mbit <= 0:
            raise ValueError("the rate of a path must be positive")

    def with_seed(self, seed: int) -> PathSpec:
        """Return the same path with other losses and jitter."""
        return replace(self, seed=seed)

    @property
    def queue_seconds(self) -> float:
        """How long a datagram waits for the bottleneck at most."""
        if self.queue_ms is not None:
            return self.queue_ms / 1000
        return max(self.rtt_ms / 1000, SHORTEST_QUEUE_BYTES * self.seconds_per_byte)

    @property
    def seconds_per_byte(self) -> float:
        """How long the bottleneck takes for a byte; 0 where there is none."""
        return 8e-6 / self.rate_mbit if self.rate_mbit else 0.0

    @property
    def capacity_bytes(self) -> int | None:
        """How much can be under way in one direction before something is dropped; None if any."""
        if not self.rate_mbit:
            return None
        return int((self.rtt_ms / 1000 + self.queue_seconds) / self.seconds_per_byte)

    @property
    def is_transparent(self) -> bool:
        """Whether datagrams pass unchanged and at once."""
        return not (self.rtt_ms or self.rate_mbit or self.loss_percent or self.jitter_ms)


class Shaper:
    """One direction of a path, as a computation: when does a datagram come out, if it does?"""

    def __init__(self, spec: PathSpec, rng: random.Random) -> None:
        self._spec = spec
        self._rng = rng
        self._seconds_per_byte = spec.seconds_per_byte
        self._queue = spec.queue_seconds
        self._bottleneck_free_at = float("-inf")
        self._last_arrival = float("-inf")

    def arrival(self, size: int, now: float) -> float | None:
        """Return when a datagram of ``size`` bytes sent ``now`` arrives; None when it is lost."""
        if self._rng.random() * 100 < self._spec.loss_percent:
            return None
        departure = now
        if self._seconds_per_byte:
            saved = now - BUCKET_BYTES * self._seconds_per_byte
            free_at = max(self._bottleneck_free_at, saved) + size * self._seconds_per_byte
            departure = max(now, free_at)
            if departure - now > self._queue:
                return None
            self._bottleneck_free_at = free_at
        delay = self._spec.rtt_ms / 2 + self._rng.uniform(0, self._spec.jitter_ms)
        self._last_arrival = max(self._last_arrival, departure + delay / 1000)
        return self._last_arrival


class _DelayLine:
    """A shaper, and the datagrams that are on their way through it."""

    def __init__(self, shaper: Shaper, forward: Forward) -> None:
        self._shaper = shaper
        self._forward = forward
        self._under_way: deque[tuple[float, bytes, NetworkAddress]] = deque()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def put(self, data: bytes, address: NetworkAddress) -> None:
        arrival = self._shaper.arrival(len(data), self._loop.time())
        if arrival is not None:
            self._under_way.append((arrival, data, address))
            self._arm()

    def _arm(self) -> None:
        if self._timer is None and self._under_way:
            due = self._under_way[0][0] - TIMER_GRAIN
            self._timer = self._loop.call_at(due, self._deliver)

    def _deliver(self) -> None:
        self._timer = None
        horizon = self._loop.time() + TIMER_GRAIN
        try:
            while self._under_way and self._under_way[0][0] <= horizon:
                _, data, address = self._under_way.popleft()
                self._forward(data, address)
        finally:
            self._arm()


class EmulatedNetwork:
    """The paths between one client and the addresses of its server.

    Hand :meth:`wrap` to ``quicferry.connect(wrap_transport=...)``.

    Args:
        paths: The path to each server address.
        default: The path to every other address.
    """

    def __init__(
        self, paths: Mapping[NetworkAddress, PathSpec], default: PathSpec | None = None
    ) -> None:
        self._paths = dict(paths)
        self._default = default or PathSpec()

    def wrap(self, inner: DatagramLink) -> DatagramLink:
        """Return `inner` with the paths between its two ends."""
        return _EmulatedLink(
            send=_Direction(self._spec_of, "up", inner.send),
            deliver=_Direction(self._spec_of, "down", inner.deliver),
        )

    def _spec_of(self, address: NetworkAddress) -> PathSpec:
        return self._paths.get(address, self._default)


class _Direction:
    """All paths in one direction; each comes into being with its first datagram."""

    def __init__(
        self, spec_of: Callable[[NetworkAddress], PathSpec], name: str, forward: Forward
    ) -> None:
        self._spec_of = spec_of
        self._name = name
        self._forward = forward
        self._paths: dict[NetworkAddress, Forward] = {}

    def __call__(self, data: bytes, addr: NetworkAddress) -> None:
        if addr not in self._paths:
            self._paths[addr] = self._path_to(addr)
        self._paths[addr](data, addr)

    def _path_to(self, address: NetworkAddress) -> Forward:
        spec = self._spec_of(address)
        if spec.is_transparent:
            return self._forward
        rng = random.Random(f"{spec.seed} {self._name} {address}")
        return _DelayLine(Shaper(spec, rng), self._forward).put


class _EmulatedLink:
    def __init__(self, send: _Direction, deliver: _Direction) -> None:
        self._send = send
        self._deliver = deliver

    def send(self, data: bytes, addr: NetworkAddress) -> None:
        self._send(data, addr)

    def deliver(self, data: bytes, addr: NetworkAddress) -> None:
        self._deliver(data, addr)
