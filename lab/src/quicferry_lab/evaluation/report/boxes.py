"""Boxes: how the values of a metric are spread, for one arm after another, the thesis's beside."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import floor, log10

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from quicferry_lab import plotting
from quicferry_lab.evaluation import metrics, samples, thesis
from quicferry_lab.evaluation.metrics import Measured
from quicferry_lab.evaluation.report.pictures import THESIS, WIDTH, Picture, style_of

_MS = 1000.0


@dataclass(frozen=True)
class Row:
    """One row of boxes.

    Attributes:
        arm: What it is named after.
        values: What was measured, in seconds.
        failed: How many values there should be that are not there.
        finding: The thesis's, if there is one.
    """

    arm: str
    values: Sequence[float]
    failed: int
    finding: thesis.Finding | None


def service_times(one: Measured, others: Iterable[Measured]) -> Picture:
    """Draw experiments 0 and 1: what a request takes, by protocol, with and without loss.

    Args:
        one: The experiment.
        others: Everything else that there is; plain QUIC is added if it was measured there.
    """
    if one.experiment == 0:
        title = f"Plain QUIC: what a request takes where no server moves ({one.place})"
        panels = _panels(one, "service_time")
    else:
        title = f"The first request after a relocation, by protocol and policy ({one.place})"
        panels = _panels(one, "first_request")
        for other in others:
            if other.experiment == 0 and other.backend is one.backend:
                for loss, rows in _panels(other, "service_time").items():
                    plain = [replace(row, arm="plain QUIC, no move") for row in rows]
                    panels[loss] = [*plain, *panels.get(loss, [])]
    return _picture(f"experiment-{one.experiment}-{one.slug}-service-times", title, panels)


def waits(one: Measured) -> Picture | None:
    """Draw, for experiment 2, what a client waits beyond the silence, by protocol."""
    panels = _panels(one, "beyond")
    if not any(row.values for rows in panels.values() for row in rows):
        return None
    return _picture(
        f"experiment-2-{one.slug}-waits",
        f"What the protocol adds to the server's silence ({one.place})",
        panels,
        is_logarithmic=False,
        label="longest request less silence and a round trip, in ms",
    )


def _panels(one: Measured, metric: str) -> dict[float, list[Row]]:
    """Return the rows for each loss there is."""
    frames = [frame for name, frame in samples.all_of(one.tables) if name == metric]
    runs = one.tables.runs.select("run", "arm", "loss_percent")
    panels: dict[float, list[Row]] = {}
    for frame in frames:
        joined = runs.join(frame, on="run", maintain_order="left")
        for (loss, arm), part in joined.group_by("loss_percent", "arm", maintain_order=True):
            values = part["value"]
            panels.setdefault(float(loss), []).append(
                Row(
                    str(arm),
                    values.drop_nulls().to_list(),
                    values.null_count(),
                    _finding(one, str(arm), float(loss), metric),
                )
            )
    return dict(sorted(panels.items()))


def _finding(one: Measured, arm: str, loss: float, metric: str) -> thesis.Finding | None:
    mine = (pl.col("arm") == arm) & (pl.col("loss_percent") == loss) & (pl.col("metric") == metric)
    rows = one.rows.filter(mine).to_dicts()
    return metrics.in_thesis(rows[0]) if rows else None


def _picture(
    name: str,
    title: str,
    panels: dict[float, list[Row]],
    *,
    is_logarithmic: bool = True,
    label: str = "service time in ms",
) -> Picture:
    arms = list(dict.fromkeys(row.arm for rows in panels.values() for row in rows))
    compared = {row.arm for rows in panels.values() for row in rows if row.finding}
    heights = [0.5 if arm in compared else 0.34 for arm in arms]
    figure = Figure(figsize=(WIDTH, 1.7 + sum(heights)), layout="constrained")
    columns = figure.subplots(1, max(1, len(panels)), sharex=True, sharey=True, squeeze=False)[0]
    lowest = min(
        (min(row.values) for rows in panels.values() for row in rows if row.values), default=0.0
    )
    is_logarithmic = lowest > 0 and is_logarithmic
    tops = dict(zip(arms, accumulate(heights, initial=0.0), strict=False))
    for axes, (loss, rows) in zip(columns, panels.items(), strict=False):
        axes.set_title("without loss" if loss == 0 else f"{loss:g} % loss each way")
        for row in rows:
            _draw_row(axes, tops[row.arm], row)
        if is_logarithmic:
            axes.set_xscale("log")
            plotting.format_logarithmic(axes.xaxis)
        axes.grid(visible=True, axis="x", alpha=0.3)
        centres = [tops[arm] + height / 2 for arm, height in zip(arms, heights, strict=True)]
        axes.set_yticks(centres, arms)
        axes.set_ylim(sum(heights), 0)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(label)
    if is_logarithmic:
        columns[0].set_xlim(left=_round_down(lowest * _MS))
    else:
        columns[0].set_xlim(left=min(0.0, lowest * _MS * 1.1))
    figure.suptitle(title)
    _legend(figure, has_thesis=bool(compared))
    return Picture(
        name,
        title,
        "Marker: the median; box: the middle half of the values; whiskers: from the least to the "
        "95th percentile; circles: what is above. At the right: our median"
        + (" and, in grey, the thesis's, both in ms." if compared else " in ms.")
        + (" The axis is logarithmic." if is_logarithmic else ""),
        figure,
    )


def _draw_row(axes: Axes, top: float, row: Row) -> None:
    """Draw a row; vertically, data are inches."""
    y = top + 0.16
    if row.values:
        middle = _draw_box(axes, y, row)
        _say(axes, y, f"{_figures(middle)}{_failures(row.failed)}", "black")
    else:
        _say(axes, y, f"none{_failures(row.failed)}", "black")
    if row.finding is not None:
        _draw_finding(axes, y + 0.2, row.finding)


def _draw_box(axes: Axes, y: float, row: Row) -> float:
    """Draw the values of a row, and return their median."""
    style = style_of(row.arm)
    values = pl.Series(row.values, dtype=pl.Float64) * _MS
    low, middle, high = (
        float(values.quantile(share, "linear") or 0.0) for share in (0.25, 0.5, 0.75)
    )
    least = float(values.quantile(0.0) or 0.0)
    greatest = float(values.quantile(0.95, "lower") or 0.0)
    axes.plot([least, greatest], [y, y], color="black", linewidth=1, zorder=2)
    for end in (least, greatest):
        axes.plot([end, end], [y - 0.05, y + 0.05], color="black", linewidth=1, zorder=2)
    axes.barh(
        y,
        high - low,
        left=low,
        height=0.17,
        color=style.colour,
        hatch=style.hatch,
        edgecolor="black",
        linewidth=0.8,
        zorder=3,
    )
    outliers = values.filter(values > greatest)
    axes.plot(
        outliers,
        [y] * len(outliers),
        linestyle="",
        marker="o",
        markersize=3.5,
        markerfacecolor="none",
        markeredgecolor=style.colour,
        rasterized=len(outliers) > 500,
    )
    axes.plot(
        middle,
        y,
        marker=style.marker if style.marker != "x" else "o",
        markersize=6,
        color=style.colour,
        markeredgecolor="black",
        markeredgewidth=0.9,
        zorder=4,
    )
    return middle


def _draw_finding(axes: Axes, y: float, finding: thesis.Finding) -> None:
    low, middle, high, most = (
        value * _MS for value in (finding.min, finding.median, finding.p95, finding.max)
    )
    axes.plot([low, high], [y, y], color=THESIS, linewidth=4, solid_capstyle="butt", zorder=2)
    axes.plot([middle] * 2, [y - 0.07, y + 0.07], color="black", linewidth=1.8, zorder=4)
    axes.plot(most, y, marker="x", markersize=4.5, color=THESIS, zorder=3)
    _say(axes, y, f"{_figures(middle)}{_failures(finding.failed)}", "#666666")


def _round_down(value: float) -> float:
    """Return the greatest of 1, 2 and 5 times a power of ten that is clearly below a value."""
    power = 10 ** floor(log10(value / 1.1))
    return float(max(step * power for step in (1, 2, 5) if step * power <= value / 1.1))


def _say(axes: Axes, y: float, text: str, colour: str) -> None:
    axes.annotate(
        text,
        (1.01, y),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8,
        color=colour,
    )


def _figures(value: float) -> str:
    return f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"


def _failures(number: int) -> str:
    return f"  ({number} failed)" if number else ""


def _legend(figure: Figure, *, has_thesis: bool) -> None:
    handles = [
        Line2D(
            [],
            [],
            color="black",
            marker="o",
            markerfacecolor="white",
            label="ours: median, middle half, least to p95; circles: above",
        ),
    ]
    if has_thesis:
        handles += [
            Line2D([], [], color=THESIS, linewidth=4, label="thesis: least to p95"),
            Line2D(
                [],
                [],
                color="black",
                linestyle="",
                marker="|",
                markersize=9,
                markeredgewidth=1.6,
                label="its median",
            ),
            Line2D([], [], color=THESIS, linestyle="", marker="x", label="its greatest"),
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8.5)
