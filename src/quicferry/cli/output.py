"""What commands say, to people and to programs, with what strangers have chosen made fit for it.

A peer chooses the reason for which it closes a connection, names, paths, header fields, words of an
agent. With an escape sequence in one it could write to a terminal what it likes, with a line end
forge a line. So whatever a command says goes through here, line by line, which
tests/cli/test_strangers.py keeps so. Bodies that `quicferry fetch` writes are not changed.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import Any, Protocol

import click

from quicferry.protocol import printable

LONGEST_LINE = 4000
"""Characters; of a line that is longer the beginning is said."""


class Say(Protocol):
    """Tells about something: as an object for programs, or in words for people, line by line."""

    def __call__(self, event: dict[str, Any], *lines: str) -> None:
        """Tell it."""


def fit(line: str) -> str:
    """Return a line as it may be shown."""
    return printable(line, LONGEST_LINE)


def say(*lines: str) -> None:
    """Tell people what they have asked for, on standard output."""
    for line in lines:
        click.echo(fit(line))


def say_aside(*lines: str) -> None:
    """Tell people something, on stderr; that nobody hears it changes nothing."""
    with suppress(OSError):
        for line in lines:
            click.echo(fit(line), err=True)


def say_object(value: Any) -> None:
    """Tell programs, as a line of JSON on standard output."""
    click.echo(json.dumps(value).replace("\x7f", "\\u007f"))  # json escapes all else


def give_up_unwritten() -> None:
    """Throw away what could not be written; Python would try again, and exit with 120."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None: it was closed before
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def make_fit(error: click.ClickException) -> None:
    """Let an error of the command line show nothing else; its own lines stay lines."""
    vars(error)["message"] = "\n".join(map(fit, error.message.split("\n")))
