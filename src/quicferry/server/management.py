"""The management interface: newline-delimited JSON on a Unix socket.

Only the user that runs the server may connect (mode 0600). Requests of one connection are worked
on at the same time and answered as they are done; the ``id`` tells which reply is whose. What is
wrong with a request is said in its reply, and changes nothing. What a client that goes away has
asked for is done all the same. The schema is in docs/reference/management.md.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from .commands import (
    COMMANDS,
    FAILED,
    Afterwards,
    Command,
    Commands,
    Request,
    decode,
    describe_event,
    execute,
    parse,
    reply_id,
)
from .errors import ApplicationError, ConfigurationError, ManagementError
from .fields import BAD_REQUEST, Json
from .server import Server

logger = logging.getLogger("quicferry.server")

LONGEST_LINE = 1 << 20
"""Bytes of a request; a line that is longer is skipped."""

MOST_REQUESTS = 16
"""Requests that one client may have under way at the same time."""

SLOWEST_READER = 10.0
"""Seconds after which a client that does not read is disconnected."""

SERVER_CLOSED = "ServerClosed"
"""The last event of a subscription."""

TOO_MANY = "TOO_MANY_REQUESTS"


def management_directory() -> Path:
    """Return the directory for management sockets, which only this user can enter.

    It is made if it does not exist.

    Raises:
        ConfigurationError: If somebody else has made it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        directory = Path(runtime) / "quicferry"
    else:
        directory = Path(tempfile.gettempdir()) / f"quicferry-{os.getuid()}"
    try:
        with suppress(FileExistsError):  # also a link that leads nowhere
            directory.mkdir(mode=0o700)
        found = directory.lstat()
    except OSError as exc:
        raise ConfigurationError(
            f"cannot make {directory}: {exc.strerror}; name another path for the socket"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigurationError(
            f"{directory} is not a directory of this user alone; remove it, or name another path"
        )
    return directory


def default_management_path() -> Path:
    """Return the path of this process's management socket where none is given."""
    return management_directory() / f"{os.getpid()}.sock"


def is_listened_at(path: Path) -> bool:
    """Return whether a process listens at a Unix socket, or may do so.

    One that was killed has left its socket behind, which refuses to be connected to.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


class ManagementServer:
    """Serves the management interface of a server; used as an asynchronous context manager.

    Args:
        server: The server to manage. The command ``shutdown`` closes it.
        path: Where the socket is made. One that nobody listens at any more is replaced.
        commands: What can be asked for.
    """

    def __init__(self, server: Server, path: Path | str, commands: Commands = COMMANDS) -> None:
        self.path = Path(path)
        self._server = server
        self._commands = commands
        self._listener: asyncio.Server | None = None
        self._made: tuple[int, int] | None = None
        self._clients: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> ManagementServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Make the socket and listen.

        Raises:
            ConfigurationError: If the socket cannot be made there.
        """
        sock = _bind(self.path)
        found = self.path.lstat()
        self._made = (found.st_dev, found.st_ino)
        self._listener = await asyncio.start_unix_server(self._connected, sock=sock)

    async def close(self) -> None:
        """Remove the socket, and end all connections."""
        if self._listener is not None:
            self._listener.close()
        try:
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._made:
                self.path.unlink()
        except FileNotFoundError:
            pass
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "this is a coroutine"
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)
        self._writers.add(writer)
        hang_up = partial(self._hang_up, writer)
        try:
            await _Client(self._server, self._commands, reader, writer, hang_up).run()
        except (ConnectionError, asyncio.CancelledError):
            pass
        except Exception:
            logger.exception("a management connection fails")
        finally:
            self._writers.discard(writer)
            writer.close()

    def _hang_up(self, last: asyncio.StreamWriter) -> None:
        """Close all connections, so that no socket of another process is left in this one.

        The event loop closes them in this order.
        """
        for writer in [*(self._writers - {last}), last]:
            writer.transport.abort()


class _Client:
    """One management connection."""

    def __init__(
        self,
        server: Server,
        commands: Commands,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        hang_up: Callable[[], None],
    ) -> None:
        self._hang_up = hang_up
        self._server = server
        self._commands = commands
        self._reader = reader
        self._writer = writer
        self._under_way: set[asyncio.Task[None]] = set()
        self._running: list[Command] = []

    async def run(self) -> None:
        """Read requests until there are no more, and answer all."""
        try:
            async for line in _lines(self._reader):
                if line is None:
                    problem = f"the line is longer than {LONGEST_LINE} bytes; it was skipped"
                    await self._refuse(None, ManagementError(BAD_REQUEST, problem))
                elif len(self._under_way) >= MOST_REQUESTS:
                    problem = "too many requests are under way; wait for their replies"
                    await self._refuse(None, ManagementError(TOO_MANY, problem))
                else:
                    task = asyncio.create_task(self._answer(line))
                    self._under_way.add(task)
                    task.add_done_callback(self._under_way.discard)
            for command in list(self._running):
                command.forsaken()
            if self._under_way:
                await asyncio.wait(self._under_way)
        finally:
            for task in self._under_way:
                task.cancel()

    async def _answer(self, line: bytes) -> None:
        given: Json = None
        try:
            message = decode(line)
            given = reply_id(message)
            request = parse(message, self._commands)
            if request.name == "events":
                await self._subscribe(given)
                return
            result = await self._execute(request)
            await self._send({"id": given, "ok": True, "result": result})
        except ManagementError as exc:
            await self._refuse(given, exc)
        except ConnectionError:
            pass  # the client has gone; what it asked for is done all the same
        except Exception:
            logger.exception("a management command fails")
            problem = "the server has failed at this; its log says more"
            await self._refuse(given, ManagementError(FAILED, problem))
        else:
            match self._commands[request.name].afterwards:
                case Afterwards.CLOSE_SERVER:
                    with suppress(ApplicationError):  # who else waits for the end is told
                        await self._server.close()
                case Afterwards.HANG_UP:
                    self._hang_up()

    async def _execute(self, request: Request) -> dict[str, Json]:
        command = self._commands[request.name]
        self._running.append(command)
        try:
            return await execute(self._server, request, self._commands)
        finally:
            self._running.remove(command)

    async def _subscribe(self, given: Json) -> None:
        events = self._server.events()
        try:
            await self._send({"id": given, "ok": True, "result": {}})
            async for event in events:
                await self._send({"id": given, **describe_event(event)})
            await self._send({"id": given, "event": SERVER_CLOSED, "connection": None})
        finally:
            events.end()

    async def _refuse(self, given: Json, error: ManagementError) -> None:
        described = {"code": error.code, "message": str(error)}
        with suppress(ConnectionError):
            await self._send({"id": given, "ok": False, "error": described})

    async def _send(self, message: Mapping[str, Any]) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")
        try:
            async with asyncio.timeout(SLOWEST_READER):
                await self._writer.drain()
        except TimeoutError:
            self._writer.transport.abort()
            raise ConnectionError("the client does not read") from None


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes | None]:
    """Yield complete lines that are not empty; None for one that is too long."""
    pending, is_skipping = b"", False
    while data := await _read(reader):
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            if is_skipping or len(line) > LONGEST_LINE:
                is_skipping = False
                yield None
            elif line.strip():
                yield line
        if len(pending) > LONGEST_LINE:
            pending, is_skipping = b"", True


async def _read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(1 << 16)
    except ConnectionError:
        return b""  # a client that has not read everything ends in this way


def _bind(path: Path) -> socket.socket:
    """Return a socket that is bound to `path`, and that only this user can connect to."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path)
        mask = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(mask)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise ConfigurationError(
            f"cannot make the management socket {path}: {exc.strerror or exc}; name another path"
        ) from exc
    return sock


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens at, and nothing else."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "there is something else that is not a socket")
    except FileNotFoundError:
        return
    if is_listened_at(path):
        raise OSError(errno.EADDRINUSE, "another server listens there")
    path.unlink(missing_ok=True)
