"""All commands that there are."""

from __future__ import annotations

from collections.abc import Iterator

import click

from quicferry.cli import main
from quicferry.cli.help import Group


def walk(
    command: click.Command = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield a command and all below it, each with its words."""
    yield path, command
    if isinstance(command, Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from walk(child, (*path, name))


GROUPS = {path: command for path, command in walk() if isinstance(command, Group)}
LEAVES = {path: command for path, command in walk() if not isinstance(command, Group)}
