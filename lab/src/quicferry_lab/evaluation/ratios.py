"""What a relocation takes by each technique, as a ratio to cold with the same memory.

Two techniques need a kernel that tracks changes of memory, which may be had in an emulated machine
only. Seconds in it mean nothing, but what one technique takes beside another in it does. So one
server is moved to and fro, in rounds of all techniques, one right after another: whatever slows the
machine down slows all of them. One client sends it a small request now and then, and follows; more
would keep an emulated processor busy with something else than relocations.

Run as ``python -m quicferry_lab.evaluation.ratios ORDERS``, with trials in JSON, it carries them
out on the machine that it runs on, and writes each sample as a line of JSON. It needs root.
"""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from collections import deque
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

from quicferry.protocol import QuicferryError
from quicferry.relocation import Outcome, Step, Technique
from quicferry_lab.containers import Settings, Site
from quicferry_lab.demo.processes import Child
from quicferry_lab.evaluation import thesis
from quicferry_lab.ground import CA, PORT, next_message
from quicferry_lab.hosts import LabError
from quicferry_lab.vm import TREE, laboratory

MODULE = "quicferry_lab.evaluation.ratios"
SILENCE = "silence"
AHEAD = "ahead"
METRICS = (SILENCE, *thesis.SILENCE, AHEAD)
"""What is compared. *Ahead* is what is copied while the server still serves; its ratio is to the
silence of cold, as cold has nothing of the kind."""

_THESIS_AHEAD = ("pre_dump", "pre_dump_transfer")
_INTERVAL = 0.5
"""Seconds between two requests of the client."""
_MANY = 1_000_000
"""Requests: the client ends with the site."""
_TRIAL_LIMIT = 900.0
"""Seconds that one trial may take in the virtual machine, with its part of the preparations."""


@dataclass(frozen=True)
class Trial:
    """One relocation that is wanted.

    Attributes:
        technique: How the container is moved.
        memory_mb: What the application keeps beside the rest.
        repetition: Which round it belongs to, from 1.
    """

    technique: str
    memory_mb: int
    repetition: int

    def __str__(self) -> str:
        return f"{self.technique}, {self.memory_mb} MB more, round {self.repetition}"


@dataclass(frozen=True)
class Sample:
    """What one relocation took.

    Attributes:
        trial: Which one it was.
        seconds: By metric; empty if it failed.
        carried: Bytes that went from host to host.
        problems: Why it counts as failed, in words.
        machine: What it took place on.
    """

    trial: Trial
    seconds: dict[str, float]
    carried: int = 0
    problems: tuple[str, ...] = ()
    machine: str = field(default_factory=lambda: f"{platform.system()} {platform.release()}")

    def encode(self) -> dict[str, Any]:
        """Return it as what JSON can carry."""
        return asdict(self)

    @classmethod
    def decode(cls, encoded: Any) -> Self:
        """Return what `encode` returned.

        Raises:
            QuicferryError: It is something else.
        """
        try:
            return cls(
                Trial(**encoded["trial"]),
                {str(name): float(value) for name, value in encoded["seconds"].items()},
                int(encoded["carried"]),
                tuple(map(str, encoded["problems"])),
                str(encoded["machine"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise QuicferryError(f"this is no sample of `quicferry lab ratios`: {exc}") from exc


def missing(
    memory: Iterable[int], repetitions: int, finished: Collection[Sample] = ()
) -> list[Trial]:
    """Return the trials that are still to be made, those of one size after those of another.

    Those of a size come in rounds of all techniques.

    Args:
        memory: The sizes, in megabytes.
        repetitions: How many rounds.
        finished: Samples that are there; those that failed are not made again either.
    """
    done = {sample.trial for sample in finished}
    return [
        trial
        for size in dict.fromkeys(memory)
        for repetition in range(1, repetitions + 1)
        for technique in Technique
        for trial in [Trial(technique.value, size, repetition)]
        if trial not in done
    ]


async def here(trials: Iterable[Trial]) -> AsyncGenerator[Sample]:
    """Carry trials out on this machine, and yield each sample after its round.

    All move the same server, but after a round in which one has failed there is another.

    Raises:
        QuicferryError: There is no laboratory, or no server in it.
    """
    rounds = deque(
        list(group) for _, group in groupby(trials, lambda each: (each.memory_mb, each.repetition))
    )
    while rounds:
        async with _Moved() as moved:
            is_well = True
            while rounds and is_well:
                samples = await moved.carry_out(rounds.popleft())
                is_well = not any(sample.problems for sample in samples)
                for sample in samples:
                    yield sample


async def in_virtual_machine(trials: Sequence[Trial]) -> AsyncGenerator[Sample]:
    """Carry trials out in a virtual machine with Debian's kernel, and yield each sample.

    Raises:
        LabError: The virtual machine has not been made, or has ended.
    """
    lines: asyncio.Queue[bytes | None] = asyncio.Queue()
    rest, told = bytearray(), bytearray()

    def take(data: bytes) -> None:
        rest.extend(data)
        *whole, last = rest.split(b"\n")
        rest[:] = last
        for line in whole:
            lines.put_nowait(bytes(line))

    async def order() -> int:
        try:
            async with laboratory(counts=True) as machine:
                orders = json.dumps([asdict(trial) for trial in trials])
                return await machine.follow(
                    ["python3", "-m", MODULE, orders],
                    take,
                    told.extend,
                    limit=_TRIAL_LIMIT * len(trials),
                    directory=TREE,
                )
        finally:
            lines.put_nowait(None)

    async with asyncio.TaskGroup() as group:
        ordered = group.create_task(order())
        while (line := await lines.get()) is not None:
            sample = Sample.decode(json.loads(line))
            yield replace(sample, machine=f"{sample.machine} in an emulated machine")
        status = await ordered
    if status:
        said = told.decode(errors="replace").strip() or "nothing"
        raise LabError(f"the trials in the virtual machine ended with {status}, and said: {said}")


def read(path: Path) -> list[Sample]:
    """Return the samples in a file.

    Raises:
        QuicferryError: It cannot be read, or is something else.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, list):
            raise TypeError("it is no array")
        return [Sample.decode(encoded) for encoded in found]
    except (OSError, ValueError, TypeError, QuicferryError) as exc:
        raise QuicferryError(
            f"{path} is not what `quicferry lab ratios` writes ({exc}); name another file, or "
            "remove it"
        ) from exc


def write(path: Path, samples: Iterable[Sample]) -> None:
    """Write samples to a file, which has either the old ones or all of these at any time.

    Raises:
        OSError: It cannot be written.
    """
    lines = ",\n".join(json.dumps(sample.encode()) for sample in samples)
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(f"[\n{lines}\n]\n", "utf-8")
    draft.replace(path)


def compared(samples: Collection[Sample]) -> list[dict[str, Any]]:
    """Return a row for each technique, size and metric that there are samples of.

    A row has ``technique``, ``memory_mb``, ``metric``, the number of ``runs`` and of those that
    ``failed``, the median in ``seconds``, its ``ratio`` to that of cold with the same memory, and
    the same ratio of the ``thesis``; None for what is not known.
    """
    rows = []
    sizes = sorted({sample.trial.memory_mb for sample in samples})
    for size in sizes:
        for technique in (each.value for each in Technique):
            of_it = _of(samples, technique, size)
            if not of_it:
                continue
            cold = _of(samples, Technique.COLD.value, size)
            for metric in METRICS:
                base = SILENCE if metric == AHEAD else metric
                seconds = _median(of_it, metric)
                rows.append(
                    {
                        "technique": technique,
                        "memory_mb": size,
                        "metric": metric,
                        "runs": len(of_it),
                        "failed": sum(bool(sample.problems) for sample in of_it),
                        "seconds": seconds,
                        "ratio": _ratio(seconds, _median(cold, base)),
                        "thesis": _ratio(
                            _of_thesis(technique, size, metric),
                            _of_thesis(Technique.COLD.value, size, base),
                        ),
                    }
                )
    return rows


class _Moved:
    """A server in a container that is moved to and fro; an asynchronous context manager."""

    def __init__(self) -> None:
        # The technique is another in each trial: this one needs all that any of them needs.
        self._site = Site(Settings(technique=Technique.HYBRID, clients=1))
        self._memory = 0

    async def __aenter__(self) -> Self:
        site = await self._site.__aenter__()
        try:
            await self._start(site)
        except BaseException as exc:
            await self.__aexit__(type(exc), exc, exc.__traceback__)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._site.__aexit__(kind, error, trace)

    async def _start(self, site: Site) -> None:
        self._here, self._there = site.source, site.destination
        await site.start_server()
        for host in (self._there, self._here):
            await site.start_agent(host)
        self._kept = await self._ask("/memory")
        url = f"https://{self._here.address}:{PORT}/"
        fetch = ["quicferry", "fetch", url, "--json", "--ca", CA, "--protocols", "explicit"]
        fetch += ["--repeat", str(_MANY), "--interval", str(_INTERVAL), "--timeout", "600"]
        client = await site.child("client", site.client, fetch, Child.stop)
        await next_message(client, "response")

    async def carry_out(self, trials: Sequence[Trial]) -> list[Sample]:
        """Move the server once for each trial of a round, until one fails."""
        samples: list[Sample] = []
        try:
            await self._keep(trials[0].memory_mb)
            for trial in trials:
                samples.append(await self._carry_out(trial))
                if samples[-1].problems:
                    break
            else:
                if await self._ask("/memory") != self._kept:
                    wrong = ("after this round the application's memory is not what it was",)
                    samples = [replace(sample, problems=wrong) for sample in samples]
        except QuicferryError as exc:
            left = trials[len(samples) :] or trials[-1:]
            samples.append(Sample(left[0], {}, problems=(str(exc),)))
        return samples

    async def _keep(self, memory_mb: int) -> None:
        if memory_mb != self._memory:
            await self._ask(f"/memory/{memory_mb}", post=True)
            self._kept = await self._ask("/memory")
            self._memory = memory_mb

    async def _ask(self, path: str, *, post: bool = False) -> str:
        return await self._site.ask(path, of=self._here, post=post)

    async def _carry_out(self, trial: Trial) -> Sample:
        here, there = self._here, self._there
        report = await self._site.migrate(here, there, "--technique", trial.technique)
        if report["outcome"] != Outcome.COMMITTED.value:
            return Sample(trial, {}, problems=(f"{report['outcome']}: {report['reason']}",))
        self._here, self._there = there, here
        if report["lost"] or not report["followed"]:
            return Sample(trial, {}, problems=("the client has not followed",))
        return Sample(trial, _seconds(report), report["bytes"])


def _seconds(report: dict[str, Any]) -> dict[str, float]:
    """Return what a relocation took, as `quicferry migrate --json` has told it."""
    phases: dict[str, float] = report["phases"]
    return {
        SILENCE: float(report["silence"]),
        "dump": phases[Step.FREEZE.value],
        "transfer": phases[Step.TRANSFER.value],
        "restore": phases[Step.THAW.value] + phases[Step.SWITCH.value],
        AHEAD: phases.get(Step.PRE_COPY.value, 0.0),
    }


def _of(samples: Iterable[Sample], technique: str, memory_mb: int) -> list[Sample]:
    return [
        sample
        for sample in samples
        if (sample.trial.technique, sample.trial.memory_mb) == (technique, memory_mb)
    ]


def _median(samples: Iterable[Sample], metric: str) -> float | None:
    values = [sample.seconds[metric] for sample in samples if not sample.problems]
    return median(values) if values else None


def _of_thesis(technique: str, memory_mb: int, metric: str) -> float | None:
    """Return the thesis's median in seconds; a silence is the sum of its parts."""
    parts = {SILENCE: thesis.SILENCE, AHEAD: _THESIS_AHEAD}.get(metric, (metric,))
    found = [thesis.find(thesis.Key(2, part, None, technique, memory_mb)) for part in parts]
    known = [finding.median for finding in found if finding is not None]
    return sum(known) if len(known) == len(parts) else None


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


async def _main(orders: str) -> None:
    trials = [Trial(**order) for order in json.loads(orders)]
    async with aclosing(here(trials)) as samples:
        async for sample in samples:
            print(json.dumps(sample.encode()), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
