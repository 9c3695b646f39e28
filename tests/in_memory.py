"""A client and a server without sockets, for the carrying of the server's connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.events import QuicEvent, StopSendingReceived, StreamDataReceived, StreamReset
from loopback import client_configuration, server_configuration

from quicferry import ConnectionProtocol
from quicferry.io.udp import Datagram
from quicferry.server.application import Application
from quicferry.server.asgi import AsgiProtocol
from quicferry.server.draining import Admission
from quicferry.transport import (
    Connection,
    NetworkAddress,
    activate,
    commit,
    freeze,
    thaw,
    unread_events,
)

CLIENT = ("127.0.0.1", 1111)
SERVER = ("127.0.0.1", 4433)

ClientT = TypeVar("ClientT", bound=ConnectionProtocol)


class RawClient(ConnectionProtocol):
    """Writes what a test wants on its streams, and notes what comes on them.

    Attributes:
        bodies: What has come in DATA frames, by stream.
        statuses: The status of the response, by stream.
        ended: The streams that the server has ended.
        resets: The codes of RESET_STREAM and STOP_SENDING, by stream.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self.connection)
        self.bodies: dict[int, bytes] = {}
        self.statuses: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.resets: dict[int, list[int]] = {}

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamReset | StopSendingReceived):
            self.resets.setdefault(event.stream_id, []).append(event.error_code)
        for http_event in self.http.handle_event(event):
            if isinstance(http_event, HeadersReceived):
                self.statuses[http_event.stream_id] = dict(http_event.headers)[b":status"]
            elif isinstance(http_event, DataReceived):
                body = self.bodies.get(http_event.stream_id, b"")
                self.bodies[http_event.stream_id] = body + http_event.data
        if isinstance(event, StreamDataReceived) and event.end_stream:
            self.ended.add(event.stream_id)

    def write(self, stream_id: int, data: bytes, *, ends: bool = False) -> None:
        self.connection.send_stream_data(stream_id, data, end_stream=ends)
        self.transmit()


class _Wire:
    """Takes datagrams to the other side, one after the other."""

    def __init__(self, sender: NetworkAddress, receiver: Callable[[], ConnectionProtocol]) -> None:
        self._sender = sender
        self._receiver = receiver

    def send(self, datagrams: Sequence[Datagram]) -> None:
        loop = asyncio.get_running_loop()
        for data, _ in datagrams:
            loop.call_soon(self._deliver, data)

    def _deliver(self, data: bytes) -> None:
        self._receiver().datagram_received(data, self._sender)


class InMemory(Generic[ClientT]):
    """A connection between two protocols.

    Attributes:
        client: The client's.
        server: The server's; another object after each `carry`.
    """

    def __init__(self, client: ClientT, application: Application, **fields: Any) -> None:
        self.client = client
        self._application = application
        original = client.connection.original_destination_connection_id
        self._configuration = server_configuration(**fields)
        self.server = AsgiProtocol(
            Connection(
                configuration=self._configuration, original_destination_connection_id=original
            ),
            application=application,
        )
        self._to_client = _Wire(SERVER, lambda: self.client)
        self.client.attach(_Wire(CLIENT, lambda: self.server))
        self.server.attach(self._to_client)

    async def settled(self) -> None:
        """Wait until both sides have seen what the other has sent."""
        await self.client.ping()
        await self.server.ping()

    def carry(self) -> None:
        """Put a copy of the server's connection in its place, as on another host."""
        source, now = self.server, asyncio.get_running_loop().time()
        unread_events(source.connection, source.withheld_events())
        snapshot = freeze(source.connection, now=now)
        state = source.export_state()
        source.settle()  # its timer is off
        copy = thaw(snapshot, configuration=self._configuration, now=now)
        self.server = AsgiProtocol(copy, application=self._application)
        self.server.attach(self._to_client)
        self.server.resume(state)
        assert self.server.export_state() == state
        activate(copy, now=now)
        commit(copy)
        self.server.settle()


@asynccontextmanager
async def connected(
    app: Any, client_type: type[ClientT], *, held: bool = False, **fields: Any
) -> AsyncIterator[InMemory[ClientT]]:
    """Provide a connection to an application.

    Args:
        app: The ASGI application.
        client_type: The class of the client's side.
        held: Whether the server holds requests from the beginning.
        fields: For the server's configuration.
    """
    application = Application(app)
    await application.start()
    configuration = client_configuration()
    configuration.server_name = "localhost"
    client = client_type(Connection(configuration=configuration))
    client.remote = "localhost"
    this = InMemory(client, application, **fields)
    if held:
        this.server.admit_requests(Admission.NONE)
    client.connect(SERVER)
    await client.wait_connected()
    await this.settled()
    try:
        yield this
    finally:
        client.close()
        await client.wait_closed()
        await this.server.wait_closed()
        await application.stop()
