"""Hands a server over again and again under load: `quicferry soak handovers`.

The demo's server goes to and fro between two agents, each a process of its own, while clients send
requests and check every byte. No request may fail, and the agents' memory must not grow.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from dataclasses import dataclass

from quicferry_lab.demo.orchestrator import run_demo
from quicferry_lab.demo.results import ClientProgress, DemoResult
from quicferry_lab.demo.settings import Settings
from quicferry_lab.emulation import PathSpec

SECONDS_EACH = 0.5
ALLOWED_GROWTH = 0.05
"""What the memory of an agent may grow by, from the third quarter of the run to the last one; in
the first half caches and the heap fill."""

PATH = PathSpec(rtt_ms=2, rate_mbit=2)


@dataclass
class _Progress:
    """Prints how many handovers are done."""

    wanted: int
    done: int = 0

    def note(self, text: str) -> None:
        """Count handovers."""
        if "silent for" in text:
            self.done += 1
            if self.done % 20 == 0:
                print(f"{self.done} of {self.wanted} handovers; the last: {text}", flush=True)

    def progress(self, progress: ClientProgress) -> None:
        """Ignore how a client is doing."""


def report(result: DemoResult) -> int:
    """Print what a run has shown, and return an exit status."""
    problems = list(result.problems)
    silences = sorted(
        sum(seconds for name, seconds in (each.phases or {}).items() if name in _SILENT)
        for each in result.relocations
    )
    requests = sum(client.requests_ok for _, client in result.clients)
    failed = sum(client.requests_failed for _, client in result.clients)
    print(
        f"{len(silences)} handovers, {requests} requests ok, {failed} failed; silent for "
        f"{statistics.median(silences) * 1000:.1f} ms (median), {silences[-1] * 1000:.1f} ms (most)"
    )
    for agent, memory in enumerate(zip(*(each.memory for each in result.relocations), strict=True)):
        quarter = len(memory) // 4
        medians = [statistics.median(memory[n * quarter :][:quarter]) for n in range(4)]
        _, _, before, after = medians
        quarters = ", ".join(f"{each / 1e6:.1f}" for each in medians)
        print(f"agent {agent + 1}: {quarters} MB in RAM, quarter by quarter")
        if after > before * (1 + ALLOWED_GROWTH):
            problems.append(f"the memory of agent {agent + 1} grows")
    for problem in problems:
        print(f"FAILED: {problem}", file=sys.stderr)
    return 1 if problems else 0


_SILENT = ("freeze", "transfer", "thaw", "switch", "commit")


def hand_over(handovers: int, clients: int) -> DemoResult:
    """Move a server so often.

    Args:
        handovers: How many; at least 8.
        clients: How many send requests meanwhile.

    Raises:
        QuicferryError: If a process of the demo fails.
    """
    round_trips = max(4, handovers // 2)
    settings = Settings(
        clients=clients,
        round_trips=round_trips,
        duration=2 * round_trips * SECONDS_EACH,
        before=PATH,
        after=PATH,
    )
    return asyncio.run(run_demo(settings, _Progress(settings.relocations)))
