"""The laboratory measures itself: are its links what they are said to be?

Every figure is measured from end to end, by packets of programs in two hosts, on the link that any
experiment would get; none is computed from what the router knows.
"""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from statistics import median
from typing import Any

from quicferry_lab.bench.report import Figure
from quicferry_lab.emulation import PathSpec
from quicferry_lab.hosts import programs
from quicferry_lab.hosts.errors import LabError
from quicferry_lab.hosts.host import Host
from quicferry_lab.hosts.laboratory import Lab
from quicferry_lab.hosts.link import Link
from quicferry_lab.hosts.rootfs import SOURCE

EDGE = PathSpec(rtt_ms=18, rate_mbit=100, seed=1)
"""The thesis's path between a client and a server nearby."""
CLOUD = PathSpec(rtt_ms=122, rate_mbit=13, seed=1)
"""The thesis's path between a client and a server far away."""
BETWEEN_HOSTS = PathSpec(rate_mbit=1000)
"""The thesis's link between the hosts of the server."""
LOSS_PERCENT = 1.5

_PROBE = ("python3", "-I", "-S", f"/{SOURCE}/quicferry_lab/hosts/probe.py")
_LIMIT = 40.0
_READY_LIMIT = 10.0
_LONGEST = 60.0
_ROUNDS = 3
_SAMPLES = 300
_INTERVAL = 0.005
_SECONDS = 2.0
_OVERLOAD = 1.2
"""Times the link's rate that is sent, so that its bottleneck is never idle."""
_LOSSY_MBIT = 80.0

_RTT_ERROR_MS = 1.0
_SHARE_OF_RATE = 0.97
_MEASURED_MOST = 1.01
"""A bucket of two packets lets a little more than the rate through in a short time."""
_LOSS_ERROR = 0.3
"""Percentage points; three times what chance makes of it with as many packets."""
_GIGABIT_SHARE = 0.9
_GIGABIT_RTT_MS = 1.0

Report = Callable[[Figure], None]


async def calibrate(tell: Report) -> list[Figure]:
    """Measure the laboratory's links; takes about half a minute.

    Args:
        tell: Is given each figure as soon as it is there.

    Returns:
        All figures.

    Raises:
        LabError: If the laboratory cannot be set up, or a measurement fails.
    """
    figures = []
    try:
        async with asyncio.timeout(_LONGEST), Lab() as lab:
            async for figure in _measure(lab):
                tell(figure)
                figures.append(figure)
    except TimeoutError:
        raise LabError(
            f"the links were not measured within {_LONGEST:g} s; let the machine do nothing else"
        ) from None
    return figures


async def _measure(lab: Lab) -> AsyncIterator[Figure]:
    client = await lab.add_host("client")
    edge = await lab.add_host("edge")
    cloud = await lab.add_host("cloud")
    near = await lab.connect(client, edge, EDGE)
    far = await lab.connect(client, cloud, CLOUD)
    between = await lab.connect(cloud, edge, BETWEEN_HOSTS)
    for link in (near, far):
        for figure in await _rtt(link):
            yield figure
    await far.set(replace(CLOUD, rate_mbit=EDGE.rate_mbit))
    for link in (near, far):
        for figure in await _throughput(link):
            yield figure
    await far.set(CLOUD)
    for figure in await _throughput(far):
        yield figure
    for figure in await _loss(near):
        yield figure
    for figure in await _gigabit(between):
        yield figure


async def _rtt(link: Link) -> list[Figure]:
    """Measure until it is good: what is worse in one of several rounds is the machine's doing."""
    asked = link.path.rtt_ms
    rounds: list[list[float]] = []
    while len(rounds) < _ROUNDS and (not rounds or _p99(rounds[-1]) > _RTT_ERROR_MS):
        rounds.append(sorted(abs(sample * 1000 - asked) for sample in await _ask(link)))
    errors = min(rounds, key=_p99)
    name = f"RTT {asked:g} ms: error"
    note = f"{len(errors)} datagrams, best of {len(rounds)}; {link.backend.value}"
    return [
        Figure(f"{name}, median", median(errors), "ms", at_most=_RTT_ERROR_MS, note=note),
        Figure(f"{name}, 99th percentile", _p99(errors), "ms", at_most=_RTT_ERROR_MS),
        Figure(f"{name}, largest", errors[-1], "ms", note="what the machine's other work makes"),
    ]


async def _throughput(link: Link) -> list[Figure]:
    """Send full-size packets both ways at once, more than the link can carry."""
    rate = link.path.rate_mbit
    assert rate is not None
    there, back = await _flood(link, rate * _OVERLOAD)
    name = f"{rate:g} Mbit/s each way, RTT {link.path.rtt_ms:g} ms"
    return [
        Figure(
            f"{name}: {way}",
            result["mbit"],
            "Mbit/s",
            at_most=rate * _MEASURED_MOST,
            at_least=rate * _SHARE_OF_RATE,
            note="full-size packets, both ways at once",
        )
        for way, result in (("there", there), ("back", back))
    ]


async def _loss(link: Link) -> list[Figure]:
    """Lose packets twice with the same seed, and by nothing else: there is no queue to overflow."""
    lossy = replace(link.path, loss_percent=LOSS_PERCENT, rate_mbit=None)
    runs = []
    for _ in range(2):
        await link.set(lossy)
        results = await _flood(link, _LOSSY_MBIT)
        runs.append([frozenset(result["numbers"]) for result in results])
        sent = [result["sent"] for result in results]
    figures = []
    for way, count, first, second in zip(("there", "back"), sent, *runs, strict=True):
        lost = 100 * (1 - len(first) / count)
        figures += [
            Figure(
                f"{LOSS_PERCENT:g} % loss asked, {way}: observed",
                lost,
                "%",
                at_most=LOSS_PERCENT + _LOSS_ERROR,
                at_least=LOSS_PERCENT - _LOSS_ERROR,
                note=f"{count} packets",
            ),
            Figure(
                f"lost in one of two runs with the same seed only, {way}",
                len(first ^ second),
                "packets",
                at_most=0,
            ),
        ]
    return figures


async def _gigabit(link: Link) -> list[Figure]:
    rate = link.path.rate_mbit
    assert rate is not None
    async with _receiver(link.far, "download"):
        result = await _run(link.near, "fetch", str(link.far.address), str(_SECONDS))
    samples = await _ask(link)
    note = link.backend.value
    name = f"the {rate:g} Mbit/s link"
    return [
        Figure(
            f"{name}: TCP, one way",
            result["mbit"],
            "Mbit/s",
            at_most=rate,
            at_least=rate * _GIGABIT_SHARE,
            note=note,
        ),
        Figure(f"{name}: RTT, median", median(samples) * 1000, "ms", at_most=_GIGABIT_RTT_MS),
    ]


async def _ask(link: Link) -> list[float]:
    """Return round-trip times of datagrams, in seconds, in order."""
    async with _receiver(link.far, "echo"):
        address = str(link.far.address)
        result = await _run(link.near, "ask", address, str(_SAMPLES), str(_INTERVAL))
    samples: list[float] = sorted(result["rtts"])
    if not samples:
        raise LabError(f"no datagram came back from {link.far.name}")
    return samples


async def _flood(link: Link, mbit: float) -> list[dict[str, Any]]:
    """Send at a rate both ways at once; return what arrived there, and what came back."""
    async with _receiver(link.far, "sink") as far, _receiver(link.near, "sink") as near:
        ways = ((link.near, link.far, far), (link.far, link.near, near))
        sent = await asyncio.gather(
            *(_run(by, "flood", str(to.address), str(mbit), str(_SECONDS)) for by, to, _ in ways)
        )
        received = [await _result(receiver) for _, _, receiver in ways]
    return [one | other for one, other in zip(sent, received, strict=True)]


@asynccontextmanager
async def _receiver(host: Host, task: str) -> AsyncIterator[Process]:
    """Have a receiver wait for packets."""
    process = await host.start([*_PROBE, task], stdout=PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(_READY_LIMIT):
            if await process.stdout.readline() != b"ready\n":
                raise LabError(f"the receiver on {host.name} has failed; its error is on stderr")
        yield process
    finally:
        programs.kill(process)
        await process.wait()


async def _result(process: Process) -> Any:
    assert process.stdout is not None
    async with asyncio.timeout(_LIMIT):
        return json.loads(await process.stdout.read())


async def _run(host: Host, *arguments: str) -> Any:
    return json.loads((await host.run([*_PROBE, *arguments], limit=_LIMIT)).stdout)


def _p99(ordered: list[float]) -> float:
    return ordered[int(len(ordered) * 0.99)]
