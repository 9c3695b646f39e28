"""The picture of a sweep: what each of its parameters does."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quicferry_lab import plotting
from quicferry_lab.evaluation import metrics
from quicferry_lab.evaluation.metrics import METRICS, Measured
from quicferry_lab.evaluation.report.pictures import WIDTH, Picture

_MS = 1000.0
_CHOSEN = ("first_request", "during", "longest", "beyond", "notification_time", "service_time")
_PANELS_PER_ROW = 4


def effects(one: Measured) -> Picture | None:
    """Draw one metric by the values of each parameter that differs; None if there is nothing."""
    metric = metric_of(one)
    if metric is None:
        return None
    rows = one.rows.filter(pl.col("metric") == metric, pl.col("n") > 0)
    parameters = metrics.telling_apart(one.tables.runs)
    height = -(-len(parameters) // _PANELS_PER_ROW)
    figure = Figure(figsize=(WIDTH, 0.9 + 2.9 * height), layout="constrained")
    columns = min(len(parameters), _PANELS_PER_ROW)
    panels = figure.subplots(height, columns, sharey=True, squeeze=False)
    for axes in panels.flat[len(parameters) :]:
        axes.set_axis_off()
    for axes, parameter in zip(panels.flat, parameters, strict=False):
        _draw(axes, parameter, rows)
    label = METRICS[metric].label
    for row in panels:
        row[0].set_ylabel(f"{label} in ms")
    title = f"What each parameter of the sweep does: {label} ({one.place})"
    figure.suptitle(title)
    return Picture(
        f"{one.tables.folder.resolve().name}-effects",
        title,
        "Each point is the median of one combination; the bar is that of all with the value.",
        figure,
    )


def metric_of(one: Measured) -> str | None:
    """Return the metric that says most of a sweep: the first with values of those that may."""
    known = set(one.rows.filter(pl.col("n") > 0)["metric"])
    return next((name for name in _CHOSEN if name in known), None)


def _draw(axes: Axes, parameter: str, rows: pl.DataFrame) -> None:
    values: Sequence[str | float] = rows[parameter].unique(maintain_order=True).to_list()
    if not isinstance(values[0], str):
        values = sorted(values)
    for position, value in enumerate(values):
        medians = rows.filter(pl.col(parameter) == value)["median"] * _MS
        axes.plot(
            [position] * len(medians),
            medians,
            linestyle="",
            marker="o",
            markersize=4,
            color=plotting.BLUE,
            alpha=0.5,
            rasterized=len(medians) > 200,
        )
        axes.plot(
            [position - 0.3, position + 0.3],
            [median(medians)] * 2,
            color="black",
            linewidth=2,
        )
    texts = [value if isinstance(value, str) else f"{value:g}" for value in values]
    is_long = sum(map(len, texts)) > 24
    axes.set_xticks(
        range(len(values)),
        texts,
        rotation=30 if is_long else 0,
        ha="right" if is_long else "center",
    )
    axes.set_xlim(-0.6, len(values) - 0.4)
    if (rows["median"] > 0).all():
        axes.set_yscale("log")
        plotting.format_logarithmic(axes.yaxis)
    axes.set_title(parameter.replace("_", " "))
    axes.grid(visible=True, axis="y", alpha=0.3)
