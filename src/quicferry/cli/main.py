"""The `quicferry` command, and how its errors look."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import click

from quicferry import __version__
from quicferry.cli.help import Elsewhere, Group
from quicferry.cli.output import fit, give_up_unwritten, make_fit, say_aside
from quicferry.protocol import QuicferryError

INTERRUPTED = 130
"""The exit status after Ctrl-C, as a shell would report it."""


PLUGGED = "quicferry.commands"
"""The entry points of other distributions; each is a mapping from names to `Elsewhere`."""
_OF_THE_LABORATORY = ("bench", "demo", "lab", "soak")


class _Commands(Group):
    """A group whose commands fail with one line on stderr, never with a traceback.

    Other distributions add commands to it; they are looked for where they are needed.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        self._plug_in()
        return super().list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.elsewhere:
            self._plug_in()
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in _OF_THE_LABORATORY:
            raise click.UsageError(
                f"'{cmd_name}' is a command of the laboratory, which is not installed: "
                "pip install quicferry-lab",
                ctx,
            )
        return found

    def _plug_in(self) -> None:
        for name, command in _plugged().items():
            self.elsewhere.setdefault(name, command)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().main(*args, **kwargs)
        finally:
            give_up_unwritten()

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _failing_in_words():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _failing_in_words():
            return super().invoke(ctx)


@cache
def _plugged() -> dict[str, Elsewhere]:
    """Return the commands of other distributions."""
    from importlib.metadata import entry_points  # takes longer than to parse most command lines

    found: dict[str, Elsewhere] = {}
    for point in entry_points(group=PLUGGED):
        found |= point.load()
    return found


@contextmanager
def _failing_in_words() -> Iterator[None]:
    try:
        yield
    except (click.exceptions.Exit, click.Abort):
        raise
    except click.ClickException as exc:
        make_fit(exc)
        raise
    except KeyboardInterrupt:
        say_aside("interrupted")
        raise click.exceptions.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        raise  # click ends without a word, as is usual where nobody reads the output any more
    except QuicferryError as exc:
        raise click.ClickException(str(exc)) from exc
    except OSError as exc:
        where = f"{exc.filename}: " if exc.filename is not None else ""
        raise click.ClickException(fit(f"{where}{exc.strerror or exc}")) from exc
    except Exception as exc:
        logging.getLogger("quicferry").debug("internal error", exc_info=exc)
        raise click.ClickException(
            fit(f"internal error: {type(exc).__name__}: {exc}")
            + " (--log-level debug shows where it comes from)"
        ) from exc


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    examples=(
        "quicferry serve app:app --bind 127.0.0.1:4433",
        "quicferry fetch https://127.0.0.1:4433/ --insecure --repeat 100 --interval 0.1",
        "quicferry ctl migrate 127.0.0.2:4433",
    ),
    elsewhere={
        "serve": Elsewhere(
            ".serve", "serve", "Serve the ASGI application APP (module:attribute) over HTTP/3."
        ),
        "fetch": Elsewhere(".fetch", "fetch", "Fetch URL (https://host[:port]/path) over HTTP/3."),
        "ctl": Elsewhere(".ctl", "ctl", "Tell a running server to move, or ask how it is."),
        "agent": Elsewhere(
            ".agent",
            "agent",
            "Wait on a host for servers that are moved there by `quicferry migrate`.",
        ),
        "migrate": Elsewhere(
            ".migrate",
            "migrate",
            "Move a server to another process or host; its clients stay connected.",
        ),
        "image": Elsewhere(
            ".image",
            "image",
            "Make of the ASGI application APP (module:attribute) what a container engine runs.",
        ),
        "doctor": Elsewhere(
            ".doctor",
            "doctor",
            "Say how servers can be moved from and to this host, what is missing, and how to get "
            "it.",
        ),
    },
    epilog="Exit status: 0 success, 1 failure, 2 wrong usage; `quicferry fetch` has a few more.",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
def main() -> None:
    """Move a live QUIC server from one address to another; its clients do not notice."""
