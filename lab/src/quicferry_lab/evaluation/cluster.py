"""Carries out runs on a cluster of Dask's: processes of this machine, or workers elsewhere.

Only a few runs more than there are workers are handed to the scheduler at a time, so it makes no
difference to it how many there are in all. A run whose worker dies is tried again by Dask, on
another one; after a few deaths its result is a failure that says so. Whatever else goes wrong with
a worker is no finding about a run, and ends the sweep: what was found until then is kept, and the
same command goes on.

Workers must have this very quicferry: its version and aioquic's are compared with theirs at the
start, and each worker compares the source with its own before it carries out a run.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import signal
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import cache
from multiprocessing import resource_tracker
from typing import Any

import dask
from distributed import Client, Future, KilledWorker, LocalCluster, wait

from quicferry_lab.evaluation.perform import perform
from quicferry_lab.evaluation.result import Result
from quicferry_lab.evaluation.run import Run
from quicferry_lab.evaluation.sweep import SweepError
from quicferry_lab.hosts.rootfs import packages

_COMPARED = ("quicferry", "aioquic")
_SOURCES = (
    *("quicferry/protocol", "quicferry/transport", "quicferry/server"),
    *("quicferry_lab/simulation", "quicferry_lab/evaluation/simulated"),
    *("quicferry_lab/evaluation/workload.py", "quicferry_lab/evaluation/run.py"),
    "quicferry_lab/evaluation/data",
)
"""Folders and files that the outcome of a run in the simulation depends on."""

_CONNECT_LIMIT = 10.0
_START_LIMIT = 120.0
_LOOK_INTERVAL = 5.0
_NO_WORKERS_LIMIT = 120.0
_UNDER_WAY = 2
"""Runs for each of the workers' threads: one that is carried out, and one to go on with."""

_QUIET = logging.CRITICAL + 1
_OF_LOCAL_CLUSTER = {
    # There is no dashboard; what would be served in its place is not needed either.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    # A worker is given a run when it can begin: a run must not be blamed for its neighbour's death.
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.gil.enabled": False,
    "logging": {"distributed": "critical"},
}

_TURN = threading.Lock()
"""Held by the run that a process carries out: several threads would only get into one another's
way, and the simulation is for one."""


class OtherSourceError(SweepError):
    """A worker has another quicferry than who wants to have runs carried out."""


@contextmanager
def local_cluster(workers: int) -> Iterator[Client]:
    """Start processes on this machine, which end with the context.

    They listen at the loopback address only, and talk to who has a certificate that was made for
    them: whoever may give them tasks may do anything as their user.

    Args:
        workers: How many processes, of one thread each.
    """
    with (
        tempfile.TemporaryDirectory(prefix="quicferry-sweep-") as folder,
        dask.config.set({**_OF_LOCAL_CLUSTER, "temporary-directory": folder}),
        _scheduler(folder) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        cluster.scale(workers)
        try:
            client.wait_for_workers(workers, timeout=_START_LIMIT)
        except TimeoutError:
            raise SweepError(
                f"{workers} processes have not started within {_START_LIMIT:g} s; "
                "use fewer --workers, or let the machine do nothing else"
            ) from None
        yield client


@contextmanager
def existing_cluster(address: str) -> Iterator[Client]:
    """Connect to a cluster that is there already, and stays.

    Args:
        address: Its scheduler's, for example ``"tcp://192.0.2.7:8786"``.

    Raises:
        SweepError: It cannot be reached, or has another quicferry.
    """
    with _silence():
        try:
            client = Client(address, timeout=_CONNECT_LIMIT, set_as_default=False)
        except (OSError, ValueError) as exc:
            raise SweepError(f"no scheduler of Dask's can be reached at {address}: {exc}") from exc
        with client:
            versions: Any = client.get_versions(packages=list(_COMPARED))
            _compare(versions)
            yield client


def perform_on(client: Client, runs: Sequence[Run]) -> Generator[Result]:
    """Carry out runs on a cluster, and yield each result as soon as it is there.

    When the iterator is closed, or interrupted, runs that have not begun never do.

    Raises:
        SweepError: The cluster, or a worker of it, is not able to go on.
    """
    waiting = iter(runs)
    under_way: dict[Future[Any], Run] = {}
    threads = _Threads(client)
    source = source_digest()
    try:
        while True:
            room = max(1, threads.count() * _UNDER_WAY) - len(under_way)
            for run in itertools.islice(waiting, max(0, room)):
                # A key with the source in it: results of another one are not this run's.
                key = f"run-{run.key}-{source}"
                under_way[client.submit(_perform_here, run, source, key=key)] = run
            if not under_way:
                return
            for future in _next(client, under_way):
                yield _result(future, under_way.pop(future))
    except CancelledError as exc:
        raise SweepError(f"the cluster at {threads.address} has ended") from exc
    finally:
        if under_way and client.status == "running":
            client.cancel(list(under_way), force=True)


def _scheduler(folder: str) -> LocalCluster:
    """Return a cluster that has no worker yet.

    Args:
        folder: Where workers may write.
    """
    # Ctrl-C reaches all processes of a terminal, and what ends workers is the one that has started
    # them. They inherit this from the thread that starts them, which is begun here. The tracker
    # would begin with the first of them, and then unblock the signal in that thread.
    resource_tracker.ensure_running()
    usual = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return LocalCluster(
            n_workers=0,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address=None,
            # Limits of Dask's would pause workers for good; what the machine has is the limit.
            memory_limit=0,
            local_directory=folder,
            security=True,
            silence_logs=_QUIET,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, usual)


class _Threads:
    """How many threads the workers have, which may come and go.

    Args:
        client: Of the cluster.
    """

    def __init__(self, client: Client) -> None:
        scheduler: Any = client.scheduler
        self.address = scheduler.address
        self._client = client
        self._count = 0
        self._looked_at = float("-inf")
        self._gone_at: float | None = None

    def count(self) -> int:
        """Return the number.

        Raises:
            SweepError: There has been none for some time.
        """
        now = time.monotonic()
        if now - self._looked_at > _LOOK_INTERVAL:
            self._count = sum(self._client.nthreads().values())
            self._looked_at = now
            if self._count:
                self._gone_at = None
            elif self._gone_at is None:
                self._gone_at = now
            elif now - self._gone_at > _NO_WORKERS_LIMIT:
                raise SweepError(
                    f"the cluster at {self.address} has had no worker for {_NO_WORKERS_LIMIT:g} s; "
                    "start some, and run the same command again to go on"
                )
        return self._count


def _next(client: Client, under_way: dict[Future[Any], Run]) -> list[Future[Any]]:
    """Return those that are done, as soon as one is, or none after some time."""
    try:
        with client.as_current():
            done = wait(list(under_way), timeout=_LOOK_INTERVAL, return_when="FIRST_COMPLETED").done
    except TimeoutError:
        return []
    return [future for future in under_way if future in done]


def _result(future: Future[Any], run: Run) -> Result:
    """Return what a run has found.

    Raises:
        SweepError: It was not carried out, for a reason that is not its own.
    """
    try:
        found = future.result()
    except KilledWorker as exc:
        deaths = exc.allowed_failures + 1
        problem = f"{KilledWorker.__name__}: {deaths} workers died while they carried it out"
        return Result(run, problems=(problem,))
    except (SweepError, CancelledError):
        raise
    except Exception as exc:
        raise SweepError(
            f"a worker cannot carry out runs: {type(exc).__name__}: {exc}; "
            "all workers must have this quicferry"
        ) from exc
    assert isinstance(found, Result), "that is what a run returns"
    return found


def _perform_here(run: Run, source: str) -> Result:
    """Carry out a run in a worker."""
    if source != source_digest():
        raise OtherSourceError(
            "a worker has another source of quicferry than this one; install the same everywhere"
        )
    with _TURN:
        return perform(run)


def _compare(versions: dict[str, Any]) -> None:
    """Check what the scheduler and the workers have.

    Raises:
        SweepError: It is not what is here.
    """
    here = versions["client"]["packages"]
    others = {"the scheduler": versions["scheduler"]}
    others |= {f"the worker {address}": found for address, found in versions["workers"].items()}
    for who, found in others.items():
        for package in _COMPARED:
            there = found["packages"].get(package)
            if there != here[package]:
                raise SweepError(
                    f"{who} has {package} {there or 'not at all'}, and this machine "
                    f"{here[package]}; install the same everywhere"
                )


@cache
def source_digest() -> str:
    """Return a digest of all of quicferry's source that a run in the simulation depends on."""
    folders = {package.name: package.parent for package in packages()}
    digest = hashlib.sha256()
    for source in _SOURCES:
        folder = folders[source.partition("/")[0]]
        place = folder / source
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.suffix in (".py", ".csv"):
                digest.update(f"{path.relative_to(folder)} ".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _silence() -> Iterator[None]:
    """Have Dask log nothing: what matters comes as an exception."""
    logger = logging.getLogger("distributed")
    usual = logger.level
    logger.setLevel(_QUIET)
    try:
        yield
    finally:
        logger.setLevel(usual)
