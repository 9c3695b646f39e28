"""Carries out runs, one after another or several at a time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from quicferry.protocol import QuicferryError
from quicferry_lab.evaluation.result import Result, failure
from quicferry_lab.evaluation.run import Backend, Run

if TYPE_CHECKING:
    from quicferry_lab.evaluation.store import Store


class PerformanceError(QuicferryError):
    """Runs cannot go on being carried out."""


def perform(run: Run) -> Result:
    """Carry out a run on its backend; a failure is a result as well."""
    try:
        return _perform(run)
    except Exception as exc:  # whatever a run brings to light is a finding
        return failure(run, exc)


def perform_all(runs: Sequence[Run], jobs: int) -> Generator[Result]:
    """Carry out runs, and yield each result as soon as it is there.

    When the generator is closed, or interrupted, the runs that are under way come to their end, and
    no other begins.

    Args:
        runs: What to do, all on one backend.
        jobs: How many at a time, each in a process of its own.

    Raises:
        PerformanceError: A process has died.
    """
    # Not by fork: there are threads in this process.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_begin, initargs=(runs[0].backend,)
    )
    waiting = iter(runs)
    under_way: set[Future[Result]] = set()
    try:
        # No more than there are processes: what was given to the pool cannot be taken back.
        under_way.update(executor.submit(perform, run) for run in itertools.islice(waiting, jobs))
        while under_way:
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            under_way.update(
                executor.submit(perform, run) for run in itertools.islice(waiting, len(done))
            )
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise PerformanceError(
            "a process that carried out runs was killed; run the same command again to go on, "
            "perhaps with fewer --jobs"
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def keep_missing(
    store: Store,
    runs: Sequence[Run],
    perform_these: Callable[[Sequence[Run]], Generator[Result]],
    tell: Callable[[Result], None],
) -> None:
    """Carry out the runs whose results a store does not have, and complete the store.

    Args:
        store: Where results go; it keeps them also if this is interrupted.
        runs: All runs.
        perform_these: Carries out the runs that it is given, and yields their results.
        tell: Called with each result.
    """
    finished = store.finished()
    missing = [run for run in runs if run.key not in finished]
    if missing:
        with contextlib.closing(perform_these(missing)) as results:
            for result in results:
                store.add(result)
                tell(result)
    store.complete()


def _perform(run: Run) -> Result:
    # Each backend needs something that the others, and machines that have only them, do without.
    match run.backend:
        case Backend.SIM:
            from quicferry_lab.evaluation import simulated

            return simulated.carry_out(run)
        case Backend.NETNS:
            from quicferry_lab.evaluation import netns

            return _run(netns.carry_out(run))
        case Backend.CONTAINERS:
            from quicferry_lab.evaluation import in_containers

            return _run(in_containers.carry_out(run))


def _run(backend: Coroutine[None, None, Result]) -> Result:
    """Carry out a run that cleans up after itself when it is interrupted."""
    if threading.current_thread() is not threading.main_thread():
        return asyncio.run(backend)
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return asyncio.run(backend)
    finally:
        signal.signal(signal.SIGINT, usual)


def _begin(backend: Backend) -> None:
    """Prepare a process that will carry out runs."""
    # Ctrl-C reaches it as well. In virtual time there is nothing to clean up; elsewhere a run ends
    # by itself, and who waits for one need not say that it was interrupted.
    signal.signal(signal.SIGINT, signal.SIG_DFL if backend is Backend.SIM else signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)
