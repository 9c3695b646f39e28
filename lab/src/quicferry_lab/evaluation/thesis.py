"""The figures of the thesis that the experiments are compared with."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

_METRICS = {
    "service_time_ms": "service_time",
    "first_request_after_migration_ms": "first_request",
    "dump_s": "dump",
    "dump_transfer_s": "transfer",
    "restore_s": "restore",
    "pre_dump_s": "pre_dump",
    "pre_dump_transfer_s": "pre_dump_transfer",
    "notification_time_ms": "notification_time",
}
_TECHNIQUES = {
    "cold": "cold",
    "preCopy": "pre-copy",
    "postCopy": "post-copy",
    "hybrid": "hybrid",
}
_EVERY_PROTOCOL = "all"
_REPETITIONS = {0: 100, 1: 100, 2: 40, 3: 10}
"""How many runs a figure is of, if none of them failed; in experiment 2 those of four protocols."""

SILENCE = ("dump", "transfer", "restore")
"""The metrics whose sum is what a server was silent for."""


@dataclass(frozen=True)
class Key:
    """What a finding is about. What a finding does not depend on, or is over all of, is None.

    Attributes:
        experiment: The number of the experiment.
        metric: As `quicferry_lab.evaluation.metrics` names it.
        protocol: As the thesis names it: an arm's ``thesis``.
        technique: How the server was relocated; only in experiment 2.
        memory_mb: Megabytes that the application kept beside the rest; only in experiment 2.
        source_rtt_ms: Round-trip time of the path to the source.
        destination_rtt_ms: Round-trip time of the path to the destination.
        loss_percent: Of packets, each way.
        clients: How many there were; only in experiment 3.
    """

    experiment: int
    metric: str
    protocol: str | None = None
    technique: str | None = None
    memory_mb: int | None = None
    source_rtt_ms: float = 122.0
    destination_rtt_ms: float = 18.0
    loss_percent: float = 0.0
    clients: int | None = None


@dataclass(frozen=True)
class Finding:
    """What the thesis has found, in seconds.

    Attributes:
        n: How many values the others are of: runs that did not fail.
        failed: How many runs failed.
        min: The least value.
        median: The value in the middle.
        mean: The average.
        p95: The 95th percentile.
        max: The greatest value.
    """

    n: int
    failed: int
    min: float
    median: float
    mean: float
    p95: float
    max: float


def find(key: Key) -> Finding | None:
    """Return what the thesis has found, or None if it has not asked."""
    return findings().get(key)


def silence(technique: str, memory_mb: int, loss_percent: float = 0.0) -> float | None:
    """Return the sum of the medians of dump, transfer and restore in seconds, or None."""
    parts = [
        find(Key(2, metric, None, technique, memory_mb, loss_percent=loss_percent))
        for metric in SILENCE
    ]
    known = [part.median for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


@cache
def findings() -> dict[Key, Finding]:
    """Return everything that the thesis has found."""
    path = resources.files(__package__) / "data" / "thesis_results.csv"
    return dict(_parse(path.read_text(encoding="utf-8").splitlines()))


def _parse(lines: Iterable[str]) -> Iterable[tuple[Key, Finding]]:
    for row in csv.DictReader(lines):
        experiment = int(row["experiment"])
        source, _, destination = row["rtt_ms"].partition("->")
        # What the first request takes after the silence does not depend on what it was for.
        is_about_relocations = experiment == 2
        key = Key(
            experiment=experiment,
            metric=_METRICS[row["metric"]],
            protocol=None if row["protocol"] == _EVERY_PROTOCOL else row["protocol"],
            technique=_TECHNIQUES[row["technique"]] if is_about_relocations else None,
            memory_mb=int(row["extra_memory_mb"]) if is_about_relocations else None,
            source_rtt_ms=float(source),
            destination_rtt_ms=float(destination or source),
            loss_percent=float(row["loss_percent"]),
            clients=int(row["clients"]) if row["clients"] else None,
        )
        scale = 0.001 if row["metric"].endswith("_ms") else 1.0
        n = int(row["n"])
        yield (
            key,
            Finding(
                n,
                _REPETITIONS[experiment] - n,
                *(
                    # To the digits that the thesis has.
                    round(float(row[name]) * scale, 8)
                    for name in ("min", "median", "mean", "p95", "max")
                ),
            ),
        )
