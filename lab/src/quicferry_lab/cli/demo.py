"""`quicferry demo`: the main job on real sockets, for everyone to see."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from quicferry.cli.help import Command
from quicferry.cli.options import Number, qlog_option
from quicferry.protocol import Policy, Scheduler
from quicferry_lab.demo.display import Display, print_result
from quicferry_lab.demo.orchestrator import run_demo
from quicferry_lab.demo.results import DemoResult
from quicferry_lab.demo.settings import (
    MIXED,
    PROTOCOL_NAMES,
    SMALLEST_RATE_MBIT,
    TOTAL_RATE_MBIT,
    Settings,
    Technique,
    default_rate,
)
from quicferry_lab.emulation import PathSpec

SMALLEST_MIX = len(PROTOCOL_NAMES) + 1
PLOT_FORMATS = (".pdf", ".png", ".svg")
STDOUT = "-"
MOST_CLIENTS = 1000
MOST_OF_A_PATH = 1e6
"""Milliseconds, or Mbit/s."""
KILLED = 128
"""Added to the number of a signal, it is the exit status that tells of it, as in a shell."""

BeforeAfter = tuple[float, float]


def before_after(*, maximum: float = MOST_OF_A_PATH) -> Callable[[str], BeforeAfter]:
    """Return a parser of ``A`` or ``A:B``: numbers for the path before and after the move."""

    def parse(text: str) -> BeforeAfter:
        try:
            numbers = [float(part) for part in text.split(":")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 2):
            raise click.BadParameter(f"{text!r} is neither a number nor two like 18:40")
        for number in numbers:
            if not 0 <= number <= maximum:
                raise click.BadParameter(f"{number:g} is not between 0 and {maximum:g}")
        return numbers[0], numbers[-1]

    return parse


def _check_suffix(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is not None and value.suffix.lower() not in PLOT_FORMATS:
        raise click.BadParameter(f"the name must end in {', '.join(PLOT_FORMATS)}")
    return value


@click.command(
    cls=Command,
    examples=(
        "quicferry demo",
        "quicferry demo --technique rebind",
        "quicferry demo --protocol explicit --policy reactive --rtt 18 --rate 20",
        "quicferry demo --rtt 60:10 --loss 1 --round-trips 3 --plot moves.png",
        "quicferry demo --rtt 0 --rate 0 --clients 20   # bare loopback: shows the CPU's limits",
        "quicferry demo --json - | jq .clients[].longest_gap_ms",
    ),
    epilog="Exit status: 0 when every request was answered and every body was right, 1 when not, "
    "2 wrong usage. A client without the extension is closed when the server moves; that is no "
    "failure.",
)
@click.option(
    "--protocol",
    type=click.Choice([*PROTOCOL_NAMES, MIXED]),
    default=MIXED,
    show_default=True,
    help="Migration protocol of all clients; mixed: each in turn, and one client without any.",
)
@click.option(
    "--policy",
    type=click.Choice([policy.value for policy in Policy]),
    default=Policy.EAGER.value,
    show_default=True,
    help="When clients look for the server; proactive ones are told after the switch.",
)
@click.option(
    "--scheduler",
    type=click.Choice([scheduler.value for scheduler in Scheduler]),
    default=Scheduler.PARALLEL.value,
    show_default=True,
    help="In which order clients try the addresses of a pool.",
)
@click.option(
    "--clients", type=click.IntRange(1, MOST_CLIENTS), default=SMALLEST_MIX, show_default=True
)
@click.option(
    "--duration",
    type=Number(min=0.5),
    default=10.0,
    show_default=True,
    help="Seconds of load.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of sizes, losses, jitter.")
@click.option(
    "--round-trips",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Move there and back so many times; 0: move there once.",
)
@click.option(
    "--technique",
    type=click.Choice([technique.value for technique in Technique]),
    default=Technique.HANDOVER.value,
    show_default=True,
    help="How the server is moved: its connections to another process, or one process to another "
    "address.",
)
@click.option(
    "--rtt",
    type=before_after(),
    metavar="MS[:MS]",
    default="18",
    show_default=True,
    help="Round-trip time of the emulated path to the server; A:B for before and after the move.",
)
@click.option(
    "--rate",
    type=before_after(),
    metavar="MBIT[:MBIT]",
    help=f"Its capacity for each client in Mbit/s; 0 for no limit.  [default: {TOTAL_RATE_MBIT:g} "
    f"for all together, at least {SMALLEST_RATE_MBIT:g} each]",
)
@click.option(
    "--loss",
    type=before_after(maximum=90),
    metavar="PERCENT[:PERCENT]",
    default="0",
    help="Share of the datagrams that it loses, in each direction.",
)
@click.option(
    "--jitter",
    type=before_after(),
    metavar="MS[:MS]",
    default="0",
    help="Longest extra delay that it adds, in each direction.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write the results as JSON; - for stdout, and then nothing else goes there.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    callback=_check_suffix,
    help="Draw service times into a png, svg or pdf file.",
)
@qlog_option
def demo(
    *,
    protocol: str,
    policy: str,
    scheduler: str,
    clients: int,
    technique: str,
    rtt: BeforeAfter,
    rate: BeforeAfter | None,
    loss: BeforeAfter,
    jitter: BeforeAfter,
    json_file: str | None,
    plot: Path | None,
    **options: Any,
) -> None:
    """Move a live HTTP/3 server under load, on real sockets, and check that nobody notices.

    A server starts on 127.0.0.1, clients in other processes send requests back to back, check
    every body, and have large downloads under way; then the server moves to 127.0.0.2: it hands
    its connections over to a process that waits there, or binds that address itself.
    """
    if protocol == MIXED and clients < SMALLEST_MIX:
        click.echo(
            f"note: with {clients} of {SMALLEST_MIX} clients, not every protocol is shown", err=True
        )
    share = default_rate(clients)
    rates = [value or None for value in rate or (share, share)]
    before, after = (
        PathSpec(
            rtt_ms=rtt[side],
            rate_mbit=rates[side],
            loss_percent=loss[side],
            jitter_ms=jitter[side],
            seed=options["seed"],
        )
        for side in (0, 1)
    )
    settings = Settings(
        technique=Technique(technique),
        protocol=protocol,
        policy=Policy(policy),
        scheduler=Scheduler(scheduler),
        clients=clients,
        before=before,
        after=after,
        **options,
    )
    console = Console(stderr=json_file == STDOUT)
    result = asyncio.run(_run(settings, console))
    print_result(console, result)
    if plot is not None:
        from quicferry_lab.demo.plot import save_plot

        save_plot(result, plot)
        console.print(f"plot: {plot}", highlight=False, soft_wrap=True)
    if json_file is not None:
        _write_json(result, json_file)
    if not result.ok:
        sys.exit(1)


async def _run(settings: Settings, console: Console) -> DemoResult:
    task = asyncio.create_task(_show(settings, console))
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        click.echo("interrupted", err=True)
        sys.exit(KILLED + received[0])


async def _show(settings: Settings, console: Console) -> DemoResult:
    with Display(console, settings) as display:
        return await run_demo(settings, display)


def _write_json(result: DemoResult, json_file: str) -> None:
    text = json.dumps(result.encode(), indent=2)
    if json_file == STDOUT:
        click.echo(text)
    else:
        Path(json_file).write_text(text + "\n")
