"""`quicferry lab setup` and `clean`: the system that the laboratory's hosts run."""

from __future__ import annotations

import click

from quicferry.cli.help import Command
from quicferry_lab.hosts import needs, rootfs


@click.command(
    cls=Command,
    examples=("quicferry lab setup", "QUICFERRY_LAB_DIR=/srv/lab quicferry lab setup"),
)
def setup() -> None:
    """Make the system that the laboratory's hosts run: Debian with CRIU, runc and Podman.

    It takes about a minute, 800 MB, and the archive and package index that apt and pip of this
    machine are configured for. What is there already is left as it is.
    """

    def say(line: str) -> None:
        click.echo(line, err=True)

    needs.install(say)
    click.echo(rootfs.make(say))


@click.command(cls=Command, examples=("quicferry lab clean",))
def clean() -> None:
    """Remove what `quicferry lab setup` has made; no host may be running."""
    rootfs.clean()
