"""What a sweep has found: a row for each group of runs that differ in nothing but their seed."""

from __future__ import annotations

from typing import Any

from quicferry_lab.evaluation import metrics
from quicferry_lab.evaluation.store import Tables

ALWAYS = ("runs", "failed_runs")
"""Columns that are there whatever they say."""

_TIMES = ("first_request", "after", "longest")
_COUNTS = ("failed_requests", "lost_clients")


def groups(tables: Tables) -> list[dict[str, Any]]:
    """Return the groups, in the order of the runs.

    Args:
        tables: The results of a sweep.

    Returns:
        For each the parameters that tell it from the others, how many runs it has and how many of
        them failed, failed requests and lost clients of all of them together, and the median and
        the 95th percentile of service times in seconds: of the first request after the relocation;
        or of those after it, and of the longest one of each run.
    """
    by = metrics.telling_apart(tables.runs)
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in metrics.table(tables, by).iter_rows(named=True):
        parameters = {name: row[name] for name in by}
        group = found.setdefault(
            tuple(parameters.values()), parameters | {name: row[name] for name in ALWAYS}
        )
        name = row["metric"]
        if name in _COUNTS:
            group[name] = round(row["mean"] * row["n"]) if row["n"] else 0
        elif name in _TIMES:
            group |= {f"{name}_{figure}": row[figure] for figure in ("median", "p95")}
    return list(found.values())
