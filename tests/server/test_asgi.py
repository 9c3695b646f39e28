from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aioquic.h3.connection import H3_ALPN, ErrorCode, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent, StreamReset
from loopback import (
    Filter,
    at,
    body_of,
    client_configuration,
    free_port,
    http_client,
    respond,
    send_bytes,
    served,
    server_configuration,
    server_side,
)

import quicferry
from quicferry import ConnectionProtocol, MigrationProtocol
from quicferry.client import RequestFailed
from quicferry.server import ApplicationError, ClientDisconnected, ConfigurationError


async def test_scope() -> None:
    scopes: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)
        await respond(send, b"")

    port = free_port("127.0.0.1", "127.0.0.2")
    async with served(app, port=port) as server, http_client(server) as client:
        await client.request("GET", "/a%20b?c=d")
        scope = scopes[-1]
        assert (scope["type"], scope["http_version"], scope["scheme"]) == ("http", "3", "https")
        assert (scope["path"], scope["raw_path"], scope["query_string"]) == (
            "/a b",
            b"/a%20b",
            b"c=d",
        )
        assert scope["server"] == ("127.0.0.1", port)
        [status] = server.status()["connections"]
        assert status["client"] == "{}:{}".format(*scope["client"])
        await server.imminent(MigrationProtocol.SYMMETRIC)
        await server.switch(at("127.0.0.2", port))
        await client.request("GET", "/")
        assert scopes[-1]["server"] == ("127.0.0.2", port)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 2_000_000])
async def test_bodies_of_all_sizes(size: int) -> None:
    content = os.urandom(size)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received = b"".join([chunk async for chunk in body_of(receive)])
        assert received == content
        await respond(send, received)

    async with served(app) as server, http_client(server) as client:
        digest = hashlib.sha256((await client.request("POST", "/", body=content)).body)
        assert digest.digest() == hashlib.sha256(content).digest()


async def test_exception_before_the_response(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/fail":
            raise RuntimeError("no answer to that")
        if scope["path"] != "/nothing":
            await respond(send, b"fine")

    async with served(app) as server, http_client(server) as client:
        for path in ("/fail", "/nothing"):
            response = await client.request("POST", path, body=b"x" * 100_000)
            assert (response.status, response.body) == (500, b"")
        assert "no answer to that" in caplog.text
        assert (await client.request("GET", "/")).body == b"fine"


@pytest.mark.parametrize("mistake", ["exception", "no end", "too short", "too long"])
async def test_response_that_is_not_completed(mistake: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"10")] if mistake.startswith("too") else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        size = 11 if mistake == "too long" else 9
        await send({"type": "http.response.body", "body": b"x" * size, "more_body": True})
        if mistake == "exception":
            raise RuntimeError("half-way")
        if mistake != "no end":
            await send({"type": "http.response.body", "body": b""})

    async with served(app) as server, http_client(server) as client:
        for _ in range(3):
            with pytest.raises(RequestFailed) as caught:
                await client.request("GET", "/")
            assert caught.value.error_code == ErrorCode.H3_INTERNAL_ERROR
        assert client.closed_by is None


async def test_header_fields_that_http3_does_not_allow() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = {
            "/connection": (b"Connection", b"close"),
            "/upper": (b"X-Upper", b"1"),
            "/name": (b"bad name", b"1"),
            "/value": (b"name", b"a\nb"),
        }[scope["path"]]
        await send({"type": "http.response.start", "status": 200, "headers": [headers]})
        await send({"type": "http.response.body", "body": b"fine"})

    async with served(app) as server, http_client(server) as client:
        response = await client.request("GET", "/connection")
        assert (response.body, response.header("connection")) == (b"fine", None)
        assert (await client.request("GET", "/upper")).header("x-upper") == "1"
        for path in ("/name", "/value"):
            assert (await client.request("GET", path)).status == 500


@pytest.mark.parametrize(
    ("method", "status", "length", "complaints"),
    [
        ("GET", 204, None, 2),
        ("GET", 205, None, 2),
        ("GET", 304, "4", 1),
        ("HEAD", 200, "4", 0),
        ("HEAD", 204, None, 1),
    ],
)
async def test_what_the_status_does_not_allow_is_left_out(
    method: str,
    status: int,
    length: str | None,
    complaints: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"Content-Length", b"4"), (b"x", b"1")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for more in (True, False):
            await send({"type": "http.response.body", "body": b"ab", "more_body": more})

    async with served(app) as server, http_client(server) as client:
        for _ in range(3):
            response = await client.request(method, "/")
            assert (response.status, response.body) == (status, b"")
            assert response.header("content-length") == length
            assert response.header("x") == "1"
    assert caplog.text.count("left out") == complaints


async def test_no_content_may_be_said_to_be_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"", status=int(scope["path"][1:]))

    async with served(app) as server, http_client(server) as client:
        assert (await client.request("GET", "/204")).header("content-length") is None
        assert (await client.request("GET", "/205")).header("content-length") == "0"
    assert "left out" not in caplog.text


@pytest.mark.parametrize("status", [100, 101, 103, 1000])
async def test_status_that_ends_no_response(status: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"", status=status if scope["path"] == "/wrong" else 200)

    async with served(app) as server, http_client(server) as client:
        assert (await client.request("GET", "/wrong")).status == 500
        assert (await client.request("GET", "/")).status == 200


async def test_messages_out_of_order_are_errors_of_the_application() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.body", "body": b"too early"})

    async with served(app) as server, http_client(server) as client:
        assert (await client.request("GET", "/")).status == 500


async def test_trailers_end_the_stream() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": b"body"})
        for more in (True, False):
            await send(
                {
                    "type": "http.response.trailers",
                    "headers": [(b"X-Sum", b"1"), (b"Connection", b"close")],
                    "more_trailers": more,
                }
            )

    async with served(app) as server, http_client(server) as client:
        for headers in ({"te": "trailers"}, {}):
            assert (await client.request("GET", "/", headers=headers)).body == b"body"


async def test_interim_responses_and_pushes_do_no_harm() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/pushed":
            await send_bytes(send, 5000)
            return
        await send({"type": "http.response.early_hint", "links": [b"</pushed>"]})
        headers = [(b"X-Pushed", b"1"), (b"Connection", b"close")]
        await send({"type": "http.response.push", "path": "/pushed", "headers": headers})
        await respond(send, b"final")

    async with served(app) as server, http_client(server) as client:
        for _ in range(20):
            assert (await client.request("GET", "/")).body == b"final"


# The client goes away


class Disconnects:
    """An application that says what it hears, and tries to send afterwards."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.errors: list[BaseException] = []
        self.begun = asyncio.Event()
        self.done = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/fine":
            await respond(send, b"fine")
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        self.begun.set()
        try:
            while self.messages[-1:] != ["http.disconnect"]:
                self.messages.append((await receive())["type"])
            await send({"type": "http.response.body", "body": b"anyone?", "more_body": True})
        except BaseException as exc:
            self.errors.append(exc)
            raise
        finally:
            self.done.set()


@pytest.mark.parametrize("way", ["request", "connection", "reset"])
async def test_disconnect(way: str, caplog: pytest.LogCaptureFixture) -> None:
    app = Disconnects()

    async def endless() -> AsyncIterator[bytes]:
        yield b"beginning"
        await asyncio.Event().wait()

    async with served(app) as server, http_client(server) as client:
        body = endless() if way == "reset" else b""
        async with client.stream("POST", "/", body=body):
            await app.begun.wait()
            if way == "connection":
                client.close()
        await app.done.wait()
        assert app.messages[-1] == "http.disconnect"
        [error] = app.errors
        assert isinstance(error, ClientDisconnected)
        assert isinstance(error, OSError)
        assert "Error in ASGI" not in caplog.text
        if way != "connection":
            assert (await client.request("GET", "/fine")).body == b"fine"


@pytest.mark.parametrize("way", ["request", "connection", "silence"])
async def test_a_blocked_send_is_released(way: str) -> None:
    released: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": bytes(10**6), "more_body": True})
        except BaseException as exc:
            released.set_result(exc)
            raise

    link = Filter()
    configuration = server_configuration(idle_timeout=0.5)
    async with (
        served(app, configuration=configuration) as server,
        http_client(
            server,
            configuration=client_configuration(max_stream_data=1 << 16),
            wrap_transport=link,
        ) as client,
    ):
        async with client.stream("GET", "/"):
            if way == "connection":
                client.close()
            elif way == "silence":
                link.cut()
                await released
        assert isinstance(await released, ClientDisconnected)


async def test_receive_after_the_response_is_a_disconnect() -> None:
    heard: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"done")
        heard.set_result([(await receive())["type"], (await receive())["type"]])

    async with served(app) as server, http_client(server) as client:
        assert (await client.request("GET", "/")).body == b"done"
        assert await heard == ["http.request", "http.disconnect"]


async def test_slow_application_holds_up_no_other_request() -> None:
    go_on = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await go_on.wait()
        body = b"".join([chunk async for chunk in body_of(receive)])
        await respond(send, b"%d" % len(body))

    async with served(app) as server, http_client(server) as client:
        slow = [
            asyncio.create_task(client.request("POST", "/slow", body=bytes(500_000)))
            for _ in range(3)
        ]
        for _ in range(20):
            assert (await client.request("POST", "/", body=bytes(50_000))).body == b"50000"
        go_on.set()
        for task in slow:
            assert (await task).body == b"500000"


async def test_what_is_not_read_does_not_fill_the_memory() -> None:
    """The window of a stream, and what waits for the window, is all that a client can send."""
    go_on = asyncio.Event()
    produced = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await go_on.wait()
        size = sum([len(chunk) async for chunk in body_of(receive)])
        await respond(send, b"%d" % size)

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal produced
        for _ in range(200):
            produced += 10_000
            yield bytes(10_000)

    configuration = server_configuration(max_stream_data=1 << 16)
    async with served(app, configuration=configuration) as server, http_client(server) as client:
        upload = asyncio.create_task(client.request("POST", "/", body=pieces()))
        protocol = await server_side(server, client)
        for _ in range(20):
            await protocol.ping()
        assert produced <= (1 << 16) + 256 * 1024 + 20_000
        go_on.set()
        assert (await upload).body == b"2000000"


# Malformed requests, by a client that does as it likes


class RawClient(ConnectionProtocol):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.http = H3Connection(self.connection)
        self.answers: asyncio.Queue[object] = asyncio.Queue()

    def quic_event_received(self, event: QuicEvent) -> None:
        for http_event in self.http.handle_event(event):
            if isinstance(http_event, HeadersReceived):
                self.answers.put_nowait(dict(http_event.headers)[b":status"])
            elif isinstance(http_event, DataReceived) and http_event.data:
                self.answers.put_nowait(http_event.data)
        if isinstance(event, StreamReset):
            self.answers.put_nowait(event.error_code)


def raw_client(server: quicferry.Server) -> Any:
    return quicferry.connect(
        "127.0.0.1",
        server.address.port,
        configuration=client_configuration(),
        create_protocol=RawClient,
    )


GOOD = {b":method": b"GET", b":scheme": b"https", b":authority": b"test", b":path": b"/"}


@pytest.mark.parametrize(
    "request_fields",
    [
        {b":method": b"GET", b":authority": b"test"},
        {**GOOD, b":path": "/é".encode()},
        {**GOOD, b":method": b"\xff"},
        {**GOOD, b":method": b"CONNECT"},
        {**GOOD, b"X-Upper": b"1"},
    ],
    ids=["no path", "path", "method", "connect to a path", "upper case"],
)
async def test_malformed_request_is_reset(request_fields: dict[bytes, bytes]) -> None:
    async with served() as server, raw_client(server) as client:
        client.http.send_headers(0, list(request_fields.items()), end_stream=False)
        client.transmit()
        assert await client.answers.get() == ErrorCode.H3_MESSAGE_ERROR
        client.http.send_headers(4, list(GOOD.items()), end_stream=True)
        client.transmit()
        assert await client.answers.get() == b"200"


async def test_websocket_that_is_none() -> None:
    async with served() as server, raw_client(server) as client:
        connect = {b":method": b"CONNECT", b":protocol": b"websocket"}
        client.http.send_headers(0, list({**GOOD, **connect}.items()))
        client.transmit()
        assert await client.answers.get() == b"400"
        client.http.send_headers(4, list(GOOD.items()), end_stream=True)
        client.transmit()
        assert await client.answers.get() == b"200"


@pytest.mark.parametrize("ends", [True, False])
async def test_a_server_is_no_proxy(ends: bool) -> None:
    async with served() as server, raw_client(server) as client:
        fields = [(b":method", b"CONNECT"), (b":authority", b"elsewhere:443")]
        client.http.send_headers(0, fields, end_stream=ends)
        client.transmit()
        assert await client.answers.get() == b"501"
        client.http.send_headers(4, list(GOOD.items()), end_stream=True)
        client.transmit()
        assert await client.answers.get() == b"200"


async def test_a_request_without_authority_is_served() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, repr(scope["headers"]).encode())

    async with served(app) as server, raw_client(server) as client:
        del (request := {**GOOD, b"host": b"example.org", b"x": b"1"})[b":authority"]
        client.http.send_headers(0, list(request.items()), end_stream=True)
        client.transmit()
        seen = repr([(b"host", b"example.org"), (b"x", b"1")]).encode()
        assert [await client.answers.get() for _ in range(2)] == [b"200", seen]


async def test_cookies_are_one_field() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, repr(scope["headers"][1:]).encode())

    fields = [("a", "1"), ("cookie", "b=2"), ("c", "3"), ("cookie", "d=4"), ("a", "5")]
    async with served(app) as server, http_client(server) as client:
        seen = await client.request("GET", "/", headers=fields)
        expected = [(b"a", b"1"), (b"cookie", b"b=2; d=4"), (b"c", b"3"), (b"a", b"5")]
        assert seen.body == repr(expected).encode()
        seen = await client.request("GET", "/", headers=[("cookie", "b=2")])
        assert seen.body == repr([(b"cookie", b"b=2")]).encode()


async def test_a_body_of_another_length_is_a_disconnect() -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "GET":
            await respond(send, b"fine")
            return
        while (kind := (await receive())["type"]) != "http.disconnect":
            await heard.put(kind)
        await heard.put(kind)

    fields = [*{**GOOD, b":method": b"POST", b"content-length": b"4"}.items()]
    async with served(app) as server, raw_client(server) as client:
        client.http.send_headers(0, fields)
        client.http.send_data(0, b"abc", end_stream=False)
        client.transmit()
        assert await heard.get() == "http.request"
        client.http.send_data(0, b"", end_stream=True)
        client.transmit()
        assert await client.answers.get() == ErrorCode.H3_MESSAGE_ERROR
        assert await heard.get() == "http.disconnect"
        client.http.send_headers(4, list(GOOD.items()), end_stream=True)
        client.transmit()
        assert await client.answers.get() == b"200"


async def test_data_after_the_response() -> None:
    async with served(_early) as server, raw_client(server) as client:
        client.http.send_headers(0, list({**GOOD, b":method": b"POST"}.items()))
        client.transmit()
        assert [await client.answers.get() for _ in range(2)] == [b"200", b"early"]
        for stream_id in range(4, 40, 4):
            client.http.send_headers(stream_id, list({**GOOD, b":method": b"POST"}.items()))
            client.http.send_data(stream_id, b"more", end_stream=False)
            client.transmit()
            assert [await client.answers.get() for _ in range(2)] == [b"200", b"early"]
        assert client.closed_by is None


async def _early(scope: Any, receive: Any, send: Any) -> None:
    await respond(send, b"early")


# Lifespan


class Lifespan:
    """An application with a life.

    Attributes:
        fails: When it fails: ``startup``, ``shutdown``, or never.
        heard: What it was told.
    """

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.heard: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await respond(send, scope["state"]["greeting"])
            return
        scope["state"]["greeting"] = b"hello"
        for step in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{step}"
            self.heard.append(step)
            if self.fails == step:
                await send({"type": f"lifespan.{step}.failed", "message": "no database"})
                return
            await send({"type": f"lifespan.{step}.complete"})


async def test_lifespan() -> None:
    app = Lifespan()
    async with served(app) as server, http_client(server) as client:
        assert app.heard == ["startup"]
        assert (await client.request("GET", "/")).body == b"hello"
    assert app.heard == ["startup", "shutdown"]


async def test_failing_startup() -> None:
    port = free_port("127.0.0.1")
    with pytest.raises(ApplicationError, match=r"failed to start: .*no database"):
        async with served(Lifespan("startup"), port=port):
            pass
    async with served(port=port):
        pass


async def test_startup_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            raise RuntimeError("the database is away")
        await respond(send, b"fine")

    async with served(app) as server, http_client(server) as client:
        assert (await client.request("GET", "/")).body == b"fine"
    assert "served without its startup" in caplog.text
    assert "RuntimeError: the database is away" in caplog.text


@pytest.mark.parametrize("way", ["raises", "returns"])
async def test_application_that_knows_no_lifespan(
    way: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" and way == "returns":
            return
        assert scope["type"] == "http"
        await respond(send, b"fine")

    async with served(app) as server, http_client(server) as client:
        assert (await client.request("GET", "/")).body == b"fine"
    assert not caplog.records


async def test_a_startup_that_takes_too_long() -> None:
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(ApplicationError, match=r"within 0\.05 s; --startup-timeout .* allows more"):
        async with served(app, startup_timeout=0.05):
            pass
    assert ended.is_set()


async def test_failing_shutdown() -> None:
    server = await quicferry.serve(
        "127.0.0.1", 0, configuration=server_configuration(), app=Lifespan("shutdown")
    )
    with pytest.raises(ApplicationError, match=r"failed to stop: .*no database"):
        await server.close()
    await server.wait_closed()


async def test_address_in_use_stops_the_application_again() -> None:
    app = Lifespan()
    async with served() as server:
        with pytest.raises(quicferry.BindError):
            async with served(app, port=server.address.port):
                pass
    assert app.heard == ["startup", "shutdown"]


async def test_requests_under_way_at_the_end_are_told() -> None:
    app = Disconnects()
    async with served(app) as server, http_client(server) as client:
        async with client.stream("GET", "/"):
            await server.close()
        assert app.messages[-1] == "http.disconnect"
        assert app.done.is_set()


# Configuration


async def test_configuration_that_is_none_for_a_server() -> None:
    for configuration in (QuicConfiguration(), QuicConfiguration(is_client=False)):
        with pytest.raises(ConfigurationError, match="certificate"):
            await quicferry.serve("127.0.0.1", 0, configuration=configuration)
    configuration = server_configuration(connection_id_length=0)
    with pytest.raises(ConfigurationError, match="connection_id_length"):
        await quicferry.serve("127.0.0.1", 0, configuration=configuration)


async def test_clients_may_have_to_prove_their_address() -> None:
    async with served(retry=True) as server, http_client(server) as client:
        assert (await client.request("POST", "/", body=b"proven")).body == b"proven"


async def test_http3_is_the_default_protocol_of_an_application() -> None:
    configuration = server_configuration()
    configuration.alpn_protocols = None
    async with served(configuration=configuration) as server:
        assert configuration.alpn_protocols is None
        async with http_client(server) as client:
            assert client.connection.configuration.alpn_protocols == H3_ALPN
            assert (await client.request("POST", "/", body=b"x")).body == b"x"
