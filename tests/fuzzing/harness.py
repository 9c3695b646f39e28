"""One input for one entry point: what must not come of it, and how that is measured.

A target plays an input in steps. Each step may take 100 ms of this thread's processor time, which
does not depend on how busy the machine is; what looks slow is tried again, because the first time
may have filled a cache. Then the input is played once more, to see how much memory it takes.
"""

from __future__ import annotations

import gc
import logging
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

STEP_LIMIT = 0.1
"""Seconds of processor time for each step."""
HANG_LIMIT = 5.0
"""Seconds of processor time after which a step is ended by force."""
MEMORY_LIMIT = 16 << 20
"""Bytes that an input may take at most, all steps together."""
TRIES = 3
"""How often a step may be slow, on the whole, before it is believed to be."""


class FindingError(AssertionError):
    """An input has done what none may do."""


Steps = Iterator[None]
"""The first step is the preparation, which is not measured. What is raised is a finding."""


@dataclass(frozen=True)
class Target:
    """An entry point of the product.

    Attributes:
        name: What it is called on the command line.
        inputs: What is tried.
        play: Plays an input; errors that are documented are none of its own.
        memory: Bytes that an input may take.
    """

    name: str
    inputs: st.SearchStrategy[Any]
    play: Callable[[Any], Steps]
    memory: int = MEMORY_LIMIT


@dataclass
class Cost:
    """What inputs have taken.

    Attributes:
        seconds: Processor time of the slowest step.
        memory: Bytes, of the largest input.
    """

    seconds: float = 0.0
    memory: int = 0


def check(target: Target, value: Any, most: Cost | None = None) -> None:
    """Play an input.

    Args:
        target: The entry point.
        value: The input.
        most: Is raised to what the input takes.

    Raises:
        FindingError: If it takes too long, or too much memory, or if an error was logged.
        Exception: Whatever comes out that is not documented.
    """
    for _ in range(TRIES):
        slowest = _slowest_step(target, value)
        if slowest <= STEP_LIMIT:
            break
    else:
        raise FindingError(f"{target.name}: a step takes {slowest * 1000:.0f} ms")
    used = _memory(target, value)
    if used > target.memory:
        raise FindingError(f"{target.name}: the input takes {used / 1e6:.1f} MB")
    if most is not None:
        most.seconds, most.memory = max(most.seconds, slowest), max(most.memory, used)


def explore(target: Target, number: int, examples: int) -> Cost:
    """Try inputs that follow from a seed; raises what the smallest finding raises."""
    most = Cost()

    @seed(number)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )
    @given(target.inputs)
    def explore_target(value: Any) -> None:
        check(target, value, most)

    explore_target()
    return most


def _slowest_step(target: Target, value: Any) -> float:
    slowest = 0.0
    with _errors_in_the_log(), closing(_started(target, value)) as steps, _no_collection():
        while True:
            began_at = time.thread_time()
            with _ended_by_force():
                is_over = next(steps, _OVER) is _OVER
            slowest = max(slowest, time.thread_time() - began_at)
            if is_over:
                return slowest


_OVER = object()


def _memory(target: Target, value: Any) -> int:
    with closing(_started(target, value)) as steps:
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for _ in steps:
                pass
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    return most - before


def _started(target: Target, value: Any) -> Any:
    steps = target.play(value)
    next(steps)
    return steps


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage of the tests themselves out of the time of a step."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect(1)


@contextmanager
def _ended_by_force() -> Iterator[None]:
    def expired(*_: object) -> None:
        raise FindingError(f"a step takes more than {HANG_LIMIT} s")

    previous = signal.signal(signal.SIGPROF, expired)
    signal.setitimer(signal.ITIMER_PROF, HANG_LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record)


@contextmanager
def _errors_in_the_log() -> Iterator[None]:
    """What an event loop, a server or a command logs as an error is one that nobody foresaw."""
    errors = _Errors()
    root = logging.getLogger()
    root.addHandler(errors)
    try:
        yield
    finally:
        root.removeHandler(errors)
    for record in errors.found:
        cause = record.exc_info[1] if record.exc_info else None
        raise FindingError(f"{record.name} logs: {record.getMessage()}") from cause
