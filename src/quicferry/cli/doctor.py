"""`quicferry doctor`: whether servers can be moved from and to this host."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from quicferry.cli.help import Command
from quicferry.cli.options import json_option
from quicferry.cli.output import say_object
from quicferry.relocation.doctor import (
    ENGINES,
    TECHNIQUES,
    Diagnosis,
    Finding,
    Outcome,
    examine,
    healthy,
    inspect,
    wanted,
    ways,
)
from quicferry.relocation.errors import EngineError

_STYLES = {Outcome.OK: "green", Outcome.UNKNOWN: "yellow", Outcome.MISSING: "red"}
_VERDICTS = {Outcome.OK: "works", Outcome.UNKNOWN: "may work", Outcome.MISSING: "does not work"}


@click.command(
    cls=Command,
    examples=(
        "quicferry doctor",
        "quicferry doctor --technique cold --engine runc",
        "quicferry doctor --json --no-test",
    ),
    epilog="Exit status: 0 if the technique works with one of the engines (without --technique: "
    "rebind, handover, and any technique that moves a container), 1 if not, 2 wrong usage. "
    "What was not tried counts as working where nothing speaks against it.",
)
@click.option(
    "--technique",
    type=click.Choice(TECHNIQUES),
    help="Look at this technique only.  [default: all]",
)
@click.option(
    "--engine",
    type=click.Choice(list(ENGINES)),
    help="Look at this container engine only.  [default: all]",
)
@click.option(
    "--no-test",
    "only_look",
    is_flag=True,
    help="Only look; do not move a throw-away process to see whether it works.",
)
@json_option
@click.pass_context
def doctor(
    ctx: click.Context,
    *,
    technique: str | None,
    engine: str | None,
    only_look: bool,
    as_json: bool,
) -> None:
    """Say how servers can be moved from and to this host, what is missing, and how to get it.

    What seems to work is tried out, with a process that is thrown away. Containers need root.
    """
    try:
        chosen = ways(technique, engine)
    except EngineError as exc:
        raise click.UsageError(str(exc)) from None
    diagnoses = asyncio.run(inspect(chosen) if only_look else examine(chosen))
    if as_json:
        for each in diagnoses:
            say_object(_as_json(each))
    else:
        _show(Console(), diagnoses)
    if not healthy(diagnoses, wanted(technique, engine)):
        ctx.exit(1)


def _show(console: Console, diagnoses: Sequence[Diagnosis]) -> None:
    """Print what was found, what it means for each way, and what to do."""
    findings = _each_once(finding for each in diagnoses for finding in each.findings)
    console.print(_table("check", "", "found", rows=[_row(finding) for finding in findings]))
    console.print()
    rows = [
        (
            each.way.technique,
            each.way.engine or "-",
            _styled(_VERDICTS[each.outcome], each.outcome),
            ", ".join(problem.name for problem in each.problems),
        )
        for each in diagnoses
    ]
    console.print(_table("technique", "engine", "", "look at", rows=rows))
    remedies = [finding for finding in findings if finding.remedy]
    if remedies:
        console.print()
    for finding in remedies:
        console.print(
            f"{finding.name}: {finding.remedy}", highlight=False, markup=False, soft_wrap=True
        )


def _row(finding: Finding) -> tuple[str, str, str]:
    return finding.name, _styled(finding.outcome.value, finding.outcome), escape(finding.says)


def _styled(text: str, outcome: Outcome) -> str:
    return f"[{_STYLES[outcome]}]{text}[/]"


def _table(*columns: str, rows: Iterable[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    for name in columns:
        # What was found may be long, and is broken into lines; the rest is not.
        table.add_column(name, no_wrap=name not in ("found", "look at"), overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _each_once(findings: Iterable[Finding]) -> list[Finding]:
    return list(dict.fromkeys(findings))


def _as_json(diagnosis: Diagnosis) -> dict[str, object]:
    return {
        "technique": diagnosis.way.technique,
        "engine": diagnosis.way.engine or None,
        "outcome": diagnosis.outcome.value,
        "findings": [
            {
                "name": finding.name,
                "outcome": finding.outcome.value,
                "says": finding.says,
                "remedy": finding.remedy or None,
            }
            for finding in diagnosis.findings
        ],
    }
