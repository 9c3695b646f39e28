"""Traces in the qlog format, one file for each connection, written as things happen.

A file is a JSON text sequence (RFC 7464): a record that says what it is, then one for each event,
as draft-ietf-quic-qlog-main-schema has it under the name JSON-SEQ. Such a file can be read while
it grows, and is whole as far as it goes, however its process ends.

Events wait in memory until the event loop is done with what is under way, since the frames of a
packet that was received are known only when it has been read. Then they are appended, and the file
is closed again: so traces of many connections need no files that stay open, nor does a container
that moves take any along. The event loop writes before it ends, too (`asyncio.run`).

A server's trace begins when its client has answered to the handshake. Whoever only knocks, from an
address that need not be its own, fills no disk.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from aioquic.h3.events import Headers
from aioquic.quic.logger import QLOG_VERSION, QuicLogger, QuicLoggerTrace

from quicferry.protocol import QuicferryError

logger = logging.getLogger("quicferry.io")

MOST_OF_ONE_ID = 100
"""Traces of connections with the same original connection ID, which clients choose."""

MOST_WAITING = 256
"""Events of a connection that wait to be written."""

_ALL_IS_KNOWN_BEFORE = frozenset({"datagrams_received", "packet_sent"})
"""Events that begin when no packet is being read."""

_FROM_ANYONE = frozenset({"initial", "0RTT"})
"""Types of packets that can be sent without having received anything."""


class TraceError(QuicferryError):
    """Traces cannot be written where they should be."""

    def __init__(self, directory: Path, cause: Exception) -> None:
        reason = getattr(cause, "strerror", None) or cause
        super().__init__(f"cannot write traces into {directory}: {reason}")


class QlogDirectory(QuicLogger):
    """Writes ``<original connection id>-client.sqlog`` or ``-server.sqlog`` into a directory.

    So client and server can share a directory, and the two sides of one connection lie side by
    side. Where a name is taken there is a number in it: a server that has adopted a connection
    writes ``-server-2.sqlog``. It is a value for `quic_logger` of a configuration.

    If files cannot be written later, because the disk is full for example, the log says so once,
    and nothing more is written.

    Args:
        path: The directory; made if it does not exist.

    Raises:
        TraceError: If it cannot be made, or nothing can be written into it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._has_failed = False
        self._waiting: dict[QlogTrace, None] = {}
        try:
            path.mkdir(parents=True, exist_ok=True)
            if not os.access(path, os.W_OK | os.X_OK):
                raise PermissionError("no permission")
        except (OSError, ValueError) as exc:
            raise TraceError(path, exc) from exc

    def start_trace(self, is_client: bool, odcid: bytes) -> QlogTrace:
        """Return the trace of a new connection; its file is made with the first event."""
        return QlogTrace(self, is_client=is_client, odcid=odcid)

    def end_trace(self, trace: QuicLoggerTrace) -> None:
        """Write what there still is of a connection that has ended."""
        assert isinstance(trace, QlogTrace), "its own trace comes back"
        self._waiting.pop(trace, None)
        self.write(trace)

    def to_dict(self) -> dict[str, Any]:
        """Return what its files begin with; the traces are in them."""
        return {"qlog_format": "JSON-SEQ", "qlog_version": QLOG_VERSION}

    def write_soon(self, trace: QlogTrace) -> None:
        """Write the events of a trace when what is under way in the event loop is done."""
        if not self._waiting:
            with suppress(RuntimeError):  # none runs: they are written when there are many
                asyncio.get_running_loop().call_soon(self._write_waiting)
                self._waiting[trace] = None
        else:
            self._waiting[trace] = None

    def write(self, trace: QlogTrace) -> None:
        """Write the events of a trace; if that fails, say so once."""
        if not trace.has_begun:
            return
        events = trace.take()
        if self._has_failed or not events:
            return
        try:
            self._append(trace, events)
        except OSError as exc:
            self._has_failed = True
            logger.warning("%s; no more are written", TraceError(self.path, exc))

    def _write_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for trace in waiting:
            self.write(trace)

    def _append(self, trace: QlogTrace, events: list[dict[str, Any]]) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = -1
        if trace.file is not None:
            with suppress(FileNotFoundError):  # tidied away, or left on another host
                descriptor = os.open(trace.file, flags)
        if descriptor < 0:
            events.insert(0, self.to_dict() | {"trace": trace.to_dict()})
            for name in trace.names():
                with suppress(FileExistsError):
                    trace.file = self.path / name
                    descriptor = os.open(trace.file, flags | os.O_CREAT | os.O_EXCL, 0o600)
                    break
            else:
                return
        with os.fdopen(descriptor, "wb") as file:
            file.write(b"".join(map(_record, events)))


class QlogTrace(QuicLoggerTrace):
    """The trace of one connection; `QlogDirectory.start_trace` makes it.

    Attributes:
        file: Where it is, once there is something in it.
        has_begun: Whether the peer is known to take part. Nothing is written before.
    """

    def __init__(self, directory: QlogDirectory, *, is_client: bool, odcid: bytes) -> None:
        super().__init__(is_client=is_client, odcid=odcid)
        self.file: Path | None = None
        self.has_begun = is_client
        self._directory = directory
        self._name = f"{odcid.hex()}-{self._vantage_point['type']}"

    def names(self) -> list[str]:
        """Return the names that its file may have."""
        numbered = (f"{self._name}-{number}" for number in range(2, MOST_OF_ONE_ID + 1))
        return [f"{name}.sqlog" for name in (self._name, *numbered)]

    def log_event(self, *, category: str, event: str, data: dict[str, Any]) -> None:
        """Log an event."""
        if not self.has_begun:
            answered = event == "packet_received" and _FROM_ANYONE.isdisjoint(
                [data["header"]["packet_type"]]
            )
            moved = category == "migration" and event != "connection_closed"
            self.has_begun = answered or moved
        if len(self._events) >= MOST_WAITING and event in _ALL_IS_KNOWN_BEFORE:
            if not self.has_begun:
                return
            self._directory.write(self)
        super().log_event(category=category, event=event, data=data)
        if self.has_begun:
            self._directory.write_soon(self)

    def take(self) -> list[dict[str, Any]]:
        """Return the events that wait, and forget them."""
        events = list(self._events)
        self._events.clear()
        return events

    def to_dict(self) -> dict[str, Any]:
        """Return what is the same for all events."""
        trace = super().to_dict()
        del trace["events"]
        return trace

    def encode_http3_headers_frame(
        self, length: int, headers: Headers, stream_id: int
    ) -> dict[str, Any]:
        """Encode header fields, which may be any bytes (RFC 9110 5.5), and not only UTF-8."""
        return super().encode_http3_headers_frame(length, _readable(headers), stream_id)

    def encode_http3_push_promise_frame(
        self, length: int, headers: Headers, push_id: int, stream_id: int
    ) -> dict[str, Any]:
        """Encode header fields, as of a response."""
        return super().encode_http3_push_promise_frame(
            length, _readable(headers), push_id, stream_id
        )


def _readable(headers: Headers) -> Headers:
    return [
        (name.decode(errors="replace").encode(), value.decode(errors="replace").encode())
        for name, value in headers
    ]


def _record(value: dict[str, Any]) -> bytes:
    """Return a record of a JSON text sequence (RFC 7464 2.2)."""
    return b"\x1e" + json.dumps(value).encode() + b"\n"
