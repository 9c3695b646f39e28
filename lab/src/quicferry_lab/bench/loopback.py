"""Goodput and handshakes over loopback, in turns with stock aioquic.

Both stacks do the same: a client and a server in one process and event loop, a download on one
stream. Server migration is negotiated, and nothing of it happens.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import statistics
import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import Any

from aioquic.asyncio.client import connect as stock_connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve as stock_serve
from aioquic.quic.configuration import QuicConfiguration

import quicferry
from quicferry.protocol import ClientMigration, ServerMigration
from quicferry_lab.simulation import (
    SERVER_NAME,
    client_configuration,
    server_configuration,
    stock_configuration,
)

from .report import Figure

_HOST = "127.0.0.1"
_DOWNLOAD = 12 << 20
_CHUNK = 64 << 10
_DOWNLOADS = 7
_HANDSHAKES = 80
_LIMIT = 120.0


@dataclass(frozen=True)
class _Stack:
    """One of the two stacks, with its server running."""

    client: Any
    configuration: QuicConfiguration
    port: int

    def connect(self) -> AbstractAsyncContextManager[QuicConnectionProtocol]:
        context: AbstractAsyncContextManager[QuicConnectionProtocol] = self.client(
            _HOST, self.port, configuration=self.configuration
        )
        return context


def figures() -> Iterator[Figure]:
    """Measure, and yield each figure."""
    goodput, handshake = asyncio.run(asyncio.wait_for(_measure(), _LIMIT))
    ratios = [ours / stock for ours, stock in goodput]
    megabits = [8e-6 * _DOWNLOAD * rate for rate in _medians(goodput)]
    yield Figure(
        "goodput over loopback, migration negotiated and idle",
        statistics.median(ratios),
        "x aioquic",
        at_least=0.97,
        note=f"{megabits[0]:.0f} against {megabits[1]:.0f} Mbit/s",
    )
    ours, stock = _medians(handshake)
    yield Figure(
        "handshake over loopback",
        ours / stock,
        "x aioquic",
        at_most=1.03,
        note=f"{ours * 1000:.2f} against {stock * 1000:.2f} ms",
    )


def _medians(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


async def _measure() -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Return pairs (quicferry, aioquic) of downloads per second, and of seconds a handshake."""
    options = client_configuration(ClientMigration())
    server = await quicferry.serve(
        _HOST,
        0,
        configuration=server_configuration(ServerMigration()),
        stream_handler=_serve_stream,
    )
    ours = _Stack(quicferry.connect, options, server.address.port)
    port = _free_port()  # aioquic's server does not tell where it listens
    stock_server = await stock_serve(
        _HOST,
        port,
        configuration=stock_configuration(is_client=False),
        stream_handler=_serve_stream,
    )
    stock = _Stack(stock_connect, stock_configuration(is_client=True), port)
    for stack in (ours, stock):
        assert stack.configuration.server_name == SERVER_NAME
        assert stack.configuration.verify_mode is ssl.CERT_NONE
        await _download(stack)
    goodput = [(await _download(ours), await _download(stock)) for _ in range(_DOWNLOADS)]
    # The connections are closed in the end: how long a stack waits with that tells how long the
    # processor has been idle before the next handshake, and how much is left to do meanwhile.
    async with AsyncExitStack() as opened:
        handshake = [
            (await _handshake(ours, opened), await _handshake(stock, opened))
            for _ in range(_HANDSHAKES)
        ]
    stock_server.close()
    await server.close()
    return goodput, handshake


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((_HOST, 0))
        port: int = sock.getsockname()[1]
        return port


async def _download(stack: _Stack) -> float:
    async with stack.connect() as client:
        reader, writer = await client.create_stream()
        start = time.perf_counter()
        writer.write(b"download")
        writer.write_eof()
        received = 0
        while data := await reader.read(1 << 20):
            received += len(data)
        duration = time.perf_counter() - start
    if received != _DOWNLOAD:
        raise AssertionError(f"{received} bytes arrived instead of {_DOWNLOAD}")
    return 1 / duration


async def _handshake(stack: _Stack, opened: AsyncExitStack) -> float:
    start = time.perf_counter()
    client = await opened.enter_async_context(stack.connect())
    duration = time.perf_counter() - start
    await client.ping()  # the server has done what was left to do
    return duration


def _serve_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    task = asyncio.ensure_future(_answer(reader, writer))
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    for _ in range(_DOWNLOAD // _CHUNK):
        writer.write(bytes(_CHUNK))
    writer.write_eof()


_tasks: set[asyncio.Task[None]] = set()
