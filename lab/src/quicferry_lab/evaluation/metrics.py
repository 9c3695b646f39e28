"""What the tables of an experiment say: metrics by group of runs, beside the thesis's figures.

A group is all runs that differ in nothing but their repetition and seed. A metric's values are
either one per run (how long the server was silent) or one per request (the service time).

What has failed is counted, never dropped: ``runs`` and ``failed_runs`` are those of the group;
``failed`` counts values that should be there and are not: failed requests, and for a metric with
one value per run the failed runs, whose values, if they have any, are not among the ``n``.

Quantiles: the median is the one in the middle, or the average of both there. The 95th percentile
is the greatest value that at least 5 % of the distance from the last to the first rank lies above:
the value of rank ``floor(0.95 * (n - 1)) + 1``. That is how the thesis must have done it: of ten
values, neither linear interpolation nor the nearest rank (the tenth) gives its figures; of a
hundred, it is the 95th, as by the nearest rank. Of a few values it is not less than the median.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl

from quicferry_lab.evaluation import experiment, samples, store, thesis
from quicferry_lab.evaluation.run import Backend, Peer, Run, Script
from quicferry_lab.evaluation.samples import NEEDED
from quicferry_lab.evaluation.store import Tables

GROUP = tuple(field.name for field in fields(Run) if field.name not in ("repetition", "seed"))
"""The parameters that the runs of a group have in common."""

FIGURES = ("min", "median", "mean", "p95", "max")


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: In tables.
        label: In words.
        unit: Of its values: ``"s"``, ``"B"``, or empty for a number or a share.
        is_optional: Whether a run that did not fail may lack it.
    """

    name: str
    label: str
    unit: str = "s"
    is_optional: bool = False


METRICS = {
    metric.name: metric
    for metric in (
        Metric("service_time", "service time"),
        Metric("first_request", "first request after the relocation"),
        Metric("request_before", "request before it"),
        Metric("notification_time", "notification time", is_optional=True),
        Metric("pre_dump", "pre-dump", is_optional=True),
        Metric("pre_dump_transfer", "its transfer", is_optional=True),
        Metric("dump", "dump", is_optional=True),
        Metric("transfer", "transfer", is_optional=True),
        Metric("restore", "restore", is_optional=True),
        Metric("work", "dump + transfer + restore", is_optional=True),
        Metric("silence", "silence of the server", is_optional=True),
        Metric("longest", "longest service time"),
        Metric("beyond", "wait beyond the silence", is_optional=True),
        Metric("carried", "carried between the hosts", "B", is_optional=True),
        Metric("before", "service time before the relocation", is_optional=True),
        Metric("during", "service time during the silence", is_optional=True),
        Metric("after", "service time after the relocation", is_optional=True),
        Metric("failed_requests", "failed requests", ""),
        Metric("lost_clients", "lost clients", ""),
        Metric("near", "service time while the server is near", is_optional=True),
        Metric("far", "service time while the server is far", is_optional=True),
        Metric("near_share", "share of requests while it is near", ""),
    )
}

_SUMMARY: dict[Script, tuple[tuple[tuple[str, ...], tuple[str, ...] | None], ...]] = {
    Script.BASELINE: ((("service_time",), None),),
    Script.FIRST_REQUEST: ((("first_request",), None),),
    Script.UNDER_LOAD: (
        (("silence",), ("technique", "memory_mb", "compression", "loss_percent")),
        (("beyond",), ("arm", "loss_percent")),
    ),
    Script.NOTIFICATION: ((("notification_time",), None),),
    Script.OVER_TIME: (
        (("longest",), ("arm", "source_rtt_ms", "loss_percent")),
        (("failed_requests", "lost_clients"), ("arm",)),
    ),
    Script.FOLLOW: ((("near", "far", "near_share", "failed_requests"), None),),
}
"""The metrics of a short summary, and the parameters to tell apart: None for all that differ."""

_NO_VALUES = pl.DataFrame(
    schema={
        "run": pl.String,
        "value": pl.Float64,
        "metric": pl.String,
        "unit": pl.String,
        "_metric": pl.Int64,
    }
)


@dataclass(frozen=True)
class Measured:
    """The results of a directory, and what they say.

    Attributes:
        tables: The results; of the requests, only what metrics and pictures need.
        rows: What `table` makes of them.
    """

    tables: Tables
    rows: pl.DataFrame

    @property
    def experiment(self) -> int | None:
        """The number of the experiment; None if it is a sweep."""
        word, _, number = str(self.tables.settings["name"]).partition(" ")
        return int(number) if word == "experiment" and number.isdecimal() else None

    @property
    def backend(self) -> Backend:
        """What it took place on."""
        return Backend(self.tables.settings["backend"])

    @property
    def is_quick(self) -> bool:
        """Whether it was the experiment's smaller form."""
        return bool(self.tables.settings.get("is_quick"))

    @property
    def place(self) -> str:
        """The backend, and whether it was quick, for titles."""
        return f"{self.backend.value}, quick" if self.is_quick else self.backend.value

    @property
    def slug(self) -> str:
        """The same, for the names of files."""
        return self.place.replace(", ", "-")

    def only(self, condition: pl.Expr) -> Measured:
        """Return what there is of the runs that meet a condition on their parameters."""
        tables = self.tables
        runs = tables.runs.filter(condition)
        relocations = tables.relocations.join(runs, on="run", how="semi", maintain_order="left")
        requests = tables.requests.join(runs, on="run", how="semi", maintain_order="left")
        return Measured(
            replace(tables, runs=runs, relocations=relocations, requests=requests),
            self.rows.filter(condition),
        )


def measure(folder: Path) -> list[Measured]:
    """Return what there is in a directory and in those right below it, by name.

    Raises:
        StoreError: Results cannot be read.
    """
    return [measured(store.read(path)) for path in store.find(folder)]


def measured(tables: Tables) -> Measured:
    """Return some results with what they say."""
    runs = tables.runs.unique("run", maintain_order=True)
    tables = replace(tables, runs=runs, requests=tables.requests.select(NEEDED))
    return Measured(tables, table(tables))


def table(tables: Tables, by: Sequence[str] = GROUP) -> pl.DataFrame:
    """Return all metrics of some results, one row per group and metric, in the order of the runs.

    Args:
        tables: The results.
        by: The parameters that make a group.

    Returns:
        A table with the parameters (null where those of a group differ), ``metric``, ``unit``,
        ``runs``, ``failed_runs``, ``n``, ``failed``, ``min``, ``median``, ``mean``, ``p95``,
        ``max``, the thesis's ``thesis_n``, ``thesis_median`` and ``thesis_p95``, and ``ratio``, of
        our median to the thesis's.
    """
    runs = tables.runs.unique("run", maintain_order=True).with_row_index("_row")
    runs = runs.with_columns(pl.col("_row").min().over(by).alias("_group"))
    common = [
        pl.when(pl.col(name).n_unique() == 1).then(pl.col(name).first()).alias(name)
        for name in GROUP
    ]
    groups = runs.group_by("_group", maintain_order=True).agg(
        *common,
        pl.len().cast(pl.Int64).alias("runs"),
        pl.col("failed").sum().cast(pl.Int64).alias("failed_runs"),
    )
    failed = runs.filter("failed")["run"].implode()
    values = pl.concat(
        [_NO_VALUES, *(_labelled(name, frame, failed) for name, frame in samples.all_of(tables))]
    )
    rows = (
        values.join(runs.select("run", "_group"), on="run", maintain_order="left")
        .group_by("_group", "_metric", maintain_order=True)
        .agg(
            pl.col("metric", "unit").first(),
            pl.col("value").count().cast(pl.Int64).alias("n"),
            pl.col("value").null_count().cast(pl.Int64).alias("failed"),
            pl.col("value").min().alias("min"),
            pl.col("value").median().alias("median"),
            pl.col("value").mean().alias("mean"),
            p95(pl.col("value")).alias("p95"),
            pl.col("value").max().alias("max"),
        )
        .sort("_group", "_metric")
    )
    rows = groups.join(rows, on="_group", maintain_order="right")
    return _beside_thesis(
        rows.select(*GROUP, "metric", "unit", "runs", "failed_runs", "n", "failed", *FIGURES)
    )


def summary(tables: Tables) -> pl.DataFrame:
    """Return what matters most, for some lines at the end: few parameters, few metrics.

    Where there are many combinations, each metric is over all of those that it hardly depends on:
    how long the server is silent has nothing to do with the protocol, for example.
    """
    apart = telling_apart(tables.runs)
    parts, shown = [], []
    for metrics, by in _SUMMARY[Script(tables.runs["script"][0])] if len(tables.runs) else ():
        names = apart if by is None else [name for name in by if tables.runs[name].n_unique() > 1]
        parts.append(table(tables, names or ["arm"]).filter(pl.col("metric").is_in(metrics)))
        shown += [name for name in names or ["arm"] if name not in shown]
    rows = pl.concat(parts) if parts else table(tables)
    return rows.select(
        *shown,
        *("metric", "unit", "runs", "failed_runs", "n", "failed", "median", "p95", "max"),
        *("thesis_median", "thesis_p95", "ratio"),
    )


def beside_ours(one: Measured, metric: str) -> list[dict[str, Any]]:
    """Return a metric's rows with another server than ours, beside what it is with ours.

    Args:
        one: Some results.
        metric: The metric's name.

    Returns:
        `table`'s rows of every other peer, with ``ours_failed_runs``, ``ours_median`` and
        ``ours_p95`` of the group that has no other difference; null if that was not measured.
    """
    names = ("failed_runs", "median", "p95")
    alike = [name for name in GROUP if name not in ("peer", "whose")]
    rows = one.rows.filter(pl.col("metric") == metric)
    is_ours = pl.col("peer") == Peer.OURS.value
    ours = rows.filter(is_ours).select(
        *alike, *(pl.col(name).alias(f"ours_{name}") for name in names)
    )
    return (
        rows.filter(~is_ours)
        .join(ours, on=alike, how="left", nulls_equal=True, maintain_order="left")
        .to_dicts()
    )


def p95(values: pl.Expr) -> pl.Expr:
    """Return the 95th percentile as the thesis computes it."""
    return pl.max_horizontal(values.quantile(0.95, interpolation="lower"), values.median())


def _labelled(name: str, frame: pl.DataFrame, failed: pl.Series) -> pl.DataFrame:
    metric = METRICS[name]
    frame = frame.select("run", pl.col("value").cast(pl.Float64))
    if metric.is_optional:
        # A technique may have no such part: only of a run that has failed is it missing.
        frame = frame.filter(pl.col("value").is_not_null() | pl.col("run").is_in(failed))
        if frame["value"].null_count() == len(frame):
            frame = frame.clear()
    return frame.with_columns(
        pl.lit(name).alias("metric"),
        pl.lit(metric.unit).alias("unit"),
        pl.lit(list(METRICS).index(name), pl.Int64).alias("_metric"),
    )


def _beside_thesis(rows: pl.DataFrame) -> pl.DataFrame:
    schema = {"thesis_n": pl.Int64, "thesis_median": pl.Float64, "thesis_p95": pl.Float64}
    found = [_in_thesis(row) for row in rows.to_dicts()]
    beside = pl.DataFrame(found, schema=schema, orient="row")
    return pl.concat([rows, beside], how="horizontal").with_columns(
        (pl.col("median") / pl.col("thesis_median")).alias("ratio")
    )


def _in_thesis(row: Mapping[str, Any]) -> tuple[int | None, float | None, float | None]:
    if row["experiment"] == 2 and row["metric"] in ("work", "silence"):
        # Where the silence is the thesis's by assumption, it is no finding.
        is_assumed = row["backend"] == Backend.SIM.value
        parameters = (row["technique"], row["memory_mb"], row["loss_percent"])
        return None, None if is_assumed else thesis.silence(*parameters), None
    finding = in_thesis(row)
    return (None, None, None) if finding is None else (finding.n, finding.median, finding.p95)


def in_thesis(row: Mapping[str, Any]) -> thesis.Finding | None:
    """Return what the thesis has found of a group and metric; ``row`` has its parameters."""
    name = _names(row["experiment"]).get(row["arm"])
    is_about_relocations = row["experiment"] == 2
    if name is None and not is_about_relocations:
        return None
    return thesis.find(
        thesis.Key(
            experiment=row["experiment"],
            metric=row["metric"],
            protocol=None if is_about_relocations else name,
            technique=row["technique"] if is_about_relocations else None,
            memory_mb=row["memory_mb"] if is_about_relocations else None,
            source_rtt_ms=row["source_rtt_ms"],
            destination_rtt_ms=row["destination_rtt_ms"],
            loss_percent=row["loss_percent"],
            clients=row["clients"] if row["experiment"] == 3 else None,
        )
    )


@cache
def described(number: int) -> experiment.Experiment:
    """Return an experiment; it is read once."""
    return experiment.load(number)


@cache
def _names(number: int) -> dict[str, str | None]:
    """Return the thesis's names of an experiment's arms."""
    return described(number).arms() if number in experiment.NUMBERS else {}


def telling_apart(runs: pl.DataFrame) -> list[str]:
    """Return the fewest parameters that tell the groups of some runs apart, the arm before all."""
    # Who has asked for a combination says the least of it, so that goes first.
    names = ["arm", *(name for name in GROUP if name not in ("arm", "whose")), "whose"]
    names = [name for name in names if name == "arm" or runs[name].n_unique() > 1]
    groups = _groups(runs, names)
    for name in reversed(names[1:]):
        fewer = [other for other in names if other != name]
        if _groups(runs, fewer) == groups:
            names = fewer
    return names


def _groups(runs: pl.DataFrame, by: Sequence[str]) -> int:
    return runs.select(by).n_unique()
