"""Clients that want to wear a server down over HTTP/3; one that behaves is served beside each."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pylsqpack
import pytest
from aioquic.buffer import Buffer
from aioquic.h3.connection import ErrorCode, FrameType, encode_frame
from aioquic.quic.packet import QuicFrameType
from in_memory import RawClient as Raw
from in_memory import connected
from loopback import (
    body_of,
    client_configuration,
    demo_app,
    http_client,
    pattern_digest,
    respond,
    send_bytes,
    served,
    server_configuration,
    server_side,
)

import quicferry
from quicferry import HttpClient, Server
from quicferry.server.bridge import DRAIN_CONNECTION_WATER, PIECE
from quicferry.server.cancellations import FORGIVEN, MOST_CANCELLED, Cancellations
from quicferry.server.draining import Admission
from quicferry.transport import MAX_SNAPSHOT_SIZE, Connection
from quicferry.transport.contract import FRAME_HANDLERS

FIELDS = [(b":method", b"GET"), (b":scheme", b"https"), (b":authority", b"localhost")]
CANCELLED = ErrorCode.H3_REQUEST_CANCELLED


class Slow:
    """An application whose calls to /slow end when they are let go, whatever becomes of clients.

    Attributes:
        running: How many calls to /slow run.
        most: How many have at once.
    """

    def __init__(self) -> None:
        self.running = self.most = 0
        self.go = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if scope["path"] == "/slow":
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await self.go.wait()
            finally:
                self.running -= 1
        await respond(send, b"answer")


class Hostile(Raw):
    """Asks, and gives up what it has asked for."""

    def ask(self, path: bytes, *more: tuple[bytes, bytes]) -> int:
        stream_id = self.connection.get_next_available_stream_id()
        self.http.send_headers(stream_id, [*FIELDS, (b":path", path), *more])
        return stream_id

    def cancel(self, stream_id: int) -> None:
        self.connection.reset_stream(stream_id, CANCELLED)
        self.connection.stop_stream(stream_id, CANCELLED)

    def reset_rapidly(self, count: int) -> None:
        """Ask so often for /slow, and give each up at once: the server reads both together."""
        stream_ids = [self.ask(b"/slow") for _ in range(count)]
        self.transmit()  # or nothing but the end would be sent
        for stream_id in stream_ids:
            self.connection.reset_stream(stream_id, CANCELLED)
        self.transmit()

    @property
    def allowed(self) -> int:
        """How many requests the server has allowed so far."""
        return self.connection._remote_max_streams_bidi


@asynccontextmanager
async def hostile_client(server: Server) -> AsyncIterator[Hostile]:
    async with quicferry.connect(
        "127.0.0.1",
        server.address.port,
        configuration=client_configuration(),
        create_protocol=Hostile,
    ) as client:
        yield client


def ignore_stop_sending(connection: Connection) -> None:
    """Let a client send on whatever it is asked."""
    handlers = getattr(connection, FRAME_HANDLERS)
    _, epochs = handlers[QuicFrameType.STOP_SENDING]

    def ignore(context: object, frame_type: int, buf: Buffer) -> None:
        buf.pull_uint_var(), buf.pull_uint_var()

    handlers[QuicFrameType.STOP_SENDING] = (ignore, epochs)


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"12345"


async def seen(server: Server, *clients: Hostile) -> None:
    """Wait until the server has seen and answered what was sent."""
    for client in clients:
        protocol = await server_side(server, client)
        for _ in range(3):
            await client.ping()
            await protocol.ping()


async def test_no_more_is_asked_before_the_application_has_ended_its_calls() -> None:
    app = Slow()
    configuration = server_configuration(max_streams=8)
    async with (
        served(app, configuration=configuration) as server,
        hostile_client(server) as hostile,
        http_client(server) as good,
    ):
        stream_ids = [hostile.ask(b"/slow") for _ in range(8)]
        hostile.transmit()
        while app.running < 8:
            await hostile.ping()
        for stream_id in stream_ids:
            hostile.cancel(stream_id)
        hostile.reset_rapidly(100)
        await seen(server, hostile)
        assert hostile.allowed == 8
        assert app.most == 8
        assert len(server.running_requests) == 8
        assert (await good.request("GET", "/")).body == b"answer"
        app.go.set()
        while hostile.allowed < 100:
            await hostile.ping()
            hostile.transmit()
        assert app.most <= 8


async def test_streams_that_are_cancelled_at_once_call_nobody() -> None:
    app = Slow()
    async with (
        served(app, configuration=server_configuration(max_streams=8)) as server,
        hostile_client(server) as hostile,
    ):
        hostile.reset_rapidly(100)
        while hostile.allowed < 100:
            await hostile.ping()
            hostile.transmit()
        assert app.most <= 8
        assert hostile.closed_by is None


async def test_calls_of_all_clients_together_have_a_limit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = Slow()
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(app, limit_concurrency=5))
        clients = [await stack.enter_async_context(hostile_client(server)) for _ in range(3)]
        for client in clients:
            for stream_id in [client.ask(b"/slow") for _ in range(3)]:
                client.connection.send_stream_data(stream_id, b"", end_stream=True)
            client.transmit()
        await seen(server, *clients)
        statuses = [status for client in clients for status in client.statuses.values()]
        assert statuses == [b"503"] * 4
        assert app.most == 5
        assert caplog.text.count("--limit-concurrency") == 1
        app.go.set()
        good = await stack.enter_async_context(http_client(server))
        while app.running:
            await good.ping()
        assert (await good.request("GET", "/")).body == b"answer"


async def test_cancelled_calls_count_until_they_have_ended() -> None:
    app = Slow()
    async with (
        served(app, limit_concurrency=2) as server,
        hostile_client(server) as hostile,
        http_client(server) as good,
    ):
        for stream_id in [hostile.ask(b"/slow") for _ in range(2)]:
            hostile.transmit()
            while not app.running:
                await hostile.ping()
            hostile.cancel(stream_id)
        await seen(server, hostile)
        assert (await good.request("GET", "/")).status == 503
        app.go.set()
        while app.running:
            await good.ping()
        assert (await good.request("GET", "/")).status == 200


@pytest.mark.parametrize(
    "way", ["reset", "reset and stop", "stop", "stop first", "half a header", "malformed"]
)
async def test_a_client_that_mostly_cancels_is_closed(way: str) -> None:
    async with (
        served(Slow()) as server,
        hostile_client(server) as hostile,
        http_client(server) as good,
    ):
        rounds = 0
        while hostile.closed_by is None:
            assert rounds < 5 * MOST_CANCELLED
            stream_ids = []
            for _ in range(20):
                rounds += 1
                if way == "half a header":
                    stream_id = hostile.connection.get_next_available_stream_id()
                    hostile.connection.send_stream_data(stream_id, b"\1\x20abc")
                elif way == "malformed":
                    stream_id = hostile.ask(b"/slow", (b"content-length", b"1"))
                    hostile.http.send_data(stream_id, b"too long", end_stream=True)
                else:
                    stream_id = hostile.ask(b"/slow")
                if way in ("stop", "stop first"):
                    hostile.connection.send_stream_data(stream_id, b"", end_stream=True)
                if way == "stop first":
                    hostile.connection.stop_stream(stream_id, CANCELLED)
                stream_ids.append(stream_id)
            hostile.transmit()
            for stream_id in stream_ids:
                if way in ("reset", "reset and stop", "half a header"):
                    hostile.connection.reset_stream(stream_id, CANCELLED)
                if way in ("stop", "reset and stop"):
                    hostile.connection.stop_stream(stream_id, CANCELLED)
            hostile.transmit()
            await asyncio.wait(
                [asyncio.ensure_future(hostile.ping()), asyncio.ensure_future(hostile.wait_lost())],
                return_when=asyncio.FIRST_COMPLETED,
            )
        assert hostile.closed_by.error_code == ErrorCode.H3_EXCESSIVE_LOAD
        assert rounds > MOST_CANCELLED
        assert (await good.request("GET", "/")).body == b"answer"


async def test_a_client_that_cancels_every_other_request_is_served() -> None:
    app = Slow()
    app.go.set()
    async with connected(app, HttpClient) as http:
        for _ in range(2 * MOST_CANCELLED):
            async with http.client.stream("GET", "/slow") as response:
                assert response.status == 200
            assert (await http.client.request("GET", "/")).body == b"answer"
        assert http.client.closed_by is None


def test_cancelled_requests_are_forgotten_in_time() -> None:
    now = 0.0
    cancellations = Cancellations(lambda: now)
    for _ in range(20 * MOST_CANCELLED):
        assert not cancellations.add()
        now += 1.001 / FORGIVEN
    assert [cancellations.add() for _ in range(MOST_CANCELLED + 1)][-1]


async def test_a_request_that_waits_for_a_stream_can_be_cancelled() -> None:
    """To reset it would be to open it (RFC 9000 4.6)."""
    app = Slow()
    configuration = server_configuration(max_streams=2)
    async with (
        served(app, configuration=configuration) as server,
        http_client(server) as client,
    ):
        running = [asyncio.create_task(client.request("GET", "/slow")) for _ in range(2)]
        while app.running < 2:
            await client.ping()
        upload = client.request("POST", "/slow", body=endless())
        waiting = [
            asyncio.create_task(upload),
            *[asyncio.create_task(client.request("GET", "/slow")) for _ in range(2)],
        ]
        await client.ping()
        for task in waiting[:2]:
            task.cancel()
        await client.ping()
        app.go.set()
        assert [(await task).body for task in (*running, waiting[2])] == [b"answer"] * 3
        assert client.closed_by is None


# Memory


async def test_what_many_uploads_leave_unread_is_bounded() -> None:
    """The windows of all streams together are more than a connection may take (RFC 9000 4.1)."""
    window = 1 << 16
    async with connected(Slow(), Hostile, max_stream_data=window, max_data=window) as http:
        for _ in range(100):
            stream_id = http.client.ask(b"/slow")
            data = encode_frame(FrameType.DATA, bytes(4 * window))
            http.client.connection.send_stream_data(stream_id, data)
        http.client.transmit()
        for _ in range(100):
            await http.settled()
        received = http.server.connection._local_max_data.used
        assert 16 * window <= received + window
        assert received <= 17 * window


async def test_an_upload_that_nobody_reads_any_more_gets_no_further_window() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await respond(send, b"no, thank you", 413)

    window = 1 << 16
    async with connected(app, Hostile, max_stream_data=window) as http:
        ignore_stop_sending(http.client.connection)
        stream_id = http.client.ask(b"/")
        data = encode_frame(FrameType.DATA, bytes(100 * window))
        http.client.connection.send_stream_data(stream_id, data)
        http.client.transmit()
        for _ in range(50):
            await http.settled()
        assert http.client.statuses[stream_id] == b"413"
        assert http.server.connection._local_max_data.used <= 3 * window


async def test_a_header_of_unlimited_length_is_refused_and_takes_no_time_of_others() -> None:
    async with (
        served() as server,
        hostile_client(server) as hostile,
        http_client(server) as good,
    ):
        stream_id = hostile.connection.get_next_available_stream_id()
        begin = bytes([FrameType.HEADERS]) + (0xC0 << 56 | 1 << 40).to_bytes(8, "big")
        hostile.connection.send_stream_data(stream_id, begin + bytes(8 << 20))
        hostile.transmit()
        for _ in range(50):
            assert (await good.request("POST", "/", body=b"x")).body == b"x"
        assert hostile.statuses[stream_id] == b"431"
        assert hostile.closed_by is None


@pytest.mark.parametrize("way", ["read", "cancelled"])
async def test_uploads_make_room_before_their_calls_end(
    way: str,
) -> None:
    read = 0
    go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal read
        assert scope["type"] == "http"
        if scope["path"] == "/read":
            async for chunk in body_of(receive):
                read += len(chunk)
        await go.wait()
        await respond(send, b"")

    window, uploads = 1 << 16, 60
    async with connected(app, Hostile, max_stream_data=window, max_data=window) as http:
        if way == "cancelled":
            for stream_id in [http.client.ask(b"/ignore") for _ in range(uploads)]:
                data = encode_frame(FrameType.DATA, bytes(4 * window))
                http.client.connection.send_stream_data(stream_id, data)
            http.client.transmit()
            for _ in range(50):
                await http.settled()
            for stream_id in range(0, 4 * uploads, 4):
                http.client.connection.reset_stream(stream_id, CANCELLED)
            http.client.transmit()
        for _ in range(uploads):
            stream_id = http.client.ask(b"/read")
            data = encode_frame(FrameType.DATA, bytes(window // 2))
            http.client.connection.send_stream_data(stream_id, data, end_stream=True)
        http.client.transmit()
        for _ in range(200):
            await http.settled()
        assert read == uploads * (window // 2)
        go.set()


# Draining


@pytest.mark.parametrize("admission", [Admission.COMPLETE, Admission.NONE])
async def test_a_client_that_does_not_read_holds_no_handover_up(admission: Admission) -> None:
    """Its response goes on while it is brought to its end: what is not sent is carried along."""
    size = 3_000_000
    ended = False

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal ended
        assert scope["type"] == "http"
        await send_bytes(send, size)
        ended = True

    async with connected(app, HttpClient) as http, http.client.stream("GET", "/") as response:
        for _ in range(20):
            await http.settled()
        assert not ended
        http.server.admit_requests(admission)
        for _ in range(1000):
            await asyncio.sleep(0)  # nothing comes from the client
        assert ended
        assert http.server.running_requests() == []
        http.server.admit_requests(Admission.NONE)
        http.carry()
        assert hashlib.sha256(await response.read()).hexdigest() == pattern_digest(size)


async def test_a_client_that_reads_nothing_does_not_make_a_snapshot_too_large() -> None:
    """What is not sent is carried along, so there is an end to what is brought to its end."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send_bytes(send, 20_000_000)

    async with connected(app, Hostile) as http:
        http.server.connection._remote_max_data = 1 << 16  # as a client may say
        for _ in range(128):
            stream_id = http.client.ask(b"/")
            http.client.connection.send_stream_data(stream_id, b"", end_stream=True)
        http.client.transmit()
        while len(http.server.running_requests()) < 128:
            await http.settled()
        http.server.admit_requests(Admission.COMPLETE)
        before = 0
        while http.server.connection.backlog > before:
            before = http.server.connection.backlog
            for _ in range(10):
                await http.settled()
        assert DRAIN_CONNECTION_WATER <= before <= DRAIN_CONNECTION_WATER + 128 * 2 * PIECE
        assert before < MAX_SNAPSHOT_SIZE
        http.server.reject_requests()
        http.server.admit_requests(Admission.NONE)
        http.carry()
        assert http.client.closed_by is None


async def test_an_upload_longer_than_announced_ends_where_it_is_too_long() -> None:
    """Its source may never end, and neither may what the server waits for."""
    produced = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal produced
        async for piece in endless():
            produced += 1
            yield piece

    async with connected(demo_app, HttpClient) as http:
        with pytest.raises(quicferry.client.RequestFailed, match="content-length of 12"):
            await http.client.request("POST", "/", headers={"content-length": "12"}, body=counted())
        assert produced == 3
        assert (await http.client.request("POST", "/", body=b"next")).body == b"next"


async def test_responses_that_nobody_reads_share_what_a_connection_may_keep() -> None:
    number, piece, window = 40, 10_000, 1 << 14
    produced = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal produced
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
            produced += piece
        await send({"type": "http.response.body", "body": b""})

    configuration = client_configuration(max_stream_data=window)
    async with (
        served(app) as server,
        http_client(server, configuration=configuration) as client,
        AsyncExitStack() as stack,
    ):
        streams = [
            await stack.enter_async_context(client.stream("GET", "/")) for _ in range(number)
        ]
        protocol = await server_side(server, client)
        for _ in range(20):
            await protocol.ping()
        # The first ones had the connection for themselves.
        assert number * window <= produced <= number * (window + 2 * piece) + (4 << 20)
        assert [len(await stream.read()) for stream in streams[:2]] == [100 * piece] * 2


async def test_what_follows_a_header_that_waits_for_its_table_fills_no_memory_of_a_client() -> None:
    """A hostile server never sends what the header refers to (RFC 9204 2.1.2)."""
    async with connected(Slow(), HttpClient) as http:
        request = asyncio.create_task(http.client.request("GET", "/slow"))
        while not http.server.running_requests():
            await http.settled()
        encoder = pylsqpack.Encoder()
        encoder.apply_settings(4096, 16)
        head = [(b":status", b"200"), (b"x-own", b"a value that is worth an entry")]
        encoder.encode(0, head)
        _, section = encoder.encode(0, head)
        data = encode_frame(FrameType.HEADERS, section) + encode_frame(
            FrameType.DATA, bytes(1 << 23)
        )
        http.server.connection.send_stream_data(0, data)
        http.server.transmit()
        for _ in range(100):
            await http.settled()
        window = http.client.connection.configuration.max_stream_data
        assert window <= http.client.connection._local_max_data.used <= window + window // 2
        request.cancel()


async def test_a_hundred_requests_at_once_leave_others_their_turn() -> None:
    begun: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        begun.append(scope["path"])
        await respond(send, b"answer")

    async with (
        served(app) as server,
        hostile_client(server) as hostile,
        http_client(server) as good,
    ):
        for _ in range(100):
            stream_id = hostile.ask(b"/many")
            hostile.connection.send_stream_data(stream_id, b"", end_stream=True)
        hostile.transmit()
        assert (await good.request("GET", "/good")).body == b"answer"
        while len(begun) < 101:
            await hostile.ping()
        assert begun.index("/good") < 50
