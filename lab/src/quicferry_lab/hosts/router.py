"""The user-space router: one process that carries the packets of all shaped links of a laboratory.

Each link has an interface (TUN) at either host. A packet that is sent into one is read here, and a
`Shaper`, one for each direction, says when it comes out at the other, if it does; until then it
waits in a queue that is ordered by that time. Times of arrival are computed from the time at which
a packet was read, so errors do not add up.

There is one thread and no event loop: it reads what has been sent, delivers what is due, and sleeps
until the next packet is due or sent. `select` sleeps as exactly as the kernel's timers are; the
timers of an event loop have a grain of a millisecond, which is all the error that is allowed.

It is told what to do on its standard input, a JSON object on a line, and answers each with one on
its standard output. It ends with its input.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import heapq
import itertools
import json
import os
import random
import select
import time
from collections.abc import Iterator
from typing import Any

from quicferry_lab.emulation import PathSpec, Shaper
from quicferry_lab.hosts.link import MTU
from quicferry_lab.hosts.tun import HEADER_BYTES, open_tun

LARGEST_PACKET = MTU + HEADER_BYTES
_BATCH = 64
"""Packets that are read from one interface before the others have their turn."""
_GRAIN = 0.0001
"""Seconds that a packet may be early: about what it takes to wake up."""
_IPV4 = 4
_PRIORITY = 1
_PR_SET_TIMERSLACK = 29
_DEVICE_GONE = frozenset({errno.EBADF, errno.EBADFD, errno.ENODEV})


class Direction:
    """One direction of a link: what comes in, and when it goes out where.

    Args:
        name: Decides, with the path's seed, which packets are lost.
        path: What happens to packets.
        target: The descriptor of the interface at which they come out.
    """

    def __init__(self, name: str, path: PathSpec, target: int) -> None:
        self.target = target
        self.is_cut = False
        self._name = name
        self.shape(path)

    def shape(self, path: PathSpec) -> None:
        """Change what happens to packets from now on."""
        self._arrival = Shaper(path, random.Random(f"{path.seed} {self._name}")).arrival

    def arrival(self, packet: bytes, now: float) -> float | None:
        """Return when a packet that was sent now arrives; None if it is lost."""
        # IPv6 is not used; what the kernel sends there by itself would make losses unrepeatable.
        if self.is_cut or packet[HEADER_BYTES] >> 4 != _IPV4:
            return None
        return self._arrival(len(packet) - HEADER_BYTES, now)


class Schedule:
    """The packets that are under way, by their time of arrival."""

    def __init__(self) -> None:
        self._queue: list[tuple[float, int, Direction, bytes]] = []
        self._numbers = itertools.count()

    def send(self, direction: Direction, packet: bytes, now: float) -> None:
        """Take a packet in that was sent now."""
        arrival = direction.arrival(packet, now)
        if arrival is not None:
            heapq.heappush(self._queue, (arrival, next(self._numbers), direction, packet))

    def due(self, now: float) -> Iterator[tuple[int, bytes]]:
        """Yield what has to be delivered by now: the interface's descriptor, and the packet."""
        queue = self._queue
        while queue and queue[0][0] <= now:
            _, _, direction, packet = heapq.heappop(queue)
            if not direction.is_cut:
                yield direction.target, packet

    def patience(self, now: float) -> float | None:
        """Return how many seconds there are to the next delivery; None if nothing is under way."""
        return max(0.0, self._queue[0][0] - now) if self._queue else None


class Router:
    """All links of a laboratory."""

    def __init__(self) -> None:
        self._schedule = Schedule()
        self._directions: dict[int, Direction] = {}
        self._links: dict[str, tuple[Direction, Direction]] = {}

    def run(self, orders: int, answers: int) -> None:
        """Carry packets until there are no more orders to come.

        Args:
            orders: The descriptor that orders are read from.
            answers: The descriptor that answers are written to.
        """
        unread = b""
        while True:
            patience = self._schedule.patience(time.monotonic())
            readable, _, _ = select.select([orders, *self._directions], (), (), patience)
            self._deliver()
            for descriptor in readable:
                if descriptor != orders:
                    self._read(descriptor)
            self._deliver()
            if orders in readable:
                received = os.read(orders, 65_536)
                if not received:
                    return
                *lines, unread = (unread + received).split(b"\n")
                for line in lines:
                    os.write(answers, json.dumps(self._obey(json.loads(line))).encode() + b"\n")

    def _read(self, descriptor: int) -> None:
        direction = self._directions[descriptor]
        for _ in range(_BATCH):
            try:
                packet = os.read(descriptor, LARGEST_PACKET)
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno in _DEVICE_GONE:
                    # Its host has ended. Nothing more comes from there.
                    del self._directions[descriptor]
                return
            self._schedule.send(direction, packet, time.monotonic())

    def _deliver(self) -> None:
        for target, packet in self._schedule.due(time.monotonic() + _GRAIN):
            # An interface that is down, full or gone loses packets, as any does.
            with contextlib.suppress(OSError):
                os.write(target, packet)

    def _obey(self, order: dict[str, Any]) -> dict[str, str]:
        try:
            match order["do"]:
                case "add":
                    self._add(order["link"], order["ends"], _paths(order))
                case "set":
                    for direction, path in zip(
                        self._links[order["link"]], _paths(order), strict=True
                    ):
                        direction.shape(path)
                case "cut" | "restore" as change:
                    for direction in self._links[order["link"]]:
                        direction.is_cut = change == "cut"
        except (OSError, ValueError) as exc:
            return {"error": str(exc)}
        return {}

    def _add(self, link: str, ends: list[tuple[str, int]], paths: list[PathSpec]) -> None:
        (near_name, near_pid), (far_name, far_pid) = ends
        near = open_tun(near_name, near_pid)
        try:
            far = open_tun(far_name, far_pid)
        except OSError:
            os.close(near)
            raise
        forth = Direction(f"{link} forth", paths[0], far)
        back = Direction(f"{link} back", paths[1], near)
        self._directions |= {near: forth, far: back}
        self._links[link] = forth, back


def _paths(order: dict[str, Any]) -> list[PathSpec]:
    return [PathSpec(**path) for path in order["paths"]]


def _be_punctual() -> None:
    """Ask the kernel to wake this process exactly, and before others; do without if it refuses."""
    gc.disable()  # nothing here is cyclic
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))


if __name__ == "__main__":
    _be_punctual()
    os.write(1, b"{}\n")
    Router().run(0, 1)
