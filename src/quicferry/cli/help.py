"""What commands have in common: examples, a level for the log, and that they come when called."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from quicferry.cli.output import fit
from quicferry.protocol import printable

LOG_LEVELS = ("debug", "info", "warning", "error")


class _WithExamples(click.Command):
    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse arguments; with some a shell cannot call, and nothing has such a name."""
        for each in args:
            try:
                has_nul = b"\0" in os.fsencode(each)
            except UnicodeEncodeError:
                raise click.UsageError("an argument has half a character in it", ctx) from None
            if has_nul:
                raise click.UsageError("an argument has a NUL character in it", ctx)
        return super().parse_args(ctx, args)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the text, and then the examples, each on a line of its own."""
        super().format_help_text(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for example in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{example}\n")


class Command(_WithExamples):
    """A command with examples, and with ``--log-level``.

    Args:
        examples: Command lines; those that do not fit into a line are not wrapped.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--log-level"],
                type=click.Choice(LOG_LEVELS),
                default="warning",
                show_default=True,
                expose_value=False,
                callback=_set_log_level,
                help="How much the log on stderr tells.",
            )
        )


def _set_log_level(ctx: click.Context, param: click.Parameter, value: str) -> None:
    logging.basicConfig(force=True)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Printable("%(levelname)s %(name)s: %(message)s"))
        handler.setLevel(value.upper())  # some libraries' loggers have levels of their own
    logging.getLogger().setLevel(value.upper())
    if value != "debug":
        logging.getLogger("asyncio").setLevel(logging.ERROR)


class _Printable(logging.Formatter):
    """Lets no stranger forge lines, or write to a terminal what moves its cursor."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the standard library's)
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 (the standard library's)
        # An error's own text can have lines; none of them can look like one of the log's.
        return "\n".join(f"  {fit(line)}" for line in super().formatException(ei).split("\n"))


@dataclass(frozen=True)
class Elsewhere:
    """A command that is imported when it is called.

    Attributes:
        module: The module that it is in, with a dot in front if that is one of `quicferry.cli`.
        name: Its name there.
        summary: The first sentence of its help.
    """

    module: str
    name: str
    summary: str

    def load(self) -> click.Command:
        """Import it."""
        command = getattr(import_module(self.module, __package__), self.name)
        assert isinstance(command, click.Command), f"{self.name} is a command"
        return command


class Group(_WithExamples, click.Group):
    """A group of commands with examples, which fails in the same way as its commands.

    Args:
        elsewhere: Commands by their names, beside those that are added.
    """

    command_class = Command

    def __init__(
        self, *args: Any, elsewhere: Mapping[str, Elsewhere] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.elsewhere = dict(elsewhere or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order in which they should be learnt."""
        return [*self.elsewhere, *(name for name in self.commands if name not in self.elsewhere)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command; now it is needed."""
        if cmd_name in self.elsewhere and cmd_name not in self.commands:
            self.add_command(self.elsewhere[cmd_name].load(), cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line for each command, without importing any."""
        rows = [
            (name, self.elsewhere[name].summary)
            if name in self.elsewhere
            else (name, self.commands[name].get_short_help_str(limit=1000))
            for name in self.list_commands(ctx)
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
