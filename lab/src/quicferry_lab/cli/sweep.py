"""`quicferry lab sweep`: more combinations of parameters than an experiment has."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from quicferry.cli.help import Command
from quicferry.cli.options import PROTOCOL_NAMES
from quicferry.protocol import Policy, Scheduler
from quicferry.relocation import Technique
from quicferry_lab.cli.progress import RunsProgress
from quicferry_lab.cli.run import RESULTS, ended_by_sigterm, output_console, summary_table
from quicferry_lab.evaluation.perform import keep_missing
from quicferry_lab.evaluation.result import Result
from quicferry_lab.evaluation.run import Backend, Run, Script
from quicferry_lab.evaluation.sweep import EXPERIMENTS, Axes, BothPaths, Sweep, plan

Value = TypeVar("Value")

TECHNIQUES = ("handover", *(technique.value for technique in Technique))

_RANGE = ".."


def listed(parse: Callable[[str], Value]) -> Callable[[str], tuple[Value, ...]]:
    """Return a parser of values with commas between them, of which none counts twice."""

    def parse_list(text: str) -> tuple[Value, ...]:
        return tuple(dict.fromkeys(parse(part.strip()) for part in text.split(",")))

    return parse_list


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Return a parser of one of some names."""

    def parse(text: str) -> str:
        if text not in names:
            raise click.BadParameter(f"{text!r} is none of {', '.join(names)}")
        return text

    return parse


def whole(least: int, most: float = float("inf")) -> Callable[[str], int]:
    """Return a parser of a whole number."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            upper = f" to {most:g}" if most < float("inf") else " or more"
            raise click.BadParameter(f"{text!r} is not a whole number, {least}{upper}")
        return int(text)

    return parse


def number(most: float = float("inf")) -> Callable[[str], float]:
    """Return a parser of a number that is not negative."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not 0 <= value <= most or value == float("inf"):
            upper = f"from 0 to {most:g}" if most < float("inf") else "of 0 or more"
            raise click.BadParameter(f"{text!r} is not a number {upper}")
        return value

    return parse


def both_paths(text: str) -> BothPaths:
    """Parse ``A`` or ``A:B``: for both paths, or for that to the source and to the destination."""
    values = [number()(part) for part in text.split(":")]
    if len(values) > 2 or not all(values):
        raise click.BadParameter(f"{text!r} is neither a positive number nor two like 122:18")
    return values[0], values[-1]


MOST_SEEDS = 1_000_000


def seeds(text: str) -> tuple[int, ...]:
    """Parse whole numbers and ranges like ``1..100``, with commas between them."""
    found: list[int] = []
    for part in text.split(","):
        first, dots, last = part.strip().partition(_RANGE)
        begin = whole(1)(first)
        end = whole(begin)(last) if dots else begin
        if end - begin >= MOST_SEEDS:
            raise click.BadParameter(f"{part} are more than {MOST_SEEDS:,} seeds")
        found.extend(range(begin, end + 1))
    return tuple(dict.fromkeys(found))


@click.command(
    cls=Command,
    examples=(
        "quicferry lab sweep --protocol explicit,symmetric --policy eager,reactive --seeds 1..20",
        "quicferry lab sweep --rtt 18,122,122:18 --rate 13,100 --loss 0,1.5 --clients 1,30",
        "quicferry lab sweep --script first-request --protocol pool-of-addresses --pool-size 1,3,7",
        "quicferry lab sweep --technique cold,handover --memory 0,100 --dry-run",
        "quicferry lab sweep --seeds 1..1000 --scheduler tcp://192.0.2.7:8786",
    ),
    epilog="Exit status: 0 success, 1 if a run has failed, 2 wrong usage, 130 after Ctrl-C.",
)
@click.option(
    "--script",
    type=click.Choice([script.value for script in EXPERIMENTS]),
    default=Script.OVER_TIME.value,
    show_default=True,
    help="over-time: clients send requests of all sizes while the server is relocated, as in "
    "experiment 4 (with --clients 30). first-request: the first request of one client after that, "
    "as in experiment 1 (with --rtt 122:18 --rate 13:100).",
)
@click.option(
    "--protocol",
    "protocols",
    type=listed(one_of(PROTOCOL_NAMES)),
    metavar="NAMES",
    default="explicit,symmetric",
    show_default=True,
    help=f"Migration protocols: {', '.join(PROTOCOL_NAMES)}.",
)
@click.option(
    "--policy",
    "policies",
    type=listed(one_of([policy.value for policy in Policy])),
    metavar="NAMES",
    default=Policy.EAGER.value,
    show_default=True,
    help="When clients look for the server (explicit): "
    f"{', '.join(policy.value for policy in Policy)}.",
)
@click.option(
    "--pool-size",
    "pool_sizes",
    type=listed(whole(1, 7)),
    metavar="NUMBERS",
    default="3",
    show_default=True,
    help="Addresses in the server's pool (pool-of-addresses).",
)
@click.option(
    "--pool-scheduler",
    "schedulers",
    type=listed(one_of([scheduler.value for scheduler in Scheduler])),
    metavar="NAMES",
    default=Scheduler.PARALLEL.value,
    show_default=True,
    help="In which order clients look through it: "
    f"{', '.join(scheduler.value for scheduler in Scheduler)}.",
)
@click.option(
    "--technique",
    "techniques",
    type=listed(one_of(TECHNIQUES)),
    metavar="NAMES",
    default="handover",
    show_default=True,
    help="How the server is relocated, which says for how long it is silent: "
    f"{', '.join(TECHNIQUES)}.",
)
@click.option(
    "--memory",
    "memories",
    type=listed(whole(0)),
    metavar="MB",
    default="0",
    show_default=True,
    help="What the application keeps in memory, beside the rest.",
)
@click.option(
    "--clients",
    type=listed(whole(1)),
    metavar="NUMBERS",
    default="1",
    show_default=True,
    help="How many there are.",
)
@click.option(
    "--pause",
    "pauses",
    type=listed(number()),
    metavar="SECONDS",
    help="Between a response and the next request. By default as the experiment has it: 0 in "
    "over-time, 5 in first-request.",
)
@click.option(
    "--rtt",
    "rtts",
    type=listed(both_paths),
    metavar="MS",
    default="18",
    show_default=True,
    help="Round-trip times; 122:18 is 122 ms to the source and 18 ms to the destination.",
)
@click.option(
    "--rate",
    "rates",
    type=listed(both_paths),
    metavar="MBIT/S",
    default="100",
    show_default=True,
    help="Rates of the paths, in the same way.",
)
@click.option(
    "--loss",
    "losses",
    type=listed(number(100)),
    metavar="PERCENT",
    default="0",
    show_default=True,
    help="Of packets, each way.",
)
@click.option(
    "--seeds",
    type=seeds,
    metavar="NUMBERS",
    default="1..10",
    show_default=True,
    help="Of everything random: each combination is run once for each.",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Use the cluster of this scheduler of Dask's, for example tcp://192.0.2.7:8786, and not "
    "processes of this machine. Its workers must have the same quicferry.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes on this machine. By default as many as it has processors.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS / "sweep",
    show_default=True,
    metavar="DIR",
    help="Where results go, and are looked for: what is there is not run again.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be run, and run nothing.")
@click.option("--json", "as_array", is_flag=True, help="Print the groups as a JSON array.")
def sweep(
    *,
    script: str,
    scheduler: str | None,
    workers: int | None,
    out: Path,
    dry_run: bool,
    as_array: bool,
    **lists: Sequence[Any] | None,
) -> None:
    """Run every combination of lists of parameters, in the simulation.

    Lists have commas between their values. Combinations that make no sense are left out, like
    several policies of a protocol that has none, or memory of a technique of which it is not known
    how long it takes with that.

    Results are tables as `quicferry lab run` makes them. When it is interrupted, the same command
    goes on with what is missing; with longer lists it adds to what is there. The table at the end
    has a row for each group of runs that differ in their seed only.
    """
    if scheduler is not None and workers is not None:
        raise click.UsageError("--workers is for processes of this machine, not for --scheduler")
    given = {name: values for name, values in lists.items() if values is not None}
    planned = plan(Axes(Script(script), **given))
    if planned.left_out:
        click.echo(
            f"{planned.left_out} combinations make no sense, or are like another one: left out",
            err=True,
        )
    if dry_run:
        for run in planned.runs:
            click.echo(str(run))
        return
    with ended_by_sigterm():
        _carry_out(planned, scheduler, workers or os.cpu_count() or 1, out)
    _tell(planned, out, as_array=as_array)


def _carry_out(planned: Sweep, scheduler: str | None, workers: int, out: Path) -> None:
    """Carry out what is not there yet."""
    from quicferry_lab.evaluation.cluster import existing_cluster, local_cluster, perform_on
    from quicferry_lab.evaluation.store import Settings, Store

    def perform_these(missing: Sequence[Run]) -> Generator[Result]:
        if scheduler is None:
            cluster = local_cluster(min(workers, len(missing)))
        else:
            cluster = existing_cluster(scheduler)
        with cluster as client:
            yield from perform_on(client, missing)

    with Store(out, Settings("sweep", Backend.SIM), planned.runs) as store:
        done = store.finished().intersection(run.key for run in planned.runs)
        with RunsProgress(len(planned.runs), len(done)) as progress:
            try:
                keep_missing(store, planned.runs, perform_these, progress.add)
            except KeyboardInterrupt:
                click.echo("interrupted; the same command goes on with what is missing", err=True)
                raise


def _tell(planned: Sweep, out: Path, *, as_array: bool) -> None:
    """Print what has been found, and exit with 1 if a run has failed."""
    from quicferry_lab.evaluation import store
    from quicferry_lab.evaluation.groups import ALWAYS, groups

    tables = store.read(out).only(planned.runs)
    rows = groups(tables)
    if as_array:
        click.echo(json.dumps(rows, indent=1))
    else:
        output_console().print(summary_table("service times in seconds", rows, always=ALWAYS))
    if failed := int(tables.runs["failed"].sum()):
        click.echo(f"{failed} of {len(planned.runs)} runs have failed", err=True)
        sys.exit(1)
