"""Runs with a server in a container, which `quicferry migrate` moves from host to host."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from quicferry.protocol import protocol_from_name
from quicferry.relocation import Compression, Step, Technique
from quicferry_lab.containers.bundle import prepare_bundle
from quicferry_lab.containers.figures import has_soft_dirty
from quicferry_lab.containers.settings import Settings
from quicferry_lab.containers.site import POOL, Site
from quicferry_lab.demo.processes import Child
from quicferry_lab.evaluation import scripts
from quicferry_lab.evaluation.move import FOLLOW_LIMIT, Move
from quicferry_lab.evaluation.netns import far_path, near_path
from quicferry_lab.evaluation.result import Result, failure
from quicferry_lab.evaluation.run import Run, Script
from quicferry_lab.evaluation.scripts import RunError, Stage
from quicferry_lab.ground import DESTINATION, SOURCE

SCRIPTS = (Script.UNDER_LOAD, Script.OVER_TIME)
"""Those that can be carried out here."""

_soft_dirty: bool | None = None
"""Whether the kernel tracks changes of memory; None if nobody has asked yet."""


async def carry_out(run: Run) -> Result:
    """Carry out a run; what fails is in its result.

    Args:
        run: What to do. It needs root, and the laboratory's system.
    """
    try:
        await _check(run)
        # A slow disk may take minutes for it, which are no part of the run's time.
        bundle_for = scripts.pool(run) or POOL
        await asyncio.to_thread(prepare_bundle, (SOURCE, DESTINATION), bundle_for)
        stage = ContainerStage(run)
    except Exception as exc:
        return failure(run, exc)
    return await scripts.carry_out(stage)


async def _check(run: Run) -> None:
    """Find out whether a run is possible here, before anything is set up.

    Raises:
        RunError: It is not.
    """
    global _soft_dirty
    if run.script not in SCRIPTS:
        raise RunError(f"the script {run.script.value} is not for containers; use --backend netns")
    technique = Technique(run.technique)
    if technique.copies_before:
        if _soft_dirty is None:
            _soft_dirty = await has_soft_dirty()
        if not _soft_dirty:
            raise RunError(
                f"{technique.value} needs a kernel that tracks changes of memory (soft-dirty)"
            )


class ContainerStage(Stage):
    """A server in a container, and an agent at the destination."""

    def __init__(self, run: Run) -> None:
        settings = Settings(
            technique=Technique(run.technique),
            protocol=protocol_from_name(run.protocol),
            memory=run.memory_mb,
            clients=run.clients,
            near=far_path(run),
            far=near_path(run),
            compression=Compression(run.compression),
            seed=run.seed,
        )
        pool = scripts.pool(run)
        self._site = Site(settings, pool) if pool else Site(settings)
        self._kept = ""
        super().__init__(run, self._site)

    async def _start_server(self) -> None:
        site, memory = self._site, self.run.memory_mb
        async with asyncio.TaskGroup() as group:
            group.create_task(site.start_server())
            group.create_task(site.start_agent(site.destination))
        if memory:
            self._kept = await site.ask(f"/memory/{memory}", of=site.source, post=True)

    def move(self) -> Move:
        """Return the relocation to the destination."""
        move = _Migration(self._site, len(self.moves) + 1, self._stack)
        self.moves.append(move)
        return move

    async def examine(self) -> list[str]:
        """Return what is wrong with the server after the last request."""
        if not self._kept:
            return []
        if await self._site.ask("/memory", of=self._site.destination) == self._kept:
            return []
        return ["the application's memory is not what it was"]


class _Migration(Move):
    """`quicferry migrate` on the source's host."""

    _held = Step.FREEZE

    def __init__(self, site: Site, number: int, stack: AsyncExitStack) -> None:
        super().__init__(number)
        self._site = site
        self._stack = stack
        self._process: Child | None = None

    async def _begin_at_once(self) -> None:
        await self._begin()

    async def _begin_held(self) -> None:
        await self._begin("--step")

    async def _begin(self, *options: str) -> None:
        site = self._site
        command = site.migrate_command(site.destination, "--timeout", f"{FOLLOW_LIMIT:g}", *options)
        process = self._process = await site.child("quicferry migrate", site.source, command)
        listening = asyncio.create_task(self._listen(process))
        self._stack.callback(listening.cancel)

    async def _proceed(self) -> None:
        assert self._process is not None, "it has begun"
        self._process.say()  # any line is Enter

    async def _release(self) -> None:
        await self._proceed()  # each further step as soon as it waits

    async def _listen(self, process: Child) -> None:
        async for message in process.messages():
            if "outcome" in message:
                self._reported(message)
                return
            await self._heard(message)
        self._failed(await process.unexpected_end())
