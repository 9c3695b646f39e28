from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aioquic.h3.connection import ErrorCode, H3Connection
from aioquic.h3.events import HeadersReceived
from aioquic.quic.events import ProtocolNegotiated, QuicEvent
from loopback import (
    Filter,
    body_of,
    client_configuration,
    http_client,
    pattern_digest,
    respond,
    served,
    server_configuration,
    server_side,
)

import quicferry
from quicferry import ConnectionLost, ConnectionProtocol
from quicferry.client import RequestFailed

WINDOW = 1 << 16


async def test_response() -> None:
    async with served() as server, http_client(server) as client:
        response = await client.request("POST", "/?q=1", headers={"X-Test": "é"}, body=b"content")
        assert (response.status, response.body) == (200, b"content")
        assert response.header("Content-Length") == "7"
        assert response.header("missing", "no") == "no"


async def test_request_as_the_application_sees_it() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        fields = dict(scope["headers"])
        await respond(send, repr((scope["method"], scope["raw_path"], fields)).encode())

    async with served(app) as server, http_client(server) as client:
        seen = (await client.request("GET", "/a%20b", headers=[("X-Test", "é")])).body
        host = f"127.0.0.1:{server.address.port}".encode()
        assert seen == repr(("GET", b"/a%20b", {b"host": host, b"x-test": b"\xe9"})).encode()
        seen = (await client.request("PUT", "/", headers={"Host": "example.org"})).body
        fields = {b"host": b"example.org", b"content-length": b"0"}
        assert seen == repr(("PUT", b"/", fields)).encode()


async def test_what_http3_does_not_have_is_left_out() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, repr(sorted(dict(scope["headers"]))).encode())

    fields = {
        "Connection": "keep-alive, x",
        "Keep-Alive": "5",
        "Proxy-Connection": "keep-alive",
        "Transfer-Encoding": "chunked",
        "Upgrade": "h2c",
        "TE": "gzip",
        "X": "1",
    }
    async with served(app) as server, http_client(server) as client:
        response = await client.request("GET", "/", headers=fields)
        assert response.body == repr([b"host", b"x"]).encode()
        response = await client.request("GET", "/", headers={"TE": "trailers"})
        assert response.body == repr([b"host", b"te"]).encode()


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("B AD", "/", {}),
        ("GET", "index", {}),
        ("GET", "/a b", {}),
        ("GET", "/", {"x y": "1"}),
        ("GET", "/", {"x": "1\n"}),
        ("GET", "/", {"x": "日本"}),
        ("GET", "/", {":path": "/"}),
        ("GET", "/", {"content-length": "many"}),
        ("GET", "/", {"host": ""}),
    ],
)
async def test_what_http3_does_not_allow_is_not_sent(
    method: str, path: str, headers: dict[str, str]
) -> None:
    async with served() as server, http_client(server) as client:
        with pytest.raises(ValueError, match=r"\w"):
            await client.request(method, path, headers=headers)
        assert (await client.request("POST", "/", body=b"fine")).body == b"fine"


@pytest.mark.parametrize("method", ["HEAD", "GET"])
async def test_no_body_although_a_length_is_given(method: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        status = 200 if scope["method"] == "HEAD" else 304
        headers = [(b"content-length", b"1000")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"x" * 1000})

    async with served(app) as server, http_client(server) as client:
        for _ in range(2):
            response = await client.request(method, "/")
            assert (response.header("content-length"), response.body) == ("1000", b"")


async def test_many_requests_at_once() -> None:
    async with served() as server, http_client(server) as client:
        bodies = [b"%d" % number * (number % 50) for number in range(300)]
        responses = await asyncio.gather(
            *(client.request("POST", "/", body=body) for body in bodies)
        )
        assert [response.body for response in responses] == bodies


async def test_large_bodies_both_ways() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(100):
            yield b"%d" % number * 10_000

    async with served() as server, http_client(server) as client:
        digest = hashlib.sha256()
        async with client.stream("GET", "/bytes/3000000") as response:
            async for chunk in response:
                digest.update(chunk)
        assert digest.hexdigest() == pattern_digest(3_000_000)
        expected = hashlib.sha256(b"".join([piece async for piece in pieces()])).hexdigest()
        uploaded = await client.request("POST", "/digest", body=pieces())
        assert uploaded.body.decode() == expected
        body = b"all at once" * 100_000
        echoed = await client.request("POST", "/", body=body)
        assert echoed.body == body


async def test_a_slow_reader_stops_its_own_response_only() -> None:
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        if scope["path"] != "/endless":
            await respond(send, b"quick")
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(8192), "more_body": True})
            sent += 8192

    configuration = client_configuration(max_stream_data=WINDOW)
    async with served(app) as server, http_client(server, configuration=configuration) as client:
        async with client.stream("GET", "/endless") as response:
            for _ in range(50):
                assert (await client.request("GET", "/")).body == b"quick"
            in_buffers = sent
            read = 0
            async for chunk in response:
                read += len(chunk)
                if read > 20 * WINDOW:
                    break
        # What the window lets through and what waits for it, but no more
        assert in_buffers <= 2 * WINDOW + (256 + 64) * 1024
        assert (await client.request("GET", "/")).body == b"quick"


async def test_an_upload_waits_for_the_application() -> None:
    read = asyncio.Event()
    produced = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await read.wait()
        size = sum([len(chunk) async for chunk in body_of(receive)])
        await respond(send, b"%d" % size)

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal produced
        for _ in range(400):
            produced += 10_000
            yield bytes(10_000)

    async with served(app) as server, http_client(server) as client:
        upload = asyncio.create_task(client.request("POST", "/slow", body=pieces()))
        for _ in range(50):
            await client.request("POST", "/", body=b"others go on")
        assert produced < 3_000_000
        read.set()
        assert (await upload).body == b"4000000"


async def test_time_limit_cancels_the_request() -> None:
    disconnected = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/hang":
            while (await receive())["type"] != "http.disconnect":
                pass
            disconnected.set()
        else:
            await respond(send, b"fine")

    async with served(app) as server, http_client(server) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.request("GET", "/hang")
        await disconnected.wait()
        assert (await client.request("GET", "/")).body == b"fine"


async def test_early_response_stops_the_upload() -> None:
    stopped = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"too large", status=413)

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(50_000)
        finally:
            stopped.set()

    async with served(app) as server, http_client(server) as client:
        response = await client.request("POST", "/", body=endless())
        assert (response.status, response.body) == (413, b"too large")
        await stopped.wait()
        assert (await client.request("GET", "/")).status == 413


async def test_body_that_is_not_as_long_as_announced() -> None:
    async def short() -> AsyncIterator[bytes]:
        yield b"short"

    async with served() as server, http_client(server) as client:
        for length in ("4", "6"):
            with pytest.raises(RequestFailed, match="content-length"):
                await client.request("POST", "/", headers={"content-length": length}, body=short())
        assert (await client.request("POST", "/", body=b"fine")).body == b"fine"


async def test_failing_source_of_a_body() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"one"
        raise KeyError("no more")

    async with served() as server, http_client(server) as client:
        with pytest.raises(RequestFailed, match="no more") as caught:
            await client.request("POST", "/", body=failing())
        assert isinstance(caught.value.__cause__, KeyError)
        assert (await client.request("POST", "/", body=b"fine")).body == b"fine"


async def test_incomplete_response_is_an_error() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-length", b"10")] if scope["path"] == "/announced" else []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"part", "more_body": True})
        if scope["path"] == "/announced":
            await send({"type": "http.response.body", "body": b""})

    async with served(app) as server, http_client(server) as client:
        for path in ("/announced", "/aborted"):
            with pytest.raises(RequestFailed, match=r"gave up .*H3_INTERNAL_ERROR") as caught:
                await client.request("GET", path)
            assert caught.value.error_code == ErrorCode.H3_INTERNAL_ERROR
        assert client.closed_by is None


async def test_a_malformed_response_fails_its_request_only() -> None:
    class Careless(ConnectionProtocol):
        """A server of aioquic's, which sends what it is told."""

        def quic_event_received(self, event: QuicEvent) -> None:
            if isinstance(event, ProtocolNegotiated):
                self.http = H3Connection(self.connection)
                return
            for http_event in self.http.handle_event(event):
                if isinstance(http_event, HeadersReceived):
                    self.respond(http_event)

        def respond(self, request: HeadersReceived) -> None:
            path = dict(request.headers)[b":path"]
            fields = {b"/field": (b"X", b"1"), b"/length": (b"content-length", b"4")}
            field = fields.get(path, (b"x", b"1"))
            self.http.send_headers(request.stream_id, [(b":status", b"200"), field])
            self.http.send_data(request.stream_id, b"abc", end_stream=path != b"/open")

    configuration = server_configuration()
    async with (
        await quicferry.serve(
            "127.0.0.1", 0, configuration=configuration, create_protocol=Careless
        ) as server,
        http_client(server) as client,
        client.stream("GET", "/open") as beside,
    ):
        chunks = aiter(beside)
        assert await anext(chunks) == b"abc"
        for path in ("/field", "/length"):
            with pytest.raises(RequestFailed, match="response is malformed") as caught:
                await client.request("POST", path, body=b"x")
            assert caught.value.error_code == ErrorCode.H3_MESSAGE_ERROR
        assert (await client.request("GET", "/")).body == b"abc"
        assert client.closed_by is None


async def test_lost_connection_fails_all_requests() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/begun":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"part", "more_body": True})
        await receive()
        await receive()

    async with (
        served(app) as server,
        http_client(server) as client,
        client.stream("GET", "/begun") as response,
    ):
        waiting = asyncio.create_task(client.request("GET", "/waiting"))
        chunks = aiter(response)
        assert await anext(chunks) == b"part"
        protocol = await server_side(server, client)
        protocol.close(reason_phrase="server migrated")
        with pytest.raises(ConnectionLost, match="server migrated") as caught:
            await anext(chunks)
        assert caught.value.error_code == ErrorCode.H3_NO_ERROR
        with pytest.raises(ConnectionLost, match="server migrated"):
            await waiting


async def test_loss_on_the_path_is_repaired() -> None:
    count = 0

    def every_tenth(data: bytes, addr: Any) -> bool:
        nonlocal count
        count += 1
        return count % 10 == 0

    link = Filter()
    async with served() as server, http_client(server, wrap_transport=link) as client:
        link.drops_sent = link.drops_received = every_tenth
        body = b"repaired" * 20_000
        assert (await client.request("POST", "/", body=body)).body == body
        link.mend()


async def test_request_that_cannot_be_sent_leaves_the_connection_as_it_was() -> None:
    async with served() as server, http_client(server) as client:
        with pytest.raises(ValueError, match="x-large is longer than"):
            await client.request("GET", "/", headers=[("x-large", "x" * 65536)])
        for headers in ([("x-large", "x" * 60_000)], []):
            assert (await client.request("GET", "/", headers=headers)).status == 200


async def test_cancelled_requests_leave_nothing_behind() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        while (await receive())["type"] != "http.disconnect":
            pass

    async with served(app) as server, http_client(server) as client:
        for method in ("HEAD", "POST"):
            requests = [asyncio.create_task(client.request(method, "/")) for _ in range(5)]
            await client.ping()
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)
        await client.ping()
        state = vars(client._http)
        assert not any(state[kept] for kept in ("_bodiless", "_malformed", "_too_large"))
