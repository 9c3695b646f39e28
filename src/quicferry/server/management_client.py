"""A client of the management interface, for orchestrators and the command line."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from quicferry.io import EventStream

from .errors import ManagementError
from .management import LONGEST_LINE, SERVER_CLOSED

UNREACHABLE = "UNREACHABLE"


class ManagementClient:
    """Gives commands to a server; made by `connect`. Any number of them may be under way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = itertools.count(1)
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._subscriptions: dict[int, EventStream[dict[str, Any]]] = {}
        self._ended = False
        self._closed = asyncio.Event()

    @classmethod
    @asynccontextmanager
    async def connect(cls, path: Path | str) -> AsyncIterator[ManagementClient]:
        """Connect to the management socket at `path`, within an asynchronous context.

        Raises:
            ManagementError: UNREACHABLE if nobody listens there.
        """
        try:
            reader, writer = await asyncio.open_unix_connection(str(path), limit=LONGEST_LINE)
        except OSError as exc:
            problem = f"no server listens at {path}: {exc.strerror or exc}; start one, or name its"
            raise ManagementError(UNREACHABLE, f"{problem} socket") from exc
        client = cls(reader, writer)
        reading = asyncio.create_task(client._read())
        try:
            yield client
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            writer.close()

    async def command(self, name: str, /, **fields: Any) -> dict[str, Any]:
        """Give a command and return its result.

        Args:
            name: The command.
            **fields: Its fields, as in docs/reference/management.md; None stands for absent.

        Raises:
            ManagementError: If the server refuses it, or goes away.
        """
        return await self._request(next(self._ids), name, fields)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Subscribe to events, and return an iterator over them.

        Raises:
            ManagementError: If the server refuses that, or has gone away.
        """
        number = next(self._ids)
        stream = self._subscriptions[number] = EventStream()
        await self._request(number, "events", {})
        return stream

    async def wait_closed(self) -> None:
        """Wait until the server has closed the connection."""
        await self._closed.wait()

    async def _request(self, number: int, name: str, fields: dict[str, Any]) -> dict[str, Any]:
        given = {key: value for key, value in fields.items() if value is not None}
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        try:
            if self._ended:
                raise ConnectionError("it has ended")
            self._writer.write(json.dumps({"id": number, "command": name, **given}).encode())
            self._writer.write(b"\n")
            await self._writer.drain()
            message = await reply
        except ConnectionError as exc:
            raise ManagementError(UNREACHABLE, f"the management connection is lost: {exc}") from exc
        finally:
            del self._replies[number]
        if not message["ok"]:
            raise ManagementError(message["error"]["code"], message["error"]["message"])
        result: dict[str, Any] = message["result"]
        return result

    async def _read(self) -> None:
        try:
            while line := await self._reader.readline():
                message = json.loads(line)
                number = message.pop("id")
                if "event" in message and number in self._subscriptions:
                    self._subscriptions[number].put(message)
                    if message["event"] == SERVER_CLOSED:
                        self._subscriptions.pop(number).end()
                elif (reply := self._replies.get(number)) is not None and not reply.done():
                    reply.set_result(message)
        except (OSError, ValueError):
            pass  # all the same: it is over
        finally:
            self._ended = True
            self._closed.set()
            for reply in self._replies.values():
                if not reply.done():
                    reply.set_exception(ConnectionError("the server has gone away"))
            for stream in self._subscriptions.values():
                stream.end()
