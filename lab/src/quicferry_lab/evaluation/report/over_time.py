"""Clouds and a map: what many clients see of a relocation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import matplotlib
import polars as pl
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from quicferry_lab import plotting
from quicferry_lab.evaluation.metrics import Measured
from quicferry_lab.evaluation.report.pictures import WIDTH, Picture

_MS = 1000.0
_COLOURS = (plotting.BLUE, plotting.ORANGE, plotting.GREEN, plotting.PURPLE)
_MARKERS = ("o", "s", "^", "D")
_TECHNIQUES = ("handover", "cold", "pre-copy", "post-copy", "hybrid")


def service_times(one: Measured) -> Picture | None:
    """Draw service time over time for some runs of experiment 4: one in each panel and at each RTT.

    Those with the most memory, the pause in the middle, and without loss are shown; None if no
    request was answered.
    """
    answered = one.tables.requests.drop_nulls("service_time")
    runs = one.tables.runs.join(answered, on="run", how="semi", maintain_order="left")
    if not len(runs):
        return None
    runs = _representative(runs)
    techniques = [each for each in _TECHNIQUES if each in set(runs["technique"])]
    arms = runs["arm"].unique(maintain_order=True).to_list()
    rtts = sorted(runs["source_rtt_ms"].unique())
    figure = Figure(figsize=(WIDTH, 1.5 + 1.55 * len(techniques)), layout="constrained")
    panels = figure.subplots(len(techniques), len(arms), sharex=True, sharey=True, squeeze=False)
    requests = _since_silence(one, runs)
    for (row, technique), (column, arm) in product(enumerate(techniques), enumerate(arms)):
        axes = panels[row][column]
        mine = runs.filter(technique=technique, arm=arm)
        if len(mine):
            _draw_panel(axes, rtts, mine, requests)
        else:
            axes.set_axis_off()
        if column == 0:
            axes.set_ylabel(f"{technique}\nin ms")
    for column in range(len(arms)):
        drawn = [
            panels[row][column] for row in range(len(techniques)) if panels[row][column].axison
        ]
        if drawn:
            drawn[0].set_title(arms[column])
            drawn[-1].set_xlabel("s after silence began")
            drawn[-1].tick_params(labelbottom=True)
    shown = runs.row(0, named=True)
    memory = max(runs["memory_mb"])
    title = f"Service times while the server is relocated ({one.place})"
    figure.suptitle(title)
    figure.legend(
        handles=[
            *(
                Line2D(
                    [], [], color=colour, linestyle="", marker=marker, label=f"{rtt:g} ms of RTT"
                )
                for rtt, colour, marker in zip(rtts, _COLOURS, _MARKERS, strict=False)
            ),
            Line2D([], [], color=plotting.VERMILION, linestyle="", marker="x", label="failed"),
            Patch(facecolor="#DDDDDD", label="the server is silent"),
        ],
        loc="outside lower center",
        ncols=4,
        fontsize=8.5,
    )
    return Picture(
        f"experiment-4-{one.slug}-service-times",
        title,
        f"Each point is a request of one of {shown['clients']} clients, at the time when it was "
        f"sent; {memory} MB of extra memory where the technique has to carry it, a "
        f"pause of {shown['pause'] * 1000:g} ms after each response, no loss. The vertical axis is "
        "logarithmic. A request that meets the silence takes what is left of it: the falling edge.",
        figure,
    )


def longest(one: Measured) -> Picture:
    """Draw the longest service time and lost clients of all combinations of experiment 4."""
    rows = _combinations(one)
    panels = (
        rows.select("source_rtt_ms", "loss_percent").unique().sort("source_rtt_ms", "loss_percent")
    )
    lines = rows.select("technique", "arm").unique(maintain_order=True)
    order = {technique: number for number, technique in enumerate(_TECHNIQUES)}
    lines = lines.sort(pl.col("technique").replace_strict(order, default=9), maintain_order=True)
    columns = rows.select("memory_mb", "pause").unique().sort("memory_mb", "pause")
    figure = Figure(
        figsize=(WIDTH, 1.9 + 0.5 * len(panels) + 0.2 * len(lines) * ((len(panels) + 1) // 2)),
        layout="constrained",
    )
    grid = figure.subplots((len(panels) + 1) // 2, min(2, len(panels)), squeeze=False, sharey=True)
    known = rows["longest"].drop_nulls().to_list() or [0.01, 1.0]
    norm = LogNorm(min(known), max(*known, 1.01 * min(known)))
    image = None
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (rtt, loss) in zip(grid.flat, panels.rows(), strict=False):
        part = rows.filter(source_rtt_ms=rtt, loss_percent=loss)
        image = _draw_map(axes, part, lines.rows(), columns.rows(), norm)
        axes.set_title(f"{rtt:g} ms, {f'{loss:g} % loss' if loss else 'without loss'}")
    title = f"The longest service time of each combination, in s ({one.place})"
    figure.suptitle(title)
    if image is not None:
        bar = figure.colorbar(
            image,
            ax=grid,
            location="right",
            fraction=0.03,
            aspect=40,
            format="%g",
            label="longest service time in s",
        )
        bar.ax.yaxis.set_minor_formatter("{x:g}")
    lost, failed = rows["lost_clients"].sum(), rows["failed_runs"].sum()
    return Picture(
        f"experiment-4-{one.slug}-longest",
        title,
        f"Columns: MB of extra memory / pause in ms. {rows['runs'].sum()} runs; {lost:g} clients "
        f"were lost, {failed} runs failed. A cell with an exclamation mark has lost clients or "
        "failed runs, and the longest of what was answered; an empty one has no run.",
        figure,
    )


def _representative(runs: pl.DataFrame) -> pl.DataFrame:
    """Return the first run with the most memory and the middle pause of each panel and RTT."""
    runs = runs.filter(pl.col("loss_percent") == runs["loss_percent"].min())
    pauses = sorted(runs["pause"].unique())
    runs = runs.filter(pl.col("pause") == pauses[len(pauses) // 2])
    by = ["technique", "arm", "source_rtt_ms"]
    return (
        runs.sort("memory_mb", descending=True, maintain_order=True)
        .unique(by, keep="first", maintain_order=True)
        .sort("whose", descending=True, maintain_order=True)
    )


def _since_silence(one: Measured, runs: pl.DataFrame) -> pl.DataFrame:
    instants = one.tables.relocations.filter(pl.col("number") == 1).select(
        "run", "silent_at", "restored_at"
    )
    return (
        one.tables.requests.join(runs, on="run", how="semi", maintain_order="left")
        .join(instants, on="run", how="left", maintain_order="left")
        .select(
            "run",
            "service_time",
            (pl.col("started") - pl.col("silent_at").fill_null(0.0)).alias("since"),
            (pl.col("restored_at") - pl.col("silent_at")).alias("silence"),
        )
    )


def _draw_panel(
    axes: Axes, rtts: Sequence[float], runs: pl.DataFrame, requests: pl.DataFrame
) -> None:
    for run, rtt in runs.select("run", "source_rtt_ms").rows():
        mine = requests.filter(run=run)
        number = rtts.index(rtt)
        done = mine.drop_nulls("service_time")
        axes.plot(
            done["since"],
            done["service_time"] * _MS,
            linestyle="",
            marker=_MARKERS[number % len(_MARKERS)],
            markersize=2.4,
            markeredgewidth=0,
            alpha=0.6,
            color=_COLOURS[number % len(_COLOURS)],
            rasterized=True,
        )
        failed = mine.filter(pl.col("service_time").is_null())
        axes.plot(
            failed["since"],
            [0.97] * len(failed),
            linestyle="",
            marker="x",
            color=plotting.VERMILION,
            transform=axes.get_xaxis_transform(),
        )
    silence = requests.join(runs, on="run", how="semi")["silence"].max()
    if isinstance(silence, float):
        axes.axvspan(0, silence, color="#DDDDDD", zorder=0, linewidth=0)
    axes.axvline(0, color="black", linewidth=0.8, linestyle="--", zorder=1)
    axes.set_yscale("log")
    plotting.format_short_logarithmic(axes.yaxis)
    axes.grid(visible=True, alpha=0.3)


def _combinations(one: Measured) -> pl.DataFrame:
    """Return a row for each combination, with its longest service time and what went wrong."""
    by = ["technique", "arm", "memory_mb", "pause", "source_rtt_ms", "loss_percent"]
    answered = one.tables.requests.group_by("run").agg(longest=pl.col("service_time").max())
    return (
        one.tables.runs.join(answered, on="run", how="left", maintain_order="left")
        .group_by(by, maintain_order=True)
        .agg(
            pl.col("longest").max(),
            pl.len().alias("runs"),
            pl.col("failed").sum().alias("failed_runs"),
            pl.col("lost_clients").sum(),
        )
    )


def _draw_map(
    axes: Axes,
    rows: pl.DataFrame,
    lines: Sequence[tuple[Any, ...]],
    columns: Sequence[tuple[Any, ...]],
    norm: LogNorm,
) -> Any:
    cells = {
        (row["technique"], row["arm"], row["memory_mb"], row["pause"]): row
        for row in rows.to_dicts()
    }
    values = [
        [
            float("nan")
            if (cell := cells.get((*line, *column))) is None or cell["longest"] is None
            else cell["longest"]
            for column in columns
        ]
        for line in lines
    ]
    image = axes.imshow(values, norm=norm, cmap="cividis_r", aspect="auto")
    colours = matplotlib.colormaps["cividis_r"]
    for (y, line), (x, column) in product(enumerate(lines), enumerate(columns)):
        cell = cells.get((*line, *column))
        if cell is None:
            continue
        is_bad = bool(cell["lost_clients"] or cell["failed_runs"])
        value = cell["longest"]
        text = "none" if value is None else f"{value:.2f}" if value < 9.95 else f"{value:.0f}"
        dark = value is not None and sum(colours(norm(value))[:3]) < 1.5
        axes.text(
            x,
            y,
            f"{text}!" if is_bad else text,
            ha="center",
            va="center",
            fontsize=6.5,
            color="white" if dark else "black",
            fontweight="bold" if is_bad else "normal",
        )
    axes.set_xticks(
        range(len(columns)),
        [f"{memory}/{pause * 1000:g}" for memory, pause in columns],
        fontsize=7,
        rotation=90 if len(columns) > 6 else 0,
    )
    axes.set_yticks(
        range(len(lines)), [f"{technique}, {arm}" for technique, arm in lines], fontsize=7
    )
    for number in range(1, len(lines)):
        if lines[number][0] != lines[number - 1][0]:
            axes.axhline(number - 0.5, color="black", linewidth=0.8)
    return image
