"""Writes docs/reference/cli.md from the commands' own --help.

Run: python docs/reference/make_cli.py
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from quicferry.cli import main

REFERENCE = Path(__file__).with_name("cli.md")
WIDTH = 96
HEADING = """# The command line

This page is what `--help` prints, written by `docs/reference/make_cli.py`.
"""


def sections(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[str]:
    """Yield a section for the command, and one for each of its sub-commands."""
    context = command.make_context(
        name, [], parent, resilient_parsing=True, max_content_width=WIDTH, terminal_width=WIDTH
    )
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            if child is not None and not child.hidden:
                yield from sections(child, child.name or "", context)


def reference() -> str:
    """Return the whole page."""
    return "\n".join([HEADING, *sections(main, "quicferry")])


if __name__ == "__main__":
    REFERENCE.write_text(reference(), encoding="utf-8")
