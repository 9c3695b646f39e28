"""Plays simulated migrations for as long as one likes: `quicferry soak migrations`.

Each seed is one scenario (see `quicferry_lab.simulation.scenario`). A seed that fails is printed
with its scenario and the command that plays it again; ``--trace`` then shows what both sides did.
"""

from __future__ import annotations

import gc
import itertools
import os
import pprint
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from aioquic.quic.logger import QuicLogger

from quicferry_lab.memory import resident_memory
from quicferry_lab.simulation.errors import SimulationError
from quicferry_lab.simulation.play import Journal, play
from quicferry_lab.simulation.scenario import Peer, draw
from quicferry_lab.simulation.trace import lines

CHUNK = 25
WARM_UP_CHUNKS = 8
ALLOWED_GROWTH_BYTES = 32 * 1024 * 1024
"""What a worker's memory may grow by after its first chunks, which fill caches and the heap."""


@dataclass(frozen=True)
class Failure:
    """A seed that did not pass."""

    seed: int
    error: str
    peer: Peer = Peer.OURS

    def __str__(self) -> str:
        peer = "" if self.peer is Peer.OURS else f"--peer {self.peer.value} "
        return (
            f"seed {self.seed} failed: {self.error}\n"
            f"{pprint.pformat(draw(self.seed, self.peer), width=100, indent=1)}\n"
            f"to play it again: quicferry soak migrations --seeds {self.seed}..{self.seed} "
            f"{peer}--trace"
        )


@dataclass(frozen=True)
class Result:
    """What a worker reports about a chunk of seeds.

    Attributes:
        slowest: The longest migration, from network switch to the client's completion, in seconds
            of virtual time, and its seed.
    """

    seeds: int
    migrations: int
    false_alarms: int
    exchanges: int
    virtual_seconds: float
    slowest: tuple[float, int]
    failures: tuple[Failure, ...]
    process: int
    memory: int


def play_seeds(seeds: Iterable[int], peer: Peer = Peer.OURS) -> Result:
    """Play these seeds, and go on after a failure."""
    count = migrations = false_alarms = exchanges = 0
    duration = 0.0
    slowest = (0.0, -1)
    failures = []
    for seed in seeds:
        count += 1
        try:
            outcome = play(draw(seed, peer))
        except Exception as exc:  # whatever a seed brings to light is a finding
            where = traceback.extract_tb(exc.__traceback__)[-1]
            error = f"{type(exc).__name__}: {exc} ({Path(where.filename).name}:{where.lineno})"
            failures.append(Failure(seed, error, peer))
            continue
        migrations += outcome.migrations
        false_alarms += outcome.false_alarms
        exchanges += outcome.exchanges
        duration += outcome.duration
        slowest = max(slowest, (outcome.slowest, seed))
    gc.collect()
    return Result(
        count,
        migrations,
        false_alarms,
        exchanges,
        duration,
        slowest,
        tuple(failures),
        os.getpid(),
        resident_memory(),
    )


def parse_seeds(text: str) -> Iterable[int]:
    """The seeds that ``N`` (0 to N - 1), ``A..B`` (both included) or ``forever`` stand for.

    Raises:
        ValueError: If it is none of these.
    """
    if text == "forever":
        return itertools.count()
    first, dots, last = text.partition("..")
    try:
        return range(int(first), int(last) + 1) if dots else range(int(first))
    except ValueError:
        raise ValueError("give N, A..B, or forever") from None


def trace(seed: int, peer: Peer = Peer.OURS) -> None:
    """Play one seed and print what both sides log, in virtual time."""
    logger = QuicLogger()
    journal: Journal = []
    try:
        outcome = str(play(draw(seed, peer), logger, journal))
    except SimulationError as exc:
        outcome = f"seed {seed} failed: {exc}"
    for line in lines(logger, journal):
        print(line)
    print(outcome)


class Memory:
    """Watches that no worker's memory grows."""

    def __init__(self) -> None:
        self._chunks: dict[int, int] = {}
        self._baseline: dict[int, int] = {}

    def growth(self, result: Result) -> int:
        """Bytes that the worker has grown by since it was warm."""
        chunks = self._chunks[result.process] = self._chunks.get(result.process, 0) + 1
        if chunks <= WARM_UP_CHUNKS:
            self._baseline[result.process] = result.memory
        return result.memory - self._baseline[result.process]


def report(results: Iterable[Result]) -> int:
    """Print what the workers report, as it comes; return the exit code."""
    start = time.monotonic()
    memory = Memory()
    played = migrations = failed = 0
    virtual = 0.0
    slowest = (0.0, -1)
    worst_growth = 0
    for result in results:
        played += result.seeds
        migrations += result.migrations
        virtual += result.virtual_seconds
        slowest = max(slowest, result.slowest)
        failed += len(result.failures)
        for failure in result.failures:
            print(failure, flush=True)
        worst_growth = max(worst_growth, memory.growth(result))
        elapsed = time.monotonic() - start
        print(
            f"{played} seeds, {migrations} migrations ({migrations / elapsed:.1f} per second), "
            f"{virtual:.0f} s of virtual time, {failed} failed, "
            f"memory {result.memory >> 20} MB",
            file=sys.stderr,
            flush=True,
        )
        if worst_growth > ALLOWED_GROWTH_BYTES:
            print(f"a worker's memory has grown by {worst_growth >> 20} MB: something leaks")
            return 1
    print(
        f"{played} seeds, {migrations} migrations, {failed} failed, "
        f"{migrations / (time.monotonic() - start):.1f} migrations per second, "
        f"the slowest took {slowest[0]:.3f} s (seed {slowest[1]}), "
        f"memory grew by {worst_growth / 1e6:.1f} MB"
    )
    return 1 if failed else 0


def _chunks(seeds: Iterable[int]) -> Iterator[list[int]]:
    iterator = iter(seeds)
    while chunk := list(itertools.islice(iterator, CHUNK)):
        yield chunk


def play_all(seeds: Iterable[int], jobs: int, peer: Peer) -> Iterator[Result]:
    """Play seeds in so many processes, and yield what these report."""
    if jobs == 1:
        yield from (play_seeds(chunk, peer) for chunk in _chunks(seeds))
        return
    with ProcessPoolExecutor(jobs) as pool:
        under_way: deque[Future[Result]] = deque()
        for chunk in _chunks(seeds):
            under_way.append(pool.submit(play_seeds, chunk, peer))
            if len(under_way) > 2 * jobs:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
