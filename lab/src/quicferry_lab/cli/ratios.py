"""`quicferry lab ratios`: what each technique takes beside cold, in the same machine."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import click

from quicferry.cli.help import Command
from quicferry_lab.cli.run import ended_by_sigterm, output_console, summary_table
from quicferry_lab.containers.figures import has_soft_dirty
from quicferry_lab.evaluation import ratios as comparison
from quicferry_lab.evaluation.ratios import Sample, Trial


@click.command(
    cls=Command,
    examples=(
        "quicferry lab ratios",
        "quicferry lab ratios --memory 0 --memory 100 --reps 5 --out quicferry-results/ratios.json",
        "quicferry lab ratios --json | jq '.[] | select(.metric == \"silence\")'",
    ),
)
@click.option(
    "--memory",
    type=click.IntRange(min=0),
    multiple=True,
    default=(0, 100),
    show_default=True,
    help="Megabytes that the application keeps beside the rest; can be repeated. The thesis has 0, "
    "10, 50 and 100.",
)
@click.option(
    "--reps",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="How often each trial is made; figures are medians.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write every sample as JSON: what is there is not made again, and the evaluation's report "
    "shows its DIR/ratios.json.",
)
@click.option("--json", "as_array", is_flag=True, help="Print a JSON array instead of a table.")
def ratios(*, memory: tuple[int, ...], reps: int, out: Path | None, as_array: bool) -> None:
    """Compare the techniques that move a container: each one's times as a ratio to cold's.

    Pre-copy and hybrid need a kernel that tracks changes of memory. If this machine's does not, all
    trials take place in the virtual machine of `quicferry lab vm build`: its seconds mean nothing,
    the ratios of techniques in it do. There a trial takes a minute or two. Beside each ratio is the
    thesis's. The exit status is 1 if a trial has failed.
    """
    if out is not None and not out.parent.is_dir():
        raise click.BadParameter(f"there is no directory {out.parent}", param_hint="--out")
    samples = comparison.read(out) if out is not None and out.exists() else []
    missing = comparison.missing(memory, reps, samples)
    if missing:
        with ended_by_sigterm():
            asyncio.run(_carry_out(missing, samples, out))
    rows = comparison.compared(samples)
    if as_array:
        click.echo(json.dumps(rows, indent=1))
    else:
        title = "Each technique beside cold, in the same machine (ahead: beside cold's silence)"
        output_console().print(summary_table(title, rows, ("technique", "memory_mb", "metric")))
    if failed := [sample for sample in samples if sample.problems]:
        for sample in failed:
            click.echo(f"{sample.trial}: {'; '.join(sample.problems)}", err=True)
        sys.exit(1)


async def _carry_out(trials: Sequence[Trial], samples: list[Sample], out: Path | None) -> None:
    """Carry trials out where they can be, and add their samples to those that are there."""
    if await has_soft_dirty():
        source = comparison.here(trials)
    else:
        click.echo("this kernel does not track changes of memory: in the virtual machine", err=True)
        source = comparison.in_virtual_machine(trials)
    async with aclosing(source) as found:
        async for sample in found:
            samples.append(sample)
            if out is not None:
                comparison.write(out, samples)
            click.echo(_line(sample), err=True)


def _line(sample: Sample) -> str:
    """Return in words what a trial has shown."""
    if sample.problems:
        return f"{sample.trial}: failed"
    return f"{sample.trial}: silence {sample.seconds[comparison.SILENCE]:.3g} s"
