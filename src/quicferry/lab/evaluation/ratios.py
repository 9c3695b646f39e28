"""What a relocation takes by each technique, as a ratio to cold with the same memory.

Two techniques need a kernel that tracks changes of memory, which may be had in an emulated machine
only. Seconds in it mean nothing, but what one technique takes beside another in it does. So every
repetition is a round of all techniques, one right after another: whatever slows the machine down
slows all of them.

Run as ``python -m quicferry.lab.evaluation.ratios ORDERS``, with trials in JSON, it carries them
out on the machine that it runs on, and writes each sample as a line of JSON. It needs root.
"""

from __future__ import annotations

import asyncio
import json
import platform
import sys
from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Self

from quicferry.lab.containers import Settings, run_trial
from quicferry.lab.evaluation import thesis
from quicferry.lab.hosts import LabError, PathSpec
from quicferry.lab.vm import TREE, laboratory
from quicferry.protocol import QuicferryError
from quicferry.relocation import Technique

MODULE = "quicferry.lab.evaluation.ratios"
SILENCE = "silence"
AHEAD = "ahead"
METRICS = (SILENCE, *thesis.SILENCE, AHEAD)
"""What is compared. *Ahead* is what is copied while the server still serves; its ratio is to the
silence of cold, as cold has nothing of the kind."""

_THESIS_AHEAD = ("pre_dump", "pre_dump_transfer")
_PATH = PathSpec(rtt_ms=18, rate_mbit=0.5)
"""Between the client and either host: as much as an emulated machine can serve and check."""
_TRIAL_LIMIT = 900.0
"""Seconds that one trial may take in the virtual machine."""


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
    """Return the trials that are still to be made, a round of all techniques after another.

    Args:
        memory: The sizes, in megabytes.
        repetitions: How many rounds.
        finished: Samples that are there; those that failed are not made again either.
    """
    done = {sample.trial for sample in finished}
    return [
        trial
        for repetition in range(1, repetitions + 1)
        for size in dict.fromkeys(memory)
        for technique in Technique
        for trial in [Trial(technique.value, size, repetition)]
        if trial not in done
    ]


async def here(trials: Iterable[Trial]) -> AsyncGenerator[Sample]:
    """Carry trials out on this machine, and yield each sample.

    Raises:
        LabError: The laboratory has not been set up.
    """
    for trial in trials:
        yield await _carry_out(trial)


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
            async with laboratory() as machine:
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


async def _carry_out(trial: Trial) -> Sample:
    settings = Settings(
        technique=Technique(trial.technique),
        memory=trial.memory_mb,
        clients=1,
        near=_PATH,
        far=_PATH,
        seed=trial.repetition,
    )
    try:
        done = await run_trial(settings)
    except LabError:
        raise  # there is no laboratory, so no other trial can be made either
    except Exception as exc:  # whatever a trial brings to light is a finding
        return Sample(trial, {}, problems=(f"{type(exc).__name__}: {exc}",))
    if done.problems:
        return Sample(trial, {}, problems=done.problems)
    (report,) = done.reports
    phases: dict[str, float] = report["phases"]
    seconds = {
        SILENCE: float(report["silence"]),
        "dump": phases["freeze"],
        "transfer": phases["transfer"],
        "restore": phases["thaw"] + phases["switch"],
        AHEAD: phases.get("pre-copy", 0.0),
    }
    return Sample(trial, seconds, report["bytes"])


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
