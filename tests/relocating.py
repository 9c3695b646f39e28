"""Relocations under load, for the tests with real sockets."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived
from aioquic.quic.events import ConnectionTerminated, QuicEvent
from loopback import (
    Filter,
    at,
    client_configuration,
    http_client,
    pattern_digest,
    server_side,
)

from quicferry import (
    Address,
    ClientMigration,
    HttpClient,
    MigrationAddress,
    MigrationProtocol,
    Server,
    ServerMigration,
)
from quicferry.server import Phase
from quicferry.transport import Connection

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
EXPLICIT = MigrationProtocol.EXPLICIT
POOL = MigrationProtocol.POOL_OF_ADDRESSES
SYMMETRIC = MigrationProtocol.SYMMETRIC
SYNCHRONIZED = MigrationProtocol.SYNCHRONIZED_SYMMETRIC
PROTOCOLS = [EXPLICIT, POOL, SYMMETRIC, SYNCHRONIZED]
SIZE = 1_000_000


def pool(port: int, *hosts: str) -> ServerMigration:
    return ServerMigration(pool=tuple(MigrationAddress.of(at(host, port)) for host in hosts))


def only(protocols: MigrationProtocol, **options: Any) -> dict[str, Any]:
    """Return the arguments of a client that supports only these protocols."""
    return {"configuration": client_configuration(ClientMigration(protocols, **options))}


async def load(client: HttpClient, until: asyncio.Event) -> int:
    """Send requests one after another and check each answer; return how many it were."""
    count = 0
    while not until.is_set():
        body = b"request %d " % count * 50
        assert (await client.request("POST", "/", body=body)).body == body
        count += 1
    return count


async def download(client: HttpClient) -> str:
    digest = hashlib.sha256()
    async with client.stream("GET", f"/bytes/{SIZE}") as response:
        async for chunk in response:
            digest.update(chunk)
    return digest.hexdigest()


@asynccontextmanager
async def under_load(*clients: HttpClient) -> AsyncIterator[None]:
    """Keep clients busy, and check afterwards that they got everything they asked for."""
    until = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        loads = [group.create_task(load(client, until)) for client in clients]
        downloads = [group.create_task(download(client)) for client in clients]
        try:
            yield
            for client in clients:  # and they go on afterwards
                assert (await client.request("POST", "/", body=b"on")).body == b"on"
        finally:
            until.set()
    assert all(task.result() for task in loads)
    assert {task.result() for task in downloads} == {pattern_digest(SIZE)}


async def relocate(
    server: Server,
    destination: Address,
    protocol: MigrationProtocol | None = None,
    address: Address | None = None,
) -> None:
    """Move a server, and check that every client follows."""
    source = server.address
    preparation = await server.imminent(protocol, address)
    assert preparation.is_ready
    assert not preparation.unready
    relocation = await server.switch(destination)
    assert (relocation.source, relocation.destination) == (source, destination)
    completion = await server.wait_completed(10)
    assert completion.is_complete
    assert sorted(completion.completed) == sorted(relocation.told)
    assert server.address == destination
    assert server.phase is Phase.SERVING


@asynccontextmanager
async def one_deaf_client(
    server: Server,
) -> AsyncIterator[tuple[HttpClient, HttpClient, str, Filter]]:
    """Provide two clients; what the second sends is lost from now on."""
    link = Filter()
    async with http_client(server) as client, http_client(server, wrap_transport=link) as deaf:
        await server_side(server, client)
        name = (await server_side(server, deaf)).connection.stable_id
        link.drops_sent = lambda data, addr: True
        yield client, deaf, name, link


class OlderClient(HttpClient):
    """A client that does not know withdrawals, as the thesis's does not."""

    def __init__(self, quic: Connection, **arguments: Any) -> None:
        quic.knows_withdrawals = False
        super().__init__(quic, **arguments)


class StockClient(QuicConnectionProtocol):
    """A client of HTTP/3 on aioquic's own classes."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._http = H3Connection(self._quic)
        self._bodies: dict[int, bytes] = {}
        self._responses: dict[int, asyncio.Future[bytes]] = {}
        self.terminated: asyncio.Future[QuicEvent] = asyncio.get_running_loop().create_future()

    async def get(self, path: str) -> bytes:
        stream_id = self._quic.get_next_available_stream_id()
        fields = {":method": "GET", ":scheme": "https", ":authority": "localhost", ":path": path}
        headers = [(name.encode(), value.encode()) for name, value in fields.items()]
        self._http.send_headers(stream_id, headers, end_stream=True)
        response: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._responses[stream_id] = response
        self.transmit()
        return await response

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionTerminated):
            self.terminated.set_result(event)
        for received in self._http.handle_event(event):
            if isinstance(received, DataReceived):
                body = self._bodies.get(received.stream_id, b"") + received.data
                self._bodies[received.stream_id] = body
                if received.stream_ended:
                    self._responses[received.stream_id].set_result(body)


def once_sent(event: asyncio.Event) -> Callable[[bytes, Any], bool]:
    """Return a filter that drops nothing, and sets `event` when a Handshake packet is sent."""

    def look(data: bytes, addr: Any) -> bool:
        if b"\xe0" in data[:1] or len(data) < 1200:
            event.set()
        return False

    return look
