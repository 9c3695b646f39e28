"""What the page says of runs that failed."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from quicferry_lab.evaluation import metrics
from quicferry_lab.evaluation.metrics import Measured
from quicferry_lab.evaluation.report.page import heading, items, paragraph, plain

_NAMED = 24
"""How many failed runs with the same problem are named one by one."""


def of(one: Measured) -> list[str]:
    """Name every run that failed, by what was wrong with it."""
    failed = one.tables.runs.filter(pl.col("failed"))
    if not len(failed):
        return []
    apart = [name for name in metrics.telling_apart(one.tables.runs) if name != "arm"]
    parts = [heading(f"Failed runs ({one.place}): {len(failed)} of {len(one.tables.runs)}")]
    for (problems,), runs in failed.group_by("problems", maintain_order=True):
        first, _, more = str(problems).partition("\n")
        also = f" (and {len(more.splitlines())} more problems)" if more else ""
        parts.append(paragraph(f"{len(runs)} \N{MULTIPLICATION SIGN} {first}{also}"))
        parts.append(items(_run_names(runs, apart)))
    return parts


def _run_names(runs: pl.DataFrame, parameters: Sequence[str]) -> list[str]:
    """Return the name of each run, or, if there are too many, what they were in all."""
    if len(runs) <= _NAMED:
        return [
            ", ".join(_in_words(name, run[name]) for name in ("arm", *parameters, "seed"))
            for run in runs.to_dicts()
        ]
    values = {
        name: runs[name].unique(maintain_order=True).to_list()
        for name in ("arm", *parameters, "seed")
    }
    return [
        "; ".join(
            " or ".join(_in_words(name, value) for value in of) for name, of in values.items()
        )
        + "; runs.parquet has each of them"
    ]


def _in_words(name: str, value: str | float | None) -> str:
    match name:
        case "loss_percent":
            return f"{value:g} % loss"
        case "memory_mb":
            return f"{value} MB"
        case "source_rtt_ms":
            return f"{value:g} ms"
        case "clients":
            return f"{value} clients"
        case "pause":
            return f"a pause of {value:g} s"
        case "arm" | "peer" | "technique" | "whose":
            return str(value)
        case _:
            return f"{name} {plain(value)}"
