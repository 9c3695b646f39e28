"""Bars: what a relocation is made of, by technique and memory, the thesis's beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from quicferry_lab import plotting
from quicferry_lab.evaluation import metrics, thesis
from quicferry_lab.evaluation.metrics import Measured
from quicferry_lab.evaluation.report.pictures import WIDTH, Picture
from quicferry_lab.evaluation.run import Backend

TECHNIQUES = ("cold", "pre-copy", "post-copy", "hybrid")
HANDOVER = "handover"
MEMORY = (0, 10, 50, 100)

_PHASES = {"dump": plotting.SKY, "transfer": plotting.ORANGE, "restore": plotting.GREEN}
_GREYS = {"dump": "#D9D9D9", "transfer": "#A6A6A6", "restore": "#737373"}
_SILENCE = plotting.PURPLE
_HATCHES = ("", "//", "..", "xx")


@dataclass(frozen=True)
class Bar:
    """One bar, in seconds.

    Attributes:
        who: Whose it is: ``"thesis"``, or what it was done on and with.
        parts: Its parts, from the bottom; empty if all runs failed.
        failed: How many runs failed.
    """

    who: str
    parts: Mapping[str, float]
    failed: int = 0


def silences(of_experiment: Sequence[Measured]) -> Picture:
    """Draw for how long the server was silent in experiment 2, on all backends together.

    Args:
        of_experiment: The results of experiment 2. What is assumed in the simulation is left out.
    """
    ours = _measured(of_experiment)
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    has_handover = any(technique == HANDOVER for technique, _ in ours)
    techniques = [*TECHNIQUES, HANDOVER] if has_handover else list(TECHNIQUES)
    columns = figure.subplots(
        1,
        len(techniques),
        sharey=True,
        squeeze=False,
        width_ratios=[1.3 if technique == HANDOVER else 4 for technique in techniques],
    )[0]
    for axes, technique in zip(columns, techniques, strict=True):
        sizes = [0] if technique == HANDOVER else MEMORY
        for position, memory in enumerate(sizes):
            _draw_group(
                axes, position, [*_of_thesis(technique, memory), *ours.get((technique, memory), [])]
            )
        axes.set_title(technique)
        axes.set_xticks(range(len(sizes)), [str(memory) for memory in sizes])
        axes.set_xlim(-0.6, len(sizes) - 0.4)
        axes.set_xlabel("" if technique == HANDOVER else "extra memory in MB")
        axes.grid(visible=True, axis="y", alpha=0.3)
    columns[0].set_ylim(top=1.12 * columns[0].get_ylim()[1])
    columns[0].set_ylabel("silence of the server in s")
    title = "For how long a server is silent, by technique and memory"
    figure.suptitle(f"{title}: the thesis's (grey) and ours" if ours else f"{title}: the thesis's")
    _legend(figure, ours)
    return Picture(
        "experiment-2-silences",
        title,
        "Medians without loss, over all protocols. The figure above a bar is its height in seconds."
        " The simulation has none of its own: it takes the thesis's.",
        figure,
    )


def _measured(of_experiment: Sequence[Measured]) -> dict[tuple[str, int], list[Bar]]:
    """Return our bars by technique and memory."""
    bars: dict[tuple[str, int], list[Bar]] = {}
    for one in of_experiment:
        if one.backend is Backend.SIM:
            continue
        rows = metrics.table(one.tables, ("technique", "memory_mb", "compression", "loss_percent"))
        rows = rows.filter(pl.col("loss_percent") == 0)
        for row in rows.unique(
            ["technique", "memory_mb", "compression"], maintain_order=True
        ).to_dicts():
            same = rows.filter(
                *(pl.col(name) == row[name] for name in ("technique", "memory_mb", "compression"))
            )
            medians = dict(zip(same["metric"], same["median"], strict=True))
            parts = {phase: medians.get(phase) for phase in _PHASES}
            if None in parts.values():
                parts = {"silence": medians.get("silence")}
            is_handover = row["technique"] == HANDOVER
            who = one.place if is_handover else f"{one.place}, compression {row['compression']}"
            known = {name: value for name, value in parts.items() if value is not None}
            bar = Bar(who, known, row["failed_runs"])
            bars.setdefault((row["technique"], row["memory_mb"]), []).append(bar)
    return bars


def _of_thesis(technique: str, memory: int) -> list[Bar]:
    found = {phase: thesis.find(thesis.Key(2, phase, None, technique, memory)) for phase in _PHASES}
    parts = {phase: finding.median for phase, finding in found.items() if finding is not None}
    return [Bar("thesis", parts)] if parts else []


def _draw_group(axes: Axes, position: float, bars: Sequence[Bar]) -> None:
    width = 0.84 / max(2, len(bars))
    for number, bar in enumerate(bars):
        x = position + (number - (len(bars) - 1) / 2) * width
        bottom = 0.0
        colours = _GREYS if bar.who == "thesis" else {**_PHASES, "silence": _SILENCE}
        for part, height in bar.parts.items():
            axes.bar(
                x,
                height,
                width * 0.94,
                bottom=bottom,
                color=colours[part],
                hatch=_hatch(part),
                edgecolor="black",
                linewidth=0.6,
            )
            bottom += height
        failures = f"{bar.failed} failed" if bar.failed else ""
        text = f"{bottom:.3f}" if 0 < bottom < 0.1 else f"{bottom:.2f}"
        axes.annotate(
            " ".join(filter(None, (text if bar.parts else "", failures))),
            (x, bottom),
            (0, 3),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=7.5,
            rotation=90,
        )


def _hatch(part: str) -> str:
    return _HATCHES[[*_PHASES, "silence"].index(part)]


def _legend(figure: Figure, ours: Mapping[tuple[str, int], Sequence[Bar]]) -> None:
    bars = [bar for group in ours.values() for bar in group]
    shown = dict.fromkeys(part for bar in bars for part in bar.parts)
    handles = [
        Patch(
            facecolor=_GREYS[part], hatch=_hatch(part), edgecolor="black", label=f"thesis: {part}"
        )
        for part in _PHASES
    ]
    handles += [
        Patch(
            facecolor={**_PHASES, "silence": _SILENCE}[part],
            hatch=_hatch(part),
            edgecolor="black",
            label=f"ours: {part}",
        )
        for part in shown
    ]
    order = "; ".join(dict.fromkeys(["thesis", *(bar.who for bar in bars)]))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=7,
        fontsize=8.5,
        title=f"bars from left to right: {order}",
        title_fontsize=8.5,
    )
