"""`quicferry bench`: what is promised of speed and size, measured here and now."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import click

from quicferry.cli.help import Command
from quicferry_lab.bench import handover, loopback, scale, simulated, snapshots
from quicferry_lab.bench.report import Figure, as_json

_PARTS: dict[str, Callable[[], Iterator[Figure]]] = {
    "simulated": simulated.figures,
    "scale": scale.figures,
    "snapshots": snapshots.figures,
    "loopback": loopback.figures,
    "handover": handover.figures,
}


@click.command(
    cls=Command,
    examples=("quicferry bench", "quicferry bench loopback handover", "quicferry bench --json"),
)
@click.argument("parts", nargs=-1, type=click.Choice(list(_PARTS)), metavar="[PART]...")
@click.option("--json", "as_document", is_flag=True, help="Print JSON instead of a table.")
@click.pass_context
def bench(ctx: click.Context, parts: tuple[str, ...], as_document: bool) -> None:
    """Measure, and compare with what is promised.

    PART is simulated, scale, snapshots, loopback or handover; all of them if none is named. Where a
    peer can do the same, it is measured in the same run, and the figure is a ratio. The exit status
    is 1 if a promise is not kept.
    """
    figures = []
    for name in parts or _PARTS:
        for figure in _PARTS[name]():
            figures.append(figure)
            if not as_document:
                click.echo(figure.line())
    if as_document:
        click.echo(as_json(figures))
    ctx.exit(0 if all(figure.is_met for figure in figures) else 1)
