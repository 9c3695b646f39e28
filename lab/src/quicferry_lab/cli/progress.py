"""How far many runs have come, on stderr: a bar for a person, a line now and then for a log."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from quicferry_lab.evaluation.result import Result

_LINE_INTERVAL = 30.0


class RunsProgress:
    """Shows how far the runs have come, and names those that failed; a context manager.

    Args:
        total: How many runs there are.
        done: How many of them were there before.
    """

    def __init__(self, total: int, done: int) -> None:
        self.failed = 0
        self._total = total
        self._before = self._done = done
        self._began = self._told_at = time.monotonic()
        self._bar = Progress(
            TextColumn("runs"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=Console(stderr=True),
            transient=True,
            speed_estimate_period=600,
        )
        self._task = self._bar.add_task("", total=total, completed=done, failed=0)

    def __enter__(self) -> Self:
        if self._before:
            click.echo(f"{self._before} of {self._total} runs are here already", err=True)
        if sys.stderr.isatty():
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def add(self, result: Result) -> None:
        """Count a result."""
        self._done += 1
        if result.has_failed:
            self.failed += 1
            self._say(f"failed: {result.run}: {result.problems[0]}")
        self._bar.update(self._task, completed=self._done, failed=self.failed)
        if not sys.stderr.isatty() and time.monotonic() - self._told_at > _LINE_INTERVAL:
            self._told_at = time.monotonic()
            each = (self._told_at - self._began) / (self._done - self._before)
            minutes = each * (self._total - self._done) / 60
            click.echo(
                f"{self._done} of {self._total} runs, {self.failed} failed, "
                f"about {minutes:.0f} min left",
                err=True,
            )

    def _say(self, line: str) -> None:
        if sys.stderr.isatty():
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            click.echo(line, err=True)
