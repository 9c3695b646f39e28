"""Memory that is fetched after a restore: the way of its pages through the agent's channel.

CRIU's page server at the source and its client at the destination speak TLS over a TCP connection
of their own, with a key that is made for one relocation. Here this connection is led through the
channel that the two hosts have already: each end is a `Tunnel`, which sends what comes from a local
TCP connection, and writes there what comes from the other end. No other port has to be open.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from quicferry.server import self_signed

from .engines import PageTls
from .errors import HandoverError
from .messages import MAX_PIECE

LOOPBACK = "127.0.0.1"

_READ = 1 << 18
_NAME = "quicferry"


def make_page_tls(directory: Path) -> tuple[PageTls, bytes, bytes]:
    """Make what the two ends of a page transfer prove themselves with.

    Args:
        directory: Where it is written to; in memory.

    Returns:
        The files, and the certificate and the key, PEM, for the other end.
    """
    certificate, key = self_signed([_NAME])
    return write_page_tls(directory, certificate, key), certificate, key


def write_page_tls(directory: Path, certificate: bytes, key: bytes) -> PageTls:
    """Write what the two ends of a page transfer prove themselves with to a directory in memory."""
    tls = PageTls(directory / "pages.pem", directory / "pages-key.pem")
    for path, content in ((tls.certificate, certificate), (tls.key, key)):
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(content)
    return tls


class Tunnel:
    """One end of a TCP connection that is led through a channel.

    Args:
        send: Sends to the other end; nothing at the end. Waits while too much is on its way.
    """

    def __init__(self, send: Callable[[bytes], Awaitable[None]]) -> None:
        self._send = send
        self._writer: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None
        self._early = bytearray()
        self._closed = asyncio.Event()

    async def listen(self) -> int:
        """Wait for one local connection, and return the TCP port on loopback that it has to use.

        Raises:
            HandoverError: If that is not possible.
        """
        try:
            self._server = await asyncio.start_server(self._connected, LOOPBACK, 0, backlog=1)
        except OSError as exc:
            raise HandoverError(f"cannot listen on loopback: {exc.strerror}") from None
        return int(self._server.sockets[0].getsockname()[1])

    async def connect(self, port: int) -> None:
        """Connect to a local TCP port, and go on until the end.

        Raises:
            HandoverError: If nobody listens there.
        """
        try:
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
        except OSError as exc:
            raise HandoverError(f"the memory cannot be fetched: {exc.strerror}") from None
        await self._connected(reader, writer)

    def received(self, data: bytes) -> None:
        """Take what has come from the other end; nothing stands for its end."""
        if not data:
            self.close()
        elif self._writer is None:
            self._early += data
        else:
            self._writer.write(data)

    def close(self) -> None:
        """End the local connection."""
        self._closed.set()
        if self._server is not None:
            self._server.close()
        if self._writer is not None:
            self._writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is not None:
            self._server.close()  # one is enough
        if self._writer is not None or self._closed.is_set():
            writer.close()
            return
        self._writer = writer
        writer.write(self._early)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(min(_READ, MAX_PIECE)):
                await self._send(data)
        await self._send(b"")
        self.close()
