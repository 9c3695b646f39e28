"""Options and parameter types that several commands share."""

from __future__ import annotations

import io
import logging
import math
import os
from collections.abc import Callable
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

import click

from quicferry.protocol import (
    ALL_PROTOCOLS,
    Address,
    MigrationAddress,
    MigrationProtocol,
    QuicferryError,
    protocol_from_name,
    protocol_name,
)

if TYPE_CHECKING:
    from quicferry.io import QlogDirectory

logger = logging.getLogger("quicferry.cli")

Command = TypeVar("Command", bound=Callable[..., Any])

PROTOCOL_NAMES = tuple(protocol_name(protocol) for protocol in MigrationProtocol)


class Number(click.FloatRange):
    """A number of a range, as click has it, but a finite one: nobody waits for nan seconds."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


def address(text: str) -> Address:
    """Parse an IP address and a UDP port."""
    try:
        return Address.parse(text)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


def pool_address(text: str) -> MigrationAddress:
    """Parse an address of a pool: IPv4, IPv6, or one of each with a comma between them."""
    try:
        return MigrationAddress.parse(text)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


def protocols(text: str) -> MigrationProtocol | None:
    """Parse ``all``, ``none``, or names of migration protocols separated by commas.

    None stands for switching server migration off.
    """
    if text == "all":
        return ALL_PROTOCOLS
    if text == "none":
        return None
    try:
        return reduce(or_, (protocol_from_name(name.strip()) for name in text.split(",")))
    except ValueError as exc:
        raise click.BadParameter(f"{exc} (or all, or none)") from exc


def protocols_option(command: Command) -> Command:
    """Add ``--protocols``."""
    return click.option(
        "--protocols",
        type=protocols,
        metavar="NAMES",
        default="all",
        show_default=True,
        help="Migration protocols to negotiate, separated by commas: "
        f"{', '.join(PROTOCOL_NAMES)}; or all, or none to switch server migration off.",
    )(command)


def qlog_option(command: Command) -> Command:
    """Add ``--qlog``, for commands that have something to trace."""
    return click.option(
        "--qlog",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Write traces in qlog format into this directory, as things happen.",
    )(command)


def qlog_logger(directory: Path | None) -> QlogDirectory | None:
    """Return what takes the traces of a configuration.

    Raises:
        TraceError: If nothing can be written there.
    """
    if directory is None:
        return None
    from quicferry.io import QlogDirectory  # most commands have no connection

    return QlogDirectory(directory)


def json_option(command: Command) -> Command:
    """Add ``--json``, for commands whose whole output is machine-readable then."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Write JSON, one object per line, to stdout, and nothing else there.",
    )(command)


class SecretsLogError(QuicferryError):
    """TLS secrets cannot be written where the environment asks for them."""

    def __init__(self, cause: Exception) -> None:
        reason = getattr(cause, "strerror", None) or cause
        super().__init__(f"cannot write the file that SSLKEYLOGFILE names: {reason}")


class _SecretsLog(io.TextIOWrapper):
    """A file of TLS secrets. That it cannot be written is said once, and ends no connection."""

    _has_failed = False

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as exc:
            if not self._has_failed:
                self._has_failed = True
                logger.warning("%s", SecretsLogError(exc))
            return len(text)

    def flush(self) -> None:
        """Do nothing: it is written through."""


def open_secrets_log() -> TextIO | None:
    """Open the file that the environment asks TLS secrets to be written to, as curl does.

    Only ``SSLKEYLOGFILE`` asks for it; quicferry never writes secrets by itself.

    Raises:
        SecretsLogError: If it cannot be opened.
    """
    name = os.environ.get("SSLKEYLOGFILE")
    if not name:
        return None
    try:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError as exc:
        raise SecretsLogError(exc) from exc
    return _SecretsLog(os.fdopen(descriptor, "wb", buffering=0), write_through=True)
