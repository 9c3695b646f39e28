"""`quicferry lab run` and `report`: the evaluation's experiments, and what they have found."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from quicferry.cli.help import Command
from quicferry.cli.options import Number
from quicferry.relocation import Technique
from quicferry_lab.bench.report import as_json
from quicferry_lab.cli.progress import RunsProgress
from quicferry_lab.containers.figures import has_soft_dirty
from quicferry_lab.evaluation.experiment import Choices, Experiment, load
from quicferry_lab.evaluation.perform import keep_missing, perform_all
from quicferry_lab.evaluation.run import Backend, Run

if TYPE_CHECKING:
    from quicferry_lab.evaluation.store import Settings, Tables

RESULTS = Path("quicferry-results")
"""Where results go if nobody says where."""

TERMINATED = 128 + signal.SIGTERM
"""The exit status that tells of the signal, as in a shell."""

_FILE_WIDTH = 140


def _only(
    _: click.Context, __: click.Parameter, given: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r} is not like technique=cold")
        found[name] = (*found.get(name, ()), value)
    return found


@click.command(
    cls=Command,
    examples=(
        "quicferry lab run 1 --quick",
        "quicferry lab run 0 1 3 --reps 100 --out results",
        "quicferry lab run 1 --backend netns --jobs 4",
        "quicferry lab run 2 --backend containers --only technique=cold --only memory_mb=100",
        "quicferry lab run 5 6 --time-scale 0.1",
    ),
    epilog="Exit status: 0 success, 1 if a run has failed, 2 wrong usage, 130 after Ctrl-C.",
)
@click.argument("numbers", metavar="EXPERIMENT...", nargs=-1, required=True, type=int)
@click.option("--reps", type=click.IntRange(min=1), help="How often each combination is run.")
@click.option("--quick", is_flag=True, help="Run a smaller form, to see what it is like.")
@click.option(
    "--backend",
    type=click.Choice([backend.value for backend in Backend]),
    default=Backend.SIM.value,
    show_default=True,
    help="sim: real connections in virtual time. netns: real sockets and emulated links (root). "
    "containers: relocations of real containers (root).",
)
@click.option(
    "--seed", default=1, show_default=True, help="Of the first repetition; others have the next."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    show_default=True,
    metavar="DIR",
    help="Where results go, and are looked for: what is there is not run again.",
)
@click.option(
    "--only",
    multiple=True,
    callback=_only,
    metavar="NAME=VALUE",
    help="Run only what has this parameter; can be repeated, for other values as well.",
)
@click.option(
    "--time-scale",
    type=Number(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="What the hour of experiments 5 and 6, and the time between moves, is multiplied by.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="How many runs at a time. By default as many as there are processors on sim, else one: "
    "runs in real time disturb one another.",
)
@click.option("--dry-run", is_flag=True, help="Print what would be run, and run nothing.")
@click.option("--json", "as_array", is_flag=True, help="Print the summary as a JSON array.")
def run(
    *,
    numbers: tuple[int, ...],
    reps: int | None,
    quick: bool,
    backend: str,
    seed: int,
    out: Path,
    only: dict[str, tuple[str, ...]],
    time_scale: float,
    jobs: int | None,
    dry_run: bool,
    as_array: bool,
) -> None:
    """Carry out experiments of the evaluation, 0 to 6.

    0: plain QUIC. 1: what the protocol alone costs. 2: protocol and relocation together. 3: how
    long until all clients are ready. 4: service times over time with many clients. 5: the server
    follows a moving client. 6: the client moves, the server stays.

    Results are tables in Parquet, one row per request, in a directory for each experiment and
    backend. When it is interrupted, the same command goes on with what is missing. The exit status
    is 1 if a run has failed; it is kept, as failed.
    """
    choices = Choices(Backend(backend), reps, quick, seed, time_scale, only)
    planned = [
        (experiment, experiment.runs(choices)) for experiment in map(load, dict.fromkeys(numbers))
    ]
    if dry_run:
        for _, runs in planned:
            for each in runs:
                click.echo(str(each))
        return
    if choices.backend is not Backend.SIM and os.geteuid() != 0:
        raise click.ClickException(f"--backend {backend} makes hosts of namespaces: use sudo")
    if choices.backend is Backend.CONTAINERS:
        planned = [(experiment, _possible(runs)) for experiment, runs in planned]
        if not all(runs for _, runs in planned):
            raise click.ClickException("nothing is left to run on this kernel")
    from quicferry_lab.evaluation.store import check_settings

    for experiment, _ in planned:
        check_settings(_folder(experiment, choices, out), _settings(experiment, choices))
    if jobs is None:
        jobs = (os.cpu_count() or 1) if choices.backend is Backend.SIM else 1
    rows: list[dict[str, Any]] = []
    failed = 0
    for experiment, runs in planned:
        with ended_by_sigterm():
            tables = _carry_out(experiment, runs, choices, out, jobs)
        failed += int(tables.runs["failed"].sum())
        found = _summary(tables)
        rows += found
        if not as_array:
            title = f"{experiment.number}: {experiment.title}"
            output_console().print(summary_table(title, found))
    if as_array:
        click.echo(json.dumps(rows, indent=1))
    if failed:
        click.echo(f"{failed} runs have failed", err=True)
        sys.exit(1)


@click.command(
    cls=Command,
    examples=("quicferry lab report", "quicferry lab report results --json | jq '.[].is_met'"),
)
@click.argument(
    "folder",
    metavar="[DIR]",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=RESULTS,
)
@click.option("--json", "as_array", is_flag=True, help="Print the figures as a JSON array.")
def report(*, folder: Path, as_array: bool) -> None:
    """Make a page of what `quicferry lab run` has found, beside what the thesis has.

    DIR/report.html is one file with everything in it; DIR/pictures has its pictures as PNG and SVG.
    The figures that are promised are printed. The exit status is 1 if one of them is missed.
    """
    from quicferry_lab.evaluation import bounds, store
    from quicferry_lab.evaluation import report as made

    found = store.find(folder)
    if not found:
        raise click.ClickException(f"{folder} has no results of `quicferry lab run` or `sweep`")
    for path in made.write(folder):
        if path.suffix == ".html":
            click.echo(str(path), err=True)
    figures = bounds.figures([store.read(each) for each in found])
    if as_array:
        click.echo(as_json(figures))
    else:
        for figure in figures:
            click.echo(figure.line())
    if not all(figure.is_met for figure in figures):
        sys.exit(1)


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM, by which queues of clusters end what takes too long, leave nothing behind."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(TERMINATED)

    usual = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


def output_console() -> Console:
    """Return what prints tables to stdout: as wide as a terminal, or wide enough for a file."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)


def _possible(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that this kernel can carry out, and say if some are left out."""
    possible = [run for run in runs if not Technique(run.technique).copies_before]
    if len(possible) == len(runs) or asyncio.run(has_soft_dirty()):
        return list(runs)
    click.echo(
        f"{len(runs) - len(possible)} runs are left out: pre-copy and hybrid need a kernel that "
        "tracks changes of memory (soft-dirty); `quicferry doctor` says more",
        err=True,
    )
    return possible


def _folder(experiment: Experiment, choices: Choices, out: Path) -> Path:
    return out / f"experiment-{experiment.number}-{choices.backend.value}"


def _settings(experiment: Experiment, choices: Choices) -> Settings:
    from quicferry_lab.evaluation.store import Settings

    return Settings(
        f"experiment {experiment.number}",
        choices.backend,
        choices.is_quick,
        choices.seed,
        choices.time_scale if experiment.is_scaled else 1.0,
    )


def _carry_out(
    experiment: Experiment, runs: Sequence[Run], choices: Choices, out: Path, jobs: int
) -> Tables:
    """Carry out what is not there yet; return the results of all these runs."""
    from quicferry_lab.evaluation.store import Store, read

    settings = _settings(experiment, choices)
    click.echo(f"experiment {experiment.number}: {experiment.title}", err=True)
    with Store(_folder(experiment, choices, out), settings, runs) as store:
        done = store.finished().intersection(run.key for run in runs)
        with RunsProgress(len(runs), len(done)) as progress:
            try:
                keep_missing(store, runs, lambda missing: perform_all(missing, jobs), progress.add)
            except KeyboardInterrupt:
                click.echo("interrupted; the same command goes on with what is missing", err=True)
                raise
    return read(_folder(experiment, choices, out)).only(runs)


def _summary(tables: Tables) -> list[dict[str, Any]]:
    from quicferry_lab.evaluation import metrics

    return metrics.summary(tables).to_dicts()


def summary_table(
    title: str, rows: Sequence[dict[str, Any]], always: Collection[str] = ()
) -> Table:
    """Return a table of those columns in which there is something to see, and of some others."""
    table = Table(title=escape(title), box=None)
    names = [
        name
        for name in (rows[0] if rows else ())
        if name in always
        or len({row[name] for row in rows}) > 1
        or isinstance(rows[0][name], float)
    ]
    for name in names:
        if isinstance(rows[0][name], str):
            table.add_column(name.replace("_", " "))
        else:
            # Words give way in a narrow terminal, numbers do not.
            table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(escape(_cell(row[name])) for name in names))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
