"""Where `quicferry fetch` writes what it gets."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import select
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quicferry.protocol import QuicferryError


class OutputError(QuicferryError):
    """The output cannot be written."""

    def __init__(self, name: str, cause: Exception) -> None:
        if isinstance(cause, BrokenPipeError):
            super().__init__(f"nobody reads {name} any more")
        else:
            super().__init__(f"cannot write {name}: {getattr(cause, 'strerror', None) or cause}")


class Sink:
    """A file that is written at once: what was taken is there, or it fails here and not at its end.

    Args:
        file: The file, without a buffer.
        name: What it is, for errors.
    """

    def __init__(self, file: io.FileIO, name: str) -> None:
        self._file = file
        self._name = name

    def write(self, data: bytes) -> None:
        """Write all of it; it may take as long as the reader likes.

        Raises:
            OutputError: If it cannot be written.
        """
        rest = memoryview(data)
        try:
            while rest:
                written = self._file.write(rest)
                if written is None:  # whoever shares it wants it so
                    select.select([], [self._file], [])
                else:
                    rest = rest[written:]
        except OSError as exc:
            raise OutputError(self._name, exc) from exc


class Output:
    """Where bodies and reports go, one after the other.

    Who reads them may be slow, so a thread waits for that: the connection must live on meanwhile.

    Args:
        bodies: Takes bodies; None puts them into the reports.
        reports: Takes reports, a line of JSON each; None for no reports.

    Attributes:
        is_between: Whether no part of a response was taken without its end.
    """

    def __init__(self, bodies: Sink | None, reports: Sink | None) -> None:
        self.is_between = True
        self._bodies = bodies
        self._reports = reports
        self._kept = bytearray()
        self._sayings: deque[dict[str, Any]] = deque()

    async def body(self, chunk: bytes) -> None:
        """Take a part of a body.

        Raises:
            OutputError: If it cannot be written.
        """
        self.is_between = False
        if self._bodies is None:
            self._kept += chunk
        else:
            await asyncio.to_thread(self._bodies.write, chunk)

    def say(self, report: dict[str, Any]) -> None:
        """Report something, at the latest with the end of the response that is under way."""
        self._sayings.append(report)

    async def end(self, report: dict[str, Any]) -> None:
        """Take the end of a response, and the report on it.

        Raises:
            OutputError: If it cannot be written.
        """
        self.is_between = True
        if self._bodies is None:
            report |= _encode_body(bytes(self._kept))
            self._kept.clear()
        await self.tell(report)

    async def tell(self, report: dict[str, Any]) -> None:
        """Report something now, and what waits to be reported before it.

        Raises:
            OutputError: If it cannot be written.
        """
        self.say(report)
        if self._reports is not None:
            lines = b"".join(json.dumps(saying).encode() + b"\n" for saying in self._sayings)
            await asyncio.to_thread(self._reports.write, lines)
        self._sayings.clear()


@contextmanager
def open_output(path: Path | None, *, as_json: bool) -> Iterator[Output]:
    """Provide the output.

    Args:
        path: A file for bodies; None or - for standard output, or with `as_json` for the reports.
        as_json: Whether reports go to standard output.

    Raises:
        OutputError: If it cannot be opened.
    """
    with _standard_output() as stdout:
        reports = stdout if as_json else None
        if path is None or str(path) == "-":
            yield Output(None if as_json else stdout, reports)
            return
        try:
            file = io.FileIO(path, "w")
        except (OSError, ValueError) as exc:
            raise OutputError(str(path), exc) from exc
        with file:
            yield Output(Sink(file, str(path)), reports)


@contextmanager
def _standard_output() -> Iterator[Sink]:
    name = "standard output"
    try:
        sys.stdout.flush()
        file = io.FileIO(os.dup(sys.stdout.fileno()), "w")
    except (OSError, AttributeError) as exc:  # there is no sys.stdout if it was closed at the start
        raise OutputError(name, exc if isinstance(exc, OSError) else OSError("closed")) from exc
    with file:
        yield Sink(file, name)


def _encode_body(body: bytes) -> dict[str, str]:
    try:
        return {"body": body.decode()}
    except UnicodeDecodeError:
        return {"body_base64": base64.b64encode(body).decode()}
