"""`quicferry lab vm`: the laboratory in a virtual machine with Debian's own kernel."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from quicferry.cli.help import Command, Group
from quicferry.cli.options import Number
from quicferry_lab import vm as machines

_REPORT = "/tmp/report.xml"


@click.group(
    cls=Group,
    examples=(
        "quicferry lab vm build",
        "quicferry lab vm run -- criu check --feature mem_dirty_track",
        "quicferry lab vm test -- -k pre-copy",
    ),
)
def vm() -> None:
    """A virtual machine with Debian's own kernel, for what this machine's kernel cannot do.

    QEMU emulates it, without hardware virtualisation, so it is some ten times slower than this
    machine. In it the laboratory's hosts can be made as here: techniques that copy memory ahead
    (pre-copy, hybrid) need a kernel that tracks changes of memory.
    """


@vm.command(cls=Command, examples=("quicferry lab vm build",))
def build() -> None:
    """Make what it boots: the laboratory's system with a kernel.

    It takes a minute and 900 MB beside `quicferry lab setup`, which is done first if it was not. It
    needs root, and installs QEMU where that is missing and apt-get is there.
    """
    click.echo(machines.make(_say).folder)


@vm.command(
    cls=Command,
    context_settings={"ignore_unknown_options": True},
    examples=(
        "quicferry lab vm run -- uname -r",
        "quicferry lab vm run -- quicferry doctor",
        'quicferry lab vm run --limit 600 -- sh -c "criu check; tc qdisc"',
    ),
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--limit",
    type=Number(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Seconds that it may take, without the start of the virtual machine.",
)
def run(command: tuple[str, ...], limit: float) -> None:
    """Start it, run a program in it, and end as that does.

    This quicferry can be used in it. It has no network, and nothing that is written stays.
    """
    sys.exit(asyncio.run(_run(command, limit=limit)))


@vm.command(
    cls=Command,
    context_settings={"ignore_unknown_options": True},
    examples=(
        "quicferry lab vm test",
        "quicferry lab vm test --report report.xml -- -k hybrid tests/lab",
    ),
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--limit",
    type=Number(min=0, min_open=True),
    default=3600.0,
    show_default=True,
    help="Seconds that they may take, without the start of the virtual machine.",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to write a report in JUnit's format.",
)
def test(arguments: tuple[str, ...], limit: float, report: Path | None) -> None:
    """Run the laboratory's tests of this source tree in it, with pytest.

    ARGUMENTS are pytest's. The exit status is pytest's, too.
    """
    sys.exit(asyncio.run(_test(arguments, limit=limit, report=report)))


async def _run(command: Sequence[str], *, limit: float) -> int:
    async with machines.laboratory() as machine:
        return _as_shell(await machine.follow(command, _out, _err, limit=limit))


async def _test(arguments: Sequence[str], *, limit: float, report: Path | None) -> int:
    # Each test's own limit is for this machine's speed.
    plugins = ["-p", "no:cacheprovider", "-p", "no:timeout"]
    pytest = ["python3", "-m", "pytest", "-m", "lab", "-rs", *plugins]
    async with machines.laboratory() as machine:
        status = await machine.follow(
            [*pytest, f"--junit-xml={_REPORT}", *arguments],
            _out,
            _err,
            limit=limit,
            env={"PYTHONUNBUFFERED": "1"},
            directory=machines.TREE,
        )
        if report is not None:
            content = await machine.read(_REPORT)
            await asyncio.to_thread(report.write_bytes, content)
        return _as_shell(status)


def _as_shell(status: int) -> int:
    return 128 - status if status < 0 else status


def _out(data: bytes) -> None:
    click.echo(data, nl=False)


def _err(data: bytes) -> None:
    click.echo(data, nl=False, err=True)


def _say(line: str) -> None:
    click.echo(line, err=True)
