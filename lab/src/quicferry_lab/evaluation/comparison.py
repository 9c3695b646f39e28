"""How far the simulation can be trusted: the same small runs in it, and on real sockets.

Each run takes place on the laboratory's hosts first, and then in the simulation: with the same
parameters, seed and requests, and with the silence that the relocation on the hosts really took.
What then differs is what the simulation leaves out: the time that programs take to do anything,
and the machine's scheduling. It has to be small, or figures of the simulation say nothing.

Bounds, from what was measured on two cores that had other work to do as well: on the hosts a
request passes through Python and an event loop on both sides and through the emulated link, which
took 3 to 4 ms; with several clients at a time, or right after a relocation, up to 8. A client that
waits for a probe timeout waits for a mean round-trip time and four times its variation (RFC 9002
6.2.1), so whatever varies on the hosts comes in several times over: up to 25.
As with the links, what is worse in one of several rounds is the machine's doing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from quicferry_lab.bench.report import Figure
from quicferry_lab.evaluation import scripts, simulated
from quicferry_lab.evaluation.experiment import load
from quicferry_lab.evaluation.move import Move
from quicferry_lab.evaluation.netns import NetnsStage
from quicferry_lab.evaluation.result import Result
from quicferry_lab.evaluation.run import WITHOUT, Backend, Run, Script, Workload

Metric = Callable[[Result], list[float]]
"""Takes a result, and returns the values that are compared by their medians, in seconds."""

ARMS = (
    "proactive Explicit",
    "reactive Explicit",
    "eager Explicit",
    "pool of 1, random",
    "pool of 3, parallel",
    "Symmetric",
    "Synchronized Symmetric",
)
"""Those of experiment 1 in which chance has no part: the order of a random pool is another one."""

_EDGE = (18.0, 100.0)
_CLOUD = (122.0, 13.0)
_TIMEOUT_ARMS = ("reactive Explicit", "pool of 1, random", "pool of 3, parallel")
"""Those in which the client notices by a probe timeout that its server is gone."""

_ROUNDS = 3
_LONGEST = 90.0
"""Seconds after which no second round begins."""


@dataclass(frozen=True)
class Case:
    """A run, and what of it is compared.

    Attributes:
        name: In words.
        run: The run, on the hosts.
        metric: What is compared.
        within_ms: What the medians may differ by.
    """

    name: str
    run: Run
    metric: Metric
    within_ms: float


def service_times(result: Result) -> list[float]:
    """Return those of all requests."""
    return [each.service_time for each in result.requests if each.service_time is not None]


def first_request(result: Result) -> list[float]:
    """Return the service time of the first request after the relocation."""
    number = (result.run.relocate_after or 0) + 1
    return [
        each.service_time
        for each in result.requests
        if each.number == number and each.service_time is not None
    ]


def notification_time(result: Result) -> list[float]:
    """Return how long the server took to get ready."""
    return [
        each.ready_at - each.imminent_at
        for each in result.relocations
        if each.ready_at is not None and each.imminent_at is not None
    ]


def cases() -> Iterator[Case]:
    """Yield what is compared."""
    for rtt, rate in (_EDGE, _CLOUD):
        run = _run(Script.BASELINE, "baseline", rtt, rate, requests=30)
        yield Case(f"request, {rtt:g} ms, {rate:g} Mbit/s", run, service_times, 5.0)
    arms = load(1).description["arms"]
    for arm in ARMS:
        parameters = {name: value for name, value in arms[arm].items() if name != "thesis"}
        run = _run(Script.FIRST_REQUEST, arm, *_EDGE, technique="handover", **parameters)
        run = replace(
            run,
            source_rtt_ms=_CLOUD[0],
            source_rate_mbit=_CLOUD[1],
            pause=0.05,
            imminent_after=9,
            relocate_after=10,
            requests=11,
            quiet=0.6,
        )
        within_ms = 25.0 if arm in _TIMEOUT_ARMS else 10.0
        yield Case(f"first request after a relocation, {arm}", run, first_request, within_ms)
    for clients in (1, 10):
        run = _run(Script.NOTIFICATION, "reactive Explicit", *_EDGE, clients=clients)
        run = replace(run, protocol="explicit", policy="reactive", pause=0.5, before=1.5)
        yield Case(f"until {clients} clients are ready, Explicit", run, notification_time, 10.0)
    for loss in (0.0, 1.5):
        run = _run(Script.BASELINE, "distribution", *_EDGE, clients=3, requests=60)
        run = replace(run, workload=Workload.DISTRIBUTION, pause=0.02, loss_percent=loss)
        yield Case(f"requests of all sizes, {loss:g} % loss", run, service_times, 10.0)


class SilentSource(NetnsStage):
    """Hosts of which the source says nothing to the client any more, and hears nothing.

    A server that was handed over leaves a process behind that forwards what still comes: a first
    request that was sent to the old address is answered after half a round trip of each path. In
    the simulation there is nobody at the old address, as if the host had been switched off.
    """

    async def relocate_quietly(self, move: Move) -> None:
        """Carry a relocation out, and cut the link to the source."""
        await super().relocate_quietly(move)
        await self._ground.links[self._ground.source].cut()


async def compare(tell: Callable[[Figure], None]) -> list[Figure]:
    """Compare the simulation with real sockets; takes two minutes, and needs root.

    Args:
        tell: Is given each figure as soon as it is there.

    Returns:
        All figures.

    Raises:
        LabError: If the laboratory has not been set up.
    """
    deadline = time.monotonic() + _LONGEST
    figures = []
    for case in cases():
        figure = await _measure(case, deadline)
        tell(figure)
        figures.append(figure)
    return figures


async def _measure(case: Case, deadline: float) -> Figure:
    """Measure until it is good, as long as there is time."""
    found: list[Figure] = []
    while len(found) < _ROUNDS and not any(figure.is_met for figure in found):
        if found and time.monotonic() > deadline:
            break
        on_hosts = await scripts.carry_out(SilentSource(case.run))
        in_simulation = await asyncio.to_thread(simulated.carry_out, as_simulated(on_hosts))
        found.append(figure_of(case, on_hosts, in_simulation))
    best = min(found, key=lambda figure: abs(figure.value))
    return best if len(found) == 1 else replace(best, note=f"{best.note}; best of {len(found)}")


def as_simulated(on_hosts: Result) -> Run:
    """Return the run in the simulation that a run on the hosts is compared with."""
    run = replace(on_hosts.run, backend=Backend.SIM)
    if run.technique == WITHOUT:
        return run
    for relocation in on_hosts.relocations:
        if relocation.silent_at is not None and relocation.restored_at is not None:
            return replace(run, silence=relocation.restored_at - relocation.silent_at)
    return run


def figure_of(case: Case, on_hosts: Result, in_simulation: Result) -> Figure:
    """Return by how much a result on the hosts differs from one in the simulation.

    If one of them has failed, there is nothing to compare, and the figure is out of all bounds.
    """
    name = f"sockets - simulation: {case.name}"
    bounds = {"at_most": case.within_ms, "at_least": -case.within_ms}
    for where, result in (("on the hosts", on_hosts), ("in the simulation", in_simulation)):
        if result.has_failed or not case.metric(result):
            problem = result.problems[0] if result.problems else "nothing was measured"
            return Figure(name, float("inf"), "ms", **bounds, note=f"{where}: {problem}")
    real, simulation = (median(case.metric(result)) * 1000 for result in (on_hosts, in_simulation))
    note = f"{real:.2f} ms on the hosts, {simulation:.2f} ms in the simulation"
    silence = in_simulation.run.silence
    if silence is not None:
        note += f", after {silence * 1000:.0f} ms of silence"
    return Figure(name, real - simulation, "ms", **bounds, note=note)


def _run(script: Script, arm: str, rtt: float, rate: float, **parameters: Any) -> Run:
    run = Run(
        experiment=1,
        whose="ours",
        backend=Backend.NETNS,
        script=script,
        arm=arm,
        repetition=1,
        seed=1,
        source_rtt_ms=rtt,
        source_rate_mbit=rate,
        destination_rtt_ms=rtt,
        destination_rate_mbit=rate,
    )
    return replace(run, **parameters)
