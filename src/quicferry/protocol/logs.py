"""Log records in which strangers can forge no line, whoever handles them."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from .text import printable

LOGGERS = (
    *("quicferry", "quicferry.access", "quicferry.application", "quicferry.cli", "quicferry.io"),
    *("quicferry.relocation", "quicferry.server"),
    *("quic", "http3"),  # aioquic's
)
"""The loggers in which something may stand that a peer has said."""


class _Shown:
    """Something that is about to be logged."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return printable(str(self._value))

    def __repr__(self) -> str:
        return repr(self._value)


class _Escape(logging.Filter):
    """Escapes what is not printable in the arguments of a record."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                each if isinstance(each, (int, float)) else _Shown(each) for each in record.args
            )
        return True


def escape_logs(names: Iterable[str] = LOGGERS) -> None:
    """Let loggers escape what peers have said.

    Args:
        names: Theirs; by default those of this package, and aioquic's.
    """
    escape = _Escape()
    for name in names:
        logging.getLogger(name).addFilter(escape)
