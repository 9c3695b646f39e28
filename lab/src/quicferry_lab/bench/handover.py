"""What clients see of a handover between two processes, beside one that has to connect again.

Each run is the demo, with ten clients that follow and one without the extension: that one is closed
when the server moves, connects to the new address at once, and sends its request again. What is
measured is the longest time without response bytes at the switch, of each client.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from quicferry_lab.demo.orchestrator import run_demo
from quicferry_lab.demo.results import ClientProgress, DemoResult
from quicferry_lab.demo.settings import Settings, default_rate
from quicferry_lab.emulation import PathSpec

from .report import Figure

_FOLLOWING = 10
_RUNS = 5
_DURATION = 3.0
_RTT_MS = 18.0
_ALLOWANCE_MS = 20.0


@dataclass(frozen=True)
class _Gaps:
    """In milliseconds: of the clients that followed, and of the one that came again."""

    followed: float
    worst: float
    came_again: float
    silence: float


class _Silent:
    """Takes note of nothing."""

    def note(self, text: str) -> None:
        """Ignore what happens."""

    def progress(self, progress: ClientProgress) -> None:
        """Ignore how a client is doing."""


def figures() -> Iterator[Figure]:
    """Measure, and yield each figure."""
    for rtt_ms, path in ((0.0, "loopback"), (_RTT_MS, f"{_RTT_MS:g} ms RTT")):
        runs = [_run(rtt_ms, seed) for seed in range(1, _RUNS + 1)]
        followed, worst, came_again, silence = (
            statistics.median(getattr(run, name) for run in runs)
            for name in ("followed", "worst", "came_again", "silence")
        )
        where = f"{_FOLLOWING} clients, {path}"
        yield Figure(
            f"longest gap at a handover, {where}",
            followed,
            "ms",
            at_most=rtt_ms + _ALLOWANCE_MS,
            note=f"median of clients and of {_RUNS} runs; worst client {worst:.0f} ms",
        )
        yield Figure(
            "  the same for a client that has to connect again",
            came_again,
            "ms",
            note=f"{came_again / followed:.1f} times as long, in the same runs",
        )
        yield Figure("  from the freeze until the connections live again", silence, "ms")


def _run(rtt_ms: float, seed: int) -> _Gaps:
    clients = _FOLLOWING + 1
    path = PathSpec(rtt_ms=rtt_ms, rate_mbit=default_rate(clients), seed=seed)
    settings = Settings(clients=clients, duration=_DURATION, seed=seed, before=path, after=path)
    return _gaps(asyncio.run(run_demo(settings, _Silent())))


def _gaps(result: DemoResult) -> _Gaps:
    if not result.ok:
        raise RuntimeError(f"a run of the demo has failed: {result.problems}")
    gaps: dict[bool, list[float]] = {True: [], False: []}
    for plan, report in result.clients:
        gaps[plan.has_extension].append((result.gap_at_switch(report) or 0.0) * 1000)
    phases = result.relocations[0].phases or {}
    silent = ("freeze", "transfer", "thaw", "switch", "commit")
    return _Gaps(
        followed=statistics.median(gaps[True]),
        worst=max(gaps[True]),
        came_again=statistics.median(gaps[False]),
        silence=sum(phases[name] for name in silent) * 1000,
    )
