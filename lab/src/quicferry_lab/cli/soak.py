"""`quicferry soak`: for as long as one likes, with scenarios that nobody has thought of."""

from __future__ import annotations

import os
from collections.abc import Iterable

import click

from quicferry.cli.help import Command, Group
from quicferry_lab import soak as player
from quicferry_lab import soak_handovers
from quicferry_lab.simulation.scenario import Peer


@click.group(
    cls=Group,
    examples=(
        "quicferry soak migrations --seeds 70000000..70019999",
        "quicferry soak handovers --handovers 400",
    ),
)
def soak() -> None:
    """Play migrations and handovers again and again, and name what fails."""


def _seeds(ctx: click.Context, param: click.Parameter, value: str) -> Iterable[int]:
    try:
        return player.parse_seeds(value)
    except ValueError as exc:
        raise click.BadParameter(str(exc), ctx, param) from exc


@soak.command(
    examples=(
        "quicferry soak migrations --seeds forever --jobs 1",
        "quicferry soak migrations --peer thesis-server --seeds 20000",
        "quicferry soak migrations --seeds 709440..709440 --trace",
    )
)
@click.option(
    "--seeds",
    default="1000",
    show_default=True,
    callback=_seeds,
    help="N (0 to N - 1), A..B (both included), or `forever`.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=os.cpu_count() or 1,
    show_default="one for each processor",
    help="Processes.",
)
@click.option(
    "--peer",
    type=click.Choice([each.value for each in Peer]),
    default=Peer.OURS.value,
    show_default=True,
    help="Let one side behave as the thesis's implementation does.",
)
@click.option("--trace", is_flag=True, help="Play one after the other, and print what happens.")
@click.pass_context
def migrations(ctx: click.Context, seeds: Iterable[int], jobs: int, peer: str, trace: bool) -> None:
    """Play simulated migrations; each seed is one scenario.

    A seed that fails is printed with its scenario and the command that plays it again. The exit
    status is 1 if one has failed, or the memory of a process grows.
    """
    if trace:
        for seed in seeds:
            player.trace(seed, Peer(peer))
        return
    ctx.exit(player.report(player.play_all(seeds, jobs, Peer(peer))))


@soak.command(cls=Command, examples=("quicferry soak handovers --handovers 400",))
@click.option(
    "--handovers",
    type=click.IntRange(min=8),
    default=200,
    show_default=True,
    help="How many; half a second each.",
)
@click.option("--clients", type=click.IntRange(min=1), default=5, show_default=True)
@click.pass_context
def handovers(ctx: click.Context, handovers: int, clients: int) -> None:
    """Hand a server to and fro between two agents while clients send requests.

    The exit status is 1 if a request fails, or the memory of an agent grows.
    """
    ctx.exit(soak_handovers.report(soak_handovers.hand_over(handovers, clients)))
