"""The picture of a run as a file: service time over time, and each client around a relocation."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from quicferry_lab import plotting
from quicferry_lab.demo.results import ClientReport, DemoResult
from quicferry_lab.demo.settings import PROTOCOL_NAMES, WITHOUT_EXTENSION, ClientPlan

FORMATS = (".png", ".svg", ".pdf")
MAX_LANES = 20
SHOWN_GAP = 0.02
AROUND_SWITCH = (-0.25, 0.5)
"""Seconds before and after a network switch that the lower picture shows."""

STYLES = dict(
    zip(
        (*PROTOCOL_NAMES, WITHOUT_EXTENSION),
        (
            (plotting.BLUE, "o"),
            (plotting.ORANGE, "s"),
            (plotting.GREEN, "^"),
            (plotting.PURPLE, "D"),
            (plotting.GREY, "x"),
        ),
        strict=True,
    )
)


def save_plot(result: DemoResult, path: Path) -> None:
    """Draw a run into a file whose suffix says the format: png, svg or pdf."""
    lanes = min(MAX_LANES, len(result.clients))
    figure = Figure(figsize=(9, 5.2 + 0.22 * lanes), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 1 + 0.18 * lanes])
    _draw_service_time(upper, result)
    _draw_around_switch(lower, result)
    figure.savefig(path, dpi=150)


def _draw_service_time(axes: Axes, result: DemoResult) -> None:
    for protocol, (colour, marker) in STYLES.items():
        samples = [
            sample
            for plan, report in result.clients
            if plan.protocol == protocol
            for sample in report.samples
            if sample.kind == "echo"
        ]
        if samples:
            axes.scatter(
                [sample.started - result.started for sample in samples],
                [sample.seconds * 1000 for sample in samples],
                s=9,
                c=colour,
                marker=marker,
                linewidths=0.6,
                alpha=0.7,
                label=_protocol_label(protocol),
            )
    for number, relocation in enumerate(result.relocations):
        axes.axvline(
            relocation.switched_at - result.started,
            color="black",
            linewidth=1,
            linestyle="--",
            label="network switch" if number == 0 else None,
        )
    axes.set_yscale("log")
    plotting.format_logarithmic(axes.yaxis)
    axes.set_xlabel("time in s")
    axes.set_ylabel("service time in ms")
    axes.set_title("Service time of 1 KB echo requests while the server moves", fontsize=11)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False, fontsize=9)


def _draw_around_switch(axes: Axes, result: DemoResult) -> None:
    """Draw a lane for each client, with a bar from the start to the end of each request."""
    axes.set_title(
        "Requests of each client around the first network switch\n"
        f"(a bar each; black: no response bytes for {SHOWN_GAP * 1000:.0f} ms and more)",
        fontsize=11,
    )
    axes.set_xlabel("time after the network switch in ms")
    if not result.relocations:
        axes.text(0.5, 0.5, "no relocation took place", ha="center", transform=axes.transAxes)
        return
    switched_at = result.relocations[0].switched_at
    shown = result.clients[:MAX_LANES]
    for lane, (plan, report) in enumerate(shown):
        _draw_lane(axes, lane, plan, report, switched_at)
    axes.axvline(0, color="black", linewidth=1, linestyle="--")
    axes.set_xlim(AROUND_SWITCH[0] * 1000, AROUND_SWITCH[1] * 1000)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_yticks(
        range(len(shown)),
        [f"{plan.id}  {_protocol_label(plan.protocol)}" for plan, _ in shown],
        fontsize=8,
    )


def _draw_lane(
    axes: Axes, lane: int, plan: ClientPlan, report: ClientReport, switched_at: float
) -> None:
    colour, _ = STYLES[plan.protocol]
    earliest, latest = AROUND_SWITCH
    bars = [
        ((sample.started - switched_at) * 1000, sample.seconds * 1000)
        for sample in report.samples
        if sample.started - switched_at < latest
        and sample.started + sample.seconds - switched_at > earliest
    ]
    axes.broken_barh(bars, (lane - 0.35, 0.7), facecolor=colour, edgecolor="white", linewidth=0.4)
    gaps = [
        ((gap.started - switched_at) * 1000, gap.seconds * 1000)
        for gap in report.gaps
        if gap.seconds >= SHOWN_GAP
        and gap.started - switched_at < latest
        and gap.ended - switched_at > earliest
    ]
    axes.broken_barh(gaps, (lane - 0.1, 0.2), facecolor="black")


def _protocol_label(protocol: str) -> str:
    return "without the extension" if protocol == WITHOUT_EXTENSION else protocol
