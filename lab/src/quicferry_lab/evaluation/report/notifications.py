"""Lines: how long it takes until all clients are ready, by how many there are."""

from __future__ import annotations

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from quicferry_lab import plotting
from quicferry_lab.evaluation import metrics, thesis
from quicferry_lab.evaluation.metrics import Measured
from quicferry_lab.evaluation.report.pictures import THESIS, WIDTH, Picture, style_of

_MS = 1000.0
_BOUND = 1.5


def notification_times(one: Measured) -> Picture:
    """Draw experiment 3."""
    rows = metrics.table(one.tables, ("arm", "clients", "source_rtt_ms"))
    rows = rows.filter(pl.col("metric") == "notification_time").sort("clients", maintain_order=True)
    rtts = sorted(one.tables.runs["source_rtt_ms"].unique())
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    columns = figure.subplots(1, max(1, len(rtts)), squeeze=False)[0]
    for axes, rtt in zip(columns, rtts, strict=False):
        _draw(axes, rtt, rows.filter(pl.col("source_rtt_ms") == rtt))
    columns[0].set_ylabel("from imminent to ready in ms")
    title = f"How long until all clients are ready, by how many there are ({one.place})"
    figure.suptitle(title)
    handles = [
        Line2D(
            [],
            [],
            color=style_of(str(arm)).colour,
            marker=style_of(str(arm)).marker,
            label=str(arm),
        )
        for arm in rows["arm"].unique(maintain_order=True)
    ]
    handles += [
        Line2D(
            [],
            [],
            color=THESIS,
            linestyle="--",
            marker="o",
            markerfacecolor="white",
            label="thesis, same markers",
        ),
        Line2D([], [], color=plotting.VERMILION, linewidth=1, label="one round trip"),
        Line2D(
            [],
            [],
            color=plotting.VERMILION,
            linestyle=(0, (1, 2)),
            label=f"{_BOUND:g} round trips: the bound for Explicit",
        ),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8.5)
    return Picture(
        f"experiment-3-{one.slug}-notification-times",
        title,
        "Medians, with the least and the greatest value; failed runs are counted at the "
        "top. Symmetric needs no answer from clients; Explicit waits for the "
        "acknowledgement of each.",
        figure,
    )


def _draw(axes: Axes, rtt: float, rows: pl.DataFrame) -> None:
    axes.set_title(f"{rtt:g} ms of round-trip time")
    axes.axhline(rtt, color=plotting.VERMILION, linewidth=1, zorder=1)
    axes.axhline(
        _BOUND * rtt, color=plotting.VERMILION, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1
    )
    arms = rows["arm"].unique(maintain_order=True).to_list()
    # Lines that are the same lie upon each other; the lower ones are broader.
    for order, arm in enumerate(reversed(arms)):
        breadth = len(arms) - 1 - order
        mine = rows.filter(pl.col("arm") == arm)
        known = mine.filter(pl.col("n") > 0)
        style = style_of(arm)
        medians = known["median"] * _MS
        axes.errorbar(
            known["clients"],
            medians,
            yerr=[medians - known["min"] * _MS, known["max"] * _MS - medians],
            color=style.colour,
            marker=style.marker,
            markersize=5 + 3 * breadth,
            capsize=3,
            linewidth=1.2 + 1.5 * breadth,
            zorder=3,
        )
        _draw_thesis(axes, arm, rtt)
    axes.set_xscale("log")
    clients = sorted(rows["clients"].unique())
    axes.set_xticks(clients, [str(number) for number in clients])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("clients")
    axes.set_ylim(bottom=-0.02 * axes.get_ylim()[1])
    axes.grid(visible=True, alpha=0.3)
    failed = rows.group_by("clients").agg(pl.col("failed_runs").sum())
    for number, count in failed.filter(pl.col("failed_runs") > 0).rows():
        axes.annotate(
            f"{count} failed",
            (number, 1.0),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="top",
            fontsize=7.5,
        )


def _draw_thesis(axes: Axes, arm: str, rtt: float) -> None:
    name = metrics.described(3).arms().get(arm)
    points = sorted(
        (key.clients or 0, finding.median * _MS)
        for key, finding in thesis.findings().items()
        if key.experiment == 3 and key.protocol == name and key.source_rtt_ms == rtt
    )
    axes.plot(
        [clients for clients, _ in points],
        [median for _, median in points],
        color=THESIS,
        linestyle="--",
        linewidth=1,
        marker=style_of(arm).marker,
        markerfacecolor="white",
        markersize=5,
        zorder=5,
    )
