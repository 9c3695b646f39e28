"""Servers and clients on 127.0.0.0/8, for the tests with real sockets."""

from __future__ import annotations

import functools
import hashlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aioquic.quic.configuration import QuicConfiguration

import quicferry
from quicferry import (
    Address,
    ClientMigration,
    Configuration,
    ConnectionProtocol,
    HttpClient,
    Server,
    ServerMigration,
)
from quicferry.io import DatagramLink
from quicferry.protocol import MigrationEvent
from quicferry.server import load_pem, self_signed
from quicferry.transport import NetworkAddress

LIMIT = 30
"""Seconds for one test."""


@pytest.fixture(autouse=True)
def time_limit() -> Iterator[None]:
    """End a test that hangs."""

    def expired(*_: object) -> None:
        pytest.fail(f"the test takes longer than {LIMIT} s")

    previous = signal.signal(signal.SIGALRM, expired)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@functools.cache
def certificate() -> tuple[bytes, bytes]:
    """Return a certificate for every address that tests connect to, and its key."""
    return self_signed(["localhost", "::1", *(f"127.0.0.{number}" for number in range(1, 10))])


def server_configuration(
    migration: ServerMigration | None = ServerMigration(),
    **fields: Any,
) -> Configuration:
    configuration = Configuration(
        is_client=False, alpn_protocols=["h3"], server_migration=migration, **fields
    )
    load_pem(configuration, *certificate())
    return configuration


def client_configuration(
    migration: ClientMigration | None = ClientMigration(),
    **fields: Any,
) -> Configuration:
    return Configuration(
        alpn_protocols=["h3"],
        cadata=certificate()[0],
        server_migration=migration,
        **fields,
    )


def stock_configuration() -> QuicConfiguration:
    """Return the configuration of a client without the extension."""
    return QuicConfiguration(alpn_protocols=["h3"], cadata=certificate()[0])


def free_port(*hosts: str) -> int:
    """Return a port that is free at all of these addresses."""
    while True:
        port = 0
        try:
            for host in hosts or ("0.0.0.0",):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                    probe.bind((host, port))
                    port = int(probe.getsockname()[1])
        except OSError:
            continue
        return port


def at(host: str, port: int) -> Address:
    return Address.parse(f"{host}:{port}")


@asynccontextmanager
async def served(app: Any = None, **arguments: Any) -> AsyncIterator[Server]:
    """Provide a server on 127.0.0.1, by default one that answers HTTP requests."""
    arguments.setdefault("configuration", server_configuration())
    port = arguments.pop("port", 0)
    host = arguments.pop("host", "127.0.0.1")
    if "create_protocol" not in arguments:
        app = app or demo_app
    async with await quicferry.serve(host, port, app=app, **arguments) as server:
        yield server


@asynccontextmanager
async def http_client(server: Server, **arguments: Any) -> AsyncIterator[HttpClient]:
    """Provide an HTTP/3 client of a server."""
    arguments.setdefault("configuration", client_configuration())
    host = arguments.pop("host", str(server.address.host))
    arguments.setdefault("create_protocol", HttpClient)
    async with quicferry.connect(host, server.address.port, **arguments) as client:
        yield client


async def server_side(server: Server, client: ConnectionProtocol) -> ConnectionProtocol:
    """Return the server's side of a connection, once the server has finished the handshake."""
    await client.ping()
    original = client.connection.original_destination_connection_id
    for protocol in server.connections.values():
        if protocol.connection.original_destination_connection_id == original:
            return protocol
    raise ConnectionError("the server does not know this client")


def next_event(
    client: ConnectionProtocol, kind: type[MigrationEvent]
) -> Coroutine[Any, Any, MigrationEvent]:
    """Return the next migration event of a kind from now on."""
    stream = client.migration_events()

    async def wait() -> MigrationEvent:
        async for event in stream:
            if isinstance(event, kind):
                return event
        raise ConnectionError("the connection has ended without it")

    return wait()


class Filter:
    """A link that drops what it is told to.

    Attributes:
        drops_sent: Whether a datagram from the client is dropped.
        drops_received: Whether a datagram to the client is.
    """

    def __init__(self) -> None:
        self.drops_sent: Callable[[bytes, NetworkAddress], bool] = lambda data, addr: False
        self.drops_received: Callable[[bytes, NetworkAddress], bool] = lambda data, addr: False

    def __call__(self, inner: DatagramLink) -> DatagramLink:
        self.inner = inner
        return self

    def send(self, data: bytes, addr: NetworkAddress) -> None:
        if not self.drops_sent(data, addr):
            self.inner.send(data, addr)

    def deliver(self, data: bytes, addr: NetworkAddress) -> None:
        if not self.drops_received(data, addr):
            self.inner.deliver(data, addr)

    def cut(self) -> None:
        """Drop everything from now on."""
        self.drops_sent = self.drops_received = lambda data, addr: True

    def mend(self) -> None:
        """Drop nothing from now on."""
        self.drops_sent = self.drops_received = lambda data, addr: False


# An application


async def demo_app(scope: Any, receive: Any, send: Any) -> None:
    """Echo: answers with the request's body; /bytes/N: N bytes; /digest: of the request's body."""
    assert scope["type"] == "http"
    if scope["path"].startswith("/bytes/"):
        await send_bytes(send, int(scope["path"].removeprefix("/bytes/")))
        return
    body = [chunk async for chunk in body_of(receive)]
    content = b"".join(body)
    if scope["path"] == "/digest":
        content = hashlib.sha256(content).hexdigest().encode()
    await respond(send, content)


async def body_of(receive: Any) -> AsyncIterator[bytes]:
    """Yield the body of a request."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client has gone away")
        yield message["body"]
        more = message["more_body"]


async def respond(send: Any, body: bytes, status: int = 200) -> None:
    """Send a response in one piece."""
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def send_bytes(send: Any, size: int) -> None:
    """Send a response of a size, in pieces."""
    headers = [(b"content-length", b"%d" % size)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for piece in pattern(size):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def pattern(size: int) -> Iterator[bytes]:
    """Yield pieces of the content of /bytes/`size`, in which no word occurs twice."""
    step = 1 << 14
    for start in range(0, size, step):
        piece = b"".join(b"%8x" % offset for offset in range(start, start + step, 8))
        yield piece[: size - start]


@functools.cache
def pattern_digest(size: int) -> str:
    digest = hashlib.sha256()
    for piece in pattern(size):
        digest.update(piece)
    return digest.hexdigest()
