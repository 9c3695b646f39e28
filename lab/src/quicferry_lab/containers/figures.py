"""What relocations of containers cost, beside the thesis's figures and what the hardware allows.

*Dump, transfer and restore* is the time from the moment when the server is told to fall silent
until the restored one answers: what post-copy has to fetch before that is part of it. What a client
waits *beyond* is its longest time without a byte, less that.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from statistics import median

from quicferry.protocol import MigrationProtocol, protocol_name
from quicferry.relocation import Technique
from quicferry_lab.bench.report import Figure
from quicferry_lab.containers.settings import Settings
from quicferry_lab.containers.site import SiteError
from quicferry_lab.containers.trial import Trial, run_trial
from quicferry_lab.ground import GIGABIT
from quicferry_lab.hosts import Lab

THESIS = {
    (Technique.COLD, 0): 1.5,
    (Technique.COLD, 100): 3.2,
    (Technique.PRE_COPY, 0): 1.46,
    (Technique.PRE_COPY, 100): 1.57,
    (Technique.POST_COPY, 0): 1.45,
    (Technique.POST_COPY, 100): 1.45,
    (Technique.HYBRID, 0): 1.45,
    (Technique.HYBRID, 100): 1.54,
}
"""Dump, transfer and restore by technique and megabytes of extra memory, in seconds: medians."""

BOUNDS = {
    (Technique.COLD, 0): 0.5,
    (Technique.COLD, 100): 1.4,
    (Technique.POST_COPY, 100): 0.5,
}
"""What is promised here, in seconds."""

BEYOND_MS = 50.0
"""Milliseconds that a client may wait beyond dump, transfer and restore, and one round trip."""

_WRITTEN = 100 << 20


async def measure(repetitions: int) -> AsyncIterator[Figure]:
    """Yield each figure as soon as it is there.

    Args:
        repetitions: How often each trial is made.

    Raises:
        SiteError: If a trial has a problem.
    """
    link = f"{GIGABIT.rate_mbit:g} Mbit/s between the hosts (veth, tc tbf)"
    for figure in await asyncio.to_thread(_limits):
        yield figure
    for technique in Technique:
        if technique.copies_before and not await has_soft_dirty():
            continue
        for memory in (0, 100):
            settings = Settings(technique=technique, memory=memory, clients=1)
            trials = await _repeat(settings, repetitions)
            yield _work(trials, link)
            if memory:
                yield _carrying(trials)
            yield _beyond(trials)
    for protocol in MigrationProtocol:
        settings = Settings(protocol=protocol, clients=1)
        yield _beyond(await _repeat(settings, repetitions), f", {protocol_name(protocol)}")


async def has_soft_dirty() -> bool:
    """Whether this kernel tracks changes of memory, which pre-copy and hybrid need.

    Raises:
        LabError: If the laboratory has not been set up.
    """
    async with Lab() as lab:
        host = await lab.add_host("host")
        done = await host.attempt(["criu", "check", "--feature", "mem_dirty_track"])
        return done.returncode == 0


async def _repeat(settings: Settings, repetitions: int) -> list[Trial]:
    trials = []
    for seed in range(1, repetitions + 1):
        trial = await run_trial(replace(settings, seed=seed))
        if trial.problems:
            raise SiteError(f"{trial.settings}, seed {seed}: {'; '.join(trial.problems)}")
        trials.append(trial)
    return trials


def _work(trials: list[Trial], link: str) -> Figure:
    settings = trials[0].settings
    key = (settings.technique, settings.memory)
    value = median(trial.work for trial in trials)
    phases = {
        step: median(trial.reports[0]["phases"][step] for trial in trials) * 1000
        for step in ("freeze", "transfer", "thaw", "switch")
    }
    steps = " + ".join(f"{step} {phases[step]:.0f}" for step in phases)
    return Figure(
        f"{settings.technique.value}, {settings.memory} MB more: dump, transfer, restore",
        value,
        "s",
        at_most=BOUNDS.get(key),
        note=f"thesis {THESIS[key]:g} s, {THESIS[key] / value:.1f} times as long; {steps} ms; "
        f"median of {len(trials)}; {link}",
    )


def _carrying(trials: list[Trial]) -> Figure:
    size = median(trial.reports[0]["bytes"] for trial in trials)
    assert GIGABIT.rate_mbit is not None, "the link has a rate"
    return Figure(
        "  what the link alone takes for what is carried",
        size * 8e-6 / GIGABIT.rate_mbit,
        "s",
        note=f"{size / 1e6:.0f} MB",
    )


def _beyond(trials: list[Trial], what: str = "") -> Figure:
    rtt = trials[0].settings.far.rtt_ms
    return Figure(
        f"  what the client waits beyond that{what}",
        max(0.0, median(trial.beyond for trial in trials)) * 1000,
        "ms",
        at_most=rtt + BEYOND_MS,
        note=f"one round trip is {rtt:g} ms; in all {median(t.gap for t in trials):.2f} s",
    )


def _limits() -> list[Figure]:
    """Measure what memory itself allows, on one core."""
    data = os.urandom(1 << 20)
    with tempfile.TemporaryFile(dir="/dev/shm", buffering=0) as file:
        began = time.monotonic()
        for _ in range(_WRITTEN >> 20):
            file.write(data)
        wrote = time.monotonic()
        file.seek(0)
        while file.read(1 << 20):
            pass
        read = time.monotonic()
    return [
        Figure("writing 100 MB to memory (tmpfs)", (wrote - began) * 1000, "ms"),
        Figure("reading 100 MB from memory (tmpfs)", (read - wrote) * 1000, "ms"),
    ]
