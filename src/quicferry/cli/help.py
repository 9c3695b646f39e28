"""Commands whose --help has examples in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


class _WithExamples(click.Command):
    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the text, and then the examples, each on a line of its own."""
        super().format_help_text(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


class Command(_WithExamples):
    """A command with examples.

    Args:
        examples: Command lines; those that do not fit into a line are not wrapped.
    """


class Group(_WithExamples, click.Group):
    """A group of commands with examples, which fails in the same way as its commands."""

    command_class = Command
