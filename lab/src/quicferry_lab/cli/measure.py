"""`quicferry lab calibrate` and `containers`: the laboratory itself, and containers in it."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import click

from quicferry.cli.help import Command
from quicferry_lab.bench.report import Figure, as_json
from quicferry_lab.containers.figures import measure
from quicferry_lab.evaluation.comparison import compare
from quicferry_lab.hosts.calibrate import calibrate

_PARTS = {"links": calibrate, "simulation": compare}
"""What can be calibrated, in order."""


@click.command(
    "calibrate",
    cls=Command,
    examples=(
        "quicferry lab calibrate",
        "quicferry lab calibrate --out quicferry-results/calibration.json",
        "quicferry lab calibrate --only links",
    ),
)
@click.option(
    "--only",
    type=click.Choice(_PARTS),
    help="Measure a part: links, or the simulation beside real sockets.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the figures as JSON, too: the evaluation's report shows its DIR/calibration.json.",
)
@click.option("--json", "as_array", is_flag=True, help="Print a JSON array instead of lines.")
def calibrate_command(*, only: str | None, out: Path | None, as_array: bool) -> None:
    """Measure the laboratory itself: its links, and its simulation.

    Are the links what they are said to be, from end to end? And do the same small runs take the
    same time in the simulation and on real sockets? It takes about three minutes. The exit status
    is 1 if a figure is out of its bounds; a machine with other work to do may be the reason.
    """
    if out is not None and not out.parent.is_dir():
        raise click.BadParameter(f"there is no directory {out.parent}", param_hint="--out")

    def tell(figure: Figure) -> None:
        if not as_array:
            click.echo(figure.line())

    figures: list[Figure] = []
    for part, measure_part in _PARTS.items():
        if only in (None, part):
            figures += asyncio.run(measure_part(tell))
    if as_array:
        click.echo(as_json(figures))
    if out is not None:
        out.write_text(as_json(figures) + "\n", encoding="utf-8")
    if not all(figure.is_met for figure in figures):
        sys.exit(1)


@click.command(
    cls=Command, examples=("quicferry lab containers", "quicferry lab containers --reps 9")
)
@click.option(
    "--reps",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How often each trial is made; figures are medians.",
)
@click.option("--json", "as_array", is_flag=True, help="Print a JSON array instead of lines.")
def containers(*, reps: int, as_array: bool) -> None:
    """Measure relocations of real containers, beside the thesis's figures.

    A server in a container of runc is moved between two hosts under load, by each technique that
    this kernel can do. It takes a few minutes. The exit status is 1 if a figure is out of its
    bounds; a machine with other work to do may be the reason.
    """

    async def run() -> list[Figure]:
        figures = []
        async for figure in measure(reps):
            figures.append(figure)
            if not as_array:
                click.echo(figure.line())
        return figures

    figures = asyncio.run(run())
    if as_array:
        click.echo(as_json(figures))
    if not all(figure.is_met for figure in figures):
        sys.exit(1)
