"""The demo as an orchestrator sees it: processes, a load, and relocations through a socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from quicferry_lab.demo.movers import RELOCATION_TIMEOUT, START_TIMEOUT, Stage, limited, make_mover
from quicferry_lab.demo.processes import Child, DemoError, child, while_watched
from quicferry_lab.demo.results import ClientProgress, ClientReport, DemoResult
from quicferry_lab.demo.settings import ClientPlan, Settings, WorkerSettings, share_among_workers

FINISH_TIMEOUT = 30.0


class Observer(Protocol):
    """Is told how the demo goes on; the display is one."""

    def note(self, text: str) -> None:
        """Take note of something that happened."""

    def progress(self, progress: ClientProgress) -> None:
        """Take note of how a client is doing."""


async def run_demo(settings: Settings, observer: Observer) -> DemoResult:
    """Start everything, relocate the server under load, and return what was found out.

    No process outlives this call, however it ends.

    Args:
        settings: What to do.
        observer: Is told how it goes.

    Raises:
        DemoError: A process died, or something took far too long.
        QuicferryError: The server refused what it was told.
    """
    limit = START_TIMEOUT + settings.duration + FINISH_TIMEOUT
    limit += settings.relocations * RELOCATION_TIMEOUT
    try:
        async with asyncio.timeout(limit), AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quicferry-")))
            return await _Demo(settings, observer, folder, stack).run()
    except TimeoutError:
        raise DemoError(
            f"the demo was not over after {limit:.0f} s; try fewer clients or a faster path"
        ) from None


class _Demo:
    def __init__(
        self, settings: Settings, observer: Observer, folder: Path, stack: AsyncExitStack
    ) -> None:
        self._settings = settings
        self._observer = observer
        self._folder = folder
        self._stack = stack
        port = _free_port((settings.source, settings.destination))
        tell = partial(self._tell_workers, "probe")
        self._stage = Stage(settings, port, folder, stack, observer.note, tell)
        self._mover = make_mover(self._stage)
        self._plans = settings.plans()
        self._connected: set[int] = set()
        self._all_connected = asyncio.Event()
        self._workers: list[Child] = []
        self._reports: dict[int, ClientReport] = {}
        self._all_reported = asyncio.Event()

    async def run(self) -> DemoResult:
        watchers = list(await self._mover.start())
        for plans in share_among_workers(self._plans):
            worker = await self._start_worker(plans)
            self._workers.append(worker)
            watchers.append(self._watch_worker(worker, plans))
        return await while_watched(self._play(), watchers)

    # What happens, in order

    async def _play(self) -> DemoResult:
        settings = self._settings
        async with limited(START_TIMEOUT, "the clients did not all connect"):
            await self._all_connected.wait()
        self._observer.note(f"{len(self._plans)} clients are connected")
        started = time.monotonic()
        self._tell_workers("begin")
        relocations = []
        for number in range(settings.relocations):
            due = started + settings.duration * (number + 1) / (settings.relocations + 1)
            await asyncio.sleep(due - time.monotonic())
            async with limited(RELOCATION_TIMEOUT, "the relocation did not complete"):
                relocations.append(await self._mover.relocate(number))
        await asyncio.sleep(started + settings.duration - time.monotonic())
        self._tell_workers("stop")
        self._observer.note("the load ends")
        async with limited(FINISH_TIMEOUT, "the clients did not finish"):
            await self._all_reported.wait()
        return DemoResult(
            technique=settings.technique,
            started=started,
            relocations=tuple(relocations),
            planned_relocations=settings.relocations,
            clients=tuple((plan, self._reports[plan.id]) for plan in self._plans),
        )

    # The processes

    async def _start_worker(self, plans: tuple[ClientPlan, ...]) -> Child:
        settings = self._settings
        numbers = ", ".join(str(plan.id) for plan in plans)
        worker = await self._stack.enter_async_context(
            child(f"worker with clients {numbers}", "quicferry_lab.demo.worker")
        )
        own = WorkerSettings(
            server=self._stage.ends(0)[0],
            ca_file=str(self._stage.certificate),
            clients=plans,
            paths={
                self._stage.ends(0)[0]: settings.before,
                self._stage.ends(0)[1]: settings.after,
            },
            scheduler=settings.scheduler.value,
            qlog=None if settings.qlog is None else str(settings.qlog),
            last_server=self._stage.ends(settings.relocations - 1)[1],
        )
        worker.say(**own.encode())
        return worker

    def _tell_workers(self, command: str) -> None:
        for worker in self._workers:
            worker.say(do=command)

    async def _watch_worker(self, worker: Child, plans: tuple[ClientPlan, ...]) -> None:
        async for message in worker.messages():
            self._heard(message)
        if any(plan.id not in self._reports for plan in plans):
            raise await worker.unexpected_end()

    def _heard(self, message: dict[str, Any]) -> None:
        if message["event"] == "progress":
            for progress in message["clients"]:
                self._observer.progress(ClientProgress(**progress))
        elif message["event"] == "connected":
            self._connected.add(message["client"])
            if len(self._connected) == len(self._plans):
                self._all_connected.set()
        elif message["event"] == "report":
            report = ClientReport.decode(message["client"])
            self._reports[report.id] = report
            if len(self._reports) == len(self._plans):
                self._all_reported.set()


def _free_port(hosts: tuple[str, ...]) -> int:
    """Return a UDP port that is free at every one of the hosts."""
    for _ in range(100):
        with contextlib.ExitStack() as stack:
            port = 0
            try:
                for host in hosts:
                    probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    probe.bind((host, port))
                    port = probe.getsockname()[1]
            except OSError as exc:
                error = exc
                continue
            return port
    raise DemoError(f"cannot bind the same port at {' and '.join(hosts)}: {error}")
