"""Lines over an hour: a server that follows its client, and one that stays."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from quicferry_lab import plotting
from quicferry_lab.evaluation import samples
from quicferry_lab.evaluation.metrics import Measured
from quicferry_lab.evaluation.report.pictures import WIDTH, Picture, style_of
from quicferry_lab.evaluation.run import Backend

_MS = 1000.0
_FAR = "#E4E4E4"
_SLOW = 3
_HANDFUL = 300
"""What takes so many times the usual service time is drawn larger, if it is less than so many."""


def over_the_hour(of_both: Sequence[Measured], backend: Backend) -> Picture | None:
    """Draw service time over time, of the server that stays and of each that follows.

    Args:
        of_both: The results of experiments 5 and 6.
        backend: Which of them.

    Returns:
        The picture; None if no request was answered.
    """
    shown = _of_backend(of_both, backend)
    if not shown:
        return None
    figure = Figure(figsize=(WIDTH, 1.5 + 1.25 * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    in_minutes = any(run["duration"] > 300 for _, run in shown)
    unit = 60.0 if in_minutes else 1.0
    for axes, (one, run) in zip(panels, shown, strict=True):
        _draw_hour(axes, one, run, unit)
    panels[-1].set_xlabel(f"time in {'min' if in_minutes else 's'}")
    title = f"A client that moves, and a server that stays or follows ({_place(of_both, backend)})"
    panels[0].set_ylim(top=2 * panels[0].get_ylim()[1])
    figure.suptitle(title)
    figure.legend(
        handles=[
            Line2D([], [], color="black", linewidth=0.9, linestyle="--", label="the client moves"),
            Line2D(
                [],
                [],
                color=plotting.VERMILION,
                linestyle="",
                marker="v",
                label="the server has followed",
            ),
            Patch(facecolor=_FAR, label="the server is far"),
            Line2D([], [], color=plotting.VERMILION, linestyle="", marker="x", label="failed"),
        ],
        loc="outside lower center",
        ncols=4,
        fontsize=8.5,
    )
    return Picture(
        f"experiments-5-and-6-{backend.value}-over-time",
        title,
        "Each point is a request, at the time when it was sent; the vertical axis is logarithmic. "
        "Grey: the server is far from the client.",
        figure,
    )


def distribution(of_both: Sequence[Measured], backend: Backend) -> Picture | None:
    """Draw the share of requests that took longer than so long; None if none was answered."""
    shown = _of_backend(of_both, backend)
    if not shown:
        return None
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots()
    for one, run in shown:
        requests = one.tables.requests.filter(run=run["run"])
        style = style_of(run["arm"])
        steps = _thinned(requests["service_time"].drop_nulls().sort() * _MS, len(requests))
        axes.step(
            steps["time"],
            steps["share"],
            where="post",
            color=style.colour,
            linestyle=style.line,
            linewidth=3 if run["protocol"] == "none" else 1.6,
            label=run["arm"],
        )
    axes.set_xscale("log")
    plotting.format_logarithmic(axes.xaxis)
    axes.set_yscale("log")
    plotting.format_short_logarithmic(axes.yaxis)
    axes.set_ylim(top=110)
    axes.set_xlabel("service time in ms")
    axes.set_ylabel("requests that took longer, in %")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="upper right", fontsize=8.5)
    title = f"How many requests take longer than how long ({_place(of_both, backend)})"
    axes.set_title(title, fontsize=11.5)
    return Picture(
        f"experiments-5-and-6-{backend.value}-distribution",
        title,
        "The further down and to the left, the better; both axes are logarithmic. A failed request "
        "is longer than all others.",
        figure,
    )


def _of_backend(
    of_both: Sequence[Measured], backend: Backend
) -> list[tuple[Measured, dict[str, Any]]]:
    """Return the first run of each arm with an answer; the server that stays comes first."""
    return [
        (one, run)
        for one in sorted(of_both, key=lambda one: -(one.experiment or 0))
        if one.backend is backend
        for run in _answered(one).unique("arm", keep="first", maintain_order=True).to_dicts()
    ]


def _answered(one: Measured) -> pl.DataFrame:
    """Return the runs of which any request was answered."""
    answered = one.tables.requests.drop_nulls("service_time")
    return one.tables.runs.join(answered, on="run", how="semi", maintain_order="left")


def _place(of_both: Sequence[Measured], backend: Backend) -> str:
    return next(one.place for one in of_both if one.backend is backend)


def _draw_hour(axes: Axes, one: Measured, run: dict[str, Any], unit: float) -> None:
    requests = one.tables.requests.filter(run=run["run"])
    relocations = one.tables.relocations.filter(run=run["run"])
    style = style_of(str(run["arm"]))
    done = requests.drop_nulls("service_time")
    is_slow = pl.col("service_time") > _SLOW * median(done["service_time"])
    # There are thousands of usual ones, and a handful that matter.
    slow_size = 3.6 if len(done.filter(is_slow)) < _HANDFUL else 2.2
    for condition, size in ((~is_slow, 2.2), (is_slow, slow_size)):
        some = done.filter(condition)
        axes.plot(
            some["started"] / unit,
            some["service_time"] * _MS,
            linestyle="",
            marker=style.marker if style.marker != "x" else "o",
            markersize=size,
            markeredgewidth=0,
            color=style.colour,
            rasterized=True,
            zorder=3,
        )
    failed = requests.filter(pl.col("service_time").is_null())
    axes.plot(
        failed["started"] / unit,
        [0.95] * len(failed),
        linestyle="",
        marker="x",
        color=plotting.VERMILION,
        transform=axes.get_xaxis_transform(),
    )
    end = max(requests["started"], default=0.0)
    for begin, until in samples.far_times(run, relocations):
        axes.axvspan(begin / unit, min(until, end) / unit, color=_FAR, zorder=0, linewidth=0)
        axes.axvline(begin / unit, color="black", linewidth=0.9, linestyle="--", zorder=1)
        if until < end and run["technique"] != "none":
            axes.plot(
                until / unit,
                1.0,
                marker="v",
                markersize=6,
                color=plotting.VERMILION,
                transform=axes.get_xaxis_transform(),
                clip_on=False,
            )
    axes.margins(x=0.01)
    axes.set_yscale("log")
    plotting.format_short_logarithmic(axes.yaxis)
    axes.set_ylabel("ms")
    axes.grid(visible=True, axis="y", alpha=0.3)
    words = f"{run['arm']}  \N{EN DASH}  {len(requests):,} requests"
    if len(failed):
        words += f", {len(failed)} failed"
    axes.set_title(words, loc="left", fontsize=9)


def _thinned(times: pl.Series, number: int) -> pl.DataFrame:
    """Return at most some hundred steps of the share of requests that took longer than so long."""
    frame = pl.DataFrame({"time": times}).with_row_index("rank", offset=1)
    frame = frame.select("time", (100 - pl.col("rank") * 100 / number).alias("share"))
    frame = frame.unique("time", keep="last", maintain_order=True)
    start = frame.head(1).with_columns(share=pl.lit(100.0))
    steps = pl.concat([start, frame.gather_every(max(1, len(frame) // 400)), frame.tail(100)])
    # Nothing took longer than the longest one: that is not on the axis.
    return (
        steps.unique(maintain_order=True)
        .sort("time", maintain_order=True)
        .filter(pl.col("share") > 1e-9)
    )
