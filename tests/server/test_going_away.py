"""A server that is closed lets running requests come to their end (RFC 9114 5.2)."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest
from aioquic.h3.connection import ErrorCode
from aioquic.quic.events import QuicEvent, StopSendingReceived, StreamDataReceived, StreamReset
from loopback import (
    Filter,
    client_configuration,
    http_client,
    pattern_digest,
    respond,
    send_bytes,
    served,
    server_side,
)

import quicferry
from quicferry import ConnectionProtocol, HttpClient, Server
from quicferry.client import GoingAway
from quicferry.io import ConnectFailed, ConnectionLost
from quicferry.transport import Http3Connection

LONG = 60.0
"""Seconds: longer than a test may take."""


class Slow:
    """Answers when it may.

    Attributes:
        begun: Set when the first request has begun.
        disconnected: Set when /cancelled was told that its client is gone.
        may_end: Lets requests end.
        heard: What has happened, in order.
    """

    def __init__(self) -> None:
        self.begun, self.may_end = asyncio.Event(), asyncio.Event()
        self.disconnected = asyncio.Event()
        self.heard: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                self.heard.append(step)
                await send({"type": f"lifespan.{step}.complete"})
            return
        path = scope["path"]
        self.heard.append(path)
        self.begun.set()
        if path == "/cancelled":
            while (await receive())["type"] != "http.disconnect":
                pass
            self.disconnected.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.heard.append("cancelled")
            raise
        self.heard.append(f"{path} ends")
        if path.startswith("/bytes/"):
            await send_bytes(send, int(path.removeprefix("/bytes/")))
        else:
            await respond(send, path.encode())


async def closing(server: Server, client: HttpClient, grace: float = LONG) -> asyncio.Task[None]:
    """Begin to close a server, and return when the client has been told."""
    task = asyncio.create_task(server.close(grace))
    while not client.is_going_away:
        await client.ping()
    return task


async def test_running_requests_end_and_new_ones_are_refused() -> None:
    app = Slow()
    async with served(app) as server, http_client(server) as client:
        slow = asyncio.create_task(client.request("GET", "/slow"))
        await app.begun.wait()
        end = await closing(server, client)
        with pytest.raises(GoingAway, match="connect again"):
            await client.request("GET", "/new")
        with pytest.raises(ConnectFailed):
            async with http_client(server):
                pass
        assert not end.done()
        app.may_end.set()
        assert (await slow).body == b"/slow"
        lost = await client.wait_lost()
        assert lost.error_code == ErrorCode.H3_NO_ERROR
        await end
        assert app.heard == ["startup", "/slow", "/slow ends", "shutdown"]


async def test_a_large_response_arrives_as_a_whole() -> None:
    app, size = Slow(), 3_000_000
    async with served(app) as server, http_client(server) as client:
        slow = asyncio.create_task(client.request("GET", f"/bytes/{size}"))
        await app.begun.wait()
        end = await closing(server, client)
        app.may_end.set()
        assert hashlib.sha256((await slow).body).hexdigest() == pattern_digest(size)
        await end


class Deaf(ConnectionProtocol):
    """A client that asks on, whatever its server says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.http = Http3Connection(self.connection)
        self.answered = asyncio.Event()
        self.resets: set[tuple[str, int, int]] = set()

    def quic_event_received(self, event: QuicEvent) -> None:
        self.http.handle_event(event)
        if isinstance(event, StreamReset | StopSendingReceived):
            self.resets.add((type(event).__name__, event.stream_id, event.error_code))
        if isinstance(event, StreamDataReceived) and event.end_stream and event.stream_id == 0:
            self.answered.set()

    def ask(self, path: bytes) -> None:
        fields = [
            (b":method", b"GET"),
            (b":scheme", b"https"),
            (b":authority", b"localhost"),
            (b":path", path),
        ]
        stream_id = self.connection.get_next_available_stream_id()
        self.http.send_headers(stream_id, fields, end_stream=True)
        self.transmit()


async def test_a_client_that_asks_all_the_same_is_refused() -> None:
    app = Slow()
    async with (
        served(app) as server,
        quicferry.connect(
            "127.0.0.1",
            server.address.port,
            configuration=client_configuration(),
            create_protocol=Deaf,
        ) as client,
    ):
        client.ask(b"/slow")
        await app.begun.wait()
        end = asyncio.create_task(server.close(LONG))
        while client.http.first_refused is None:
            await client.ping()
        assert client.http.first_refused == 4
        client.ask(b"/new")
        while len(client.resets) < 2:
            await client.ping()
        rejected = (4, ErrorCode.H3_REQUEST_REJECTED)
        assert client.resets == {("StreamReset", *rejected), ("StopSendingReceived", *rejected)}
        app.may_end.set()
        await client.answered.wait()
        await end
        assert app.heard == ["startup", "/slow", "/slow ends", "shutdown"]


async def test_connections_without_requests_are_closed_at_once() -> None:
    app = Slow()
    async with served(app) as server, http_client(server) as client, http_client(server) as idle:
        await server_side(server, idle)
        slow = asyncio.create_task(client.request("GET", "/slow"))
        await app.begun.wait()
        end = await closing(server, client)
        assert (await idle.wait_lost()).error_code == ErrorCode.H3_NO_ERROR
        assert idle.is_going_away
        assert not slow.done()
        app.may_end.set()
        await asyncio.gather(slow, end)


async def test_a_client_that_is_gone_with_its_response_does_not_keep_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("quicferry.server.bridge._SILENCE", 0.2)
    app, link = Slow(), Filter()
    async with served(app) as server, http_client(server, wrap_transport=link) as client:
        slow = asyncio.create_task(client.request("GET", "/bytes/100000"))
        await app.begun.wait()
        link.cut()
        app.may_end.set()
        await server.close(LONG)
        client.close()
        await asyncio.gather(slow, return_exceptions=True)


async def test_a_client_that_is_silent_does_not_keep_the_server() -> None:
    link = Filter()
    async with served(Slow()) as server, http_client(server, wrap_transport=link) as client:
        await server_side(server, client)
        link.cut()
        await server.close(LONG)


@pytest.mark.parametrize("way", ["time is over", "urged"])
async def test_what_does_not_end_is_ended(way: str) -> None:
    app = Slow()
    async with served(app) as server, http_client(server) as client:
        slow = asyncio.create_task(client.request("GET", "/slow"))
        await app.begun.wait()
        if way == "urged":
            end = await closing(server, client)
            await server.close(0)
            await end
        else:
            await server.close(0.05)
        with pytest.raises(ConnectionLost):
            await slow
        assert app.heard == ["startup", "/slow", "cancelled", "shutdown"]


async def test_calls_whose_client_is_gone_are_waited_for() -> None:
    app = Slow()
    async with served(app) as server:
        async with http_client(server) as client:
            request = asyncio.create_task(client.request("GET", "/cancelled"))
            await app.begun.wait()
        with pytest.raises(ConnectionLost):
            await request
        end = asyncio.create_task(server.close(LONG))
        await app.disconnected.wait()
        [running] = server.running_requests
        assert running.path == "/cancelled"
        app.may_end.set()
        await end
        assert app.heard[-2:] == ["/cancelled ends", "shutdown"]


async def test_a_server_that_is_being_closed_does_not_prepare_a_move() -> None:
    app = Slow()
    async with served(app) as server, http_client(server) as client:
        slow = asyncio.create_task(client.request("GET", "/slow"))
        await app.begun.wait()
        end = await closing(server, client)
        with pytest.raises(quicferry.server.RelocationError, match="being closed"):
            await server.imminent()
        app.may_end.set()
        await asyncio.gather(slow, end)


async def test_requests_that_the_server_has_not_looked_at_may_be_sent_again() -> None:
    """Two are under way when GOAWAY says that only the first is served."""

    class Server1(Deaf):
        def quic_event_received(self, event: QuicEvent) -> None:
            super().quic_event_received(event)
            if isinstance(event, StreamDataReceived) and event.end_stream and event.stream_id == 4:
                self.http.send_goaway(4)
                self.http.send_headers(0, [(b":status", b"200")], end_stream=True)

    async with served(None, create_protocol=Server1) as server, http_client(server) as client:
        first, second = (
            asyncio.create_task(client.request("POST", path, body=b"x")) for path in ("/1", "/2")
        )
        assert (await first).status == 200
        with pytest.raises(GoingAway):
            await second
        assert client.closed_by is None


async def test_an_invalid_goaway_ends_the_connection() -> None:
    class Wrong(Deaf):
        def quic_event_received(self, event: QuicEvent) -> None:
            super().quic_event_received(event)
            if isinstance(event, StreamDataReceived) and event.stream_id == 0:
                self.http.send_goaway(1)

    async with (
        served(None, create_protocol=Wrong) as server,
        http_client(server, configuration=client_configuration()) as client,
    ):
        with pytest.raises(ConnectionLost) as caught:
            await client.request("GET", "/")
        assert caught.value.error_code == ErrorCode.H3_ID_ERROR
