"""Requests before a hand-over: those that run end, the others wait, and none is lost."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pylsqpack
import pytest
from aioquic.h3.connection import ErrorCode, FrameType, encode_frame
from in_memory import InMemory, RawClient, connected
from loopback import body_of, demo_app, respond

from quicferry import HttpClient
from quicferry.client import RequestFailed, RequestRejected
from quicferry.server import draining
from quicferry.server.draining import Admission, RunningRequest
from quicferry.transport import SnapshotError

WINDOW = 1 << 16


class Gates:
    """An application whose answers to /slow... wait until they are allowed.

    Attributes:
        seen: The paths of the requests that have begun, in order.
        told: Those who were told of a disconnect.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.told: list[str] = []
        self.open = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError("it has no lifespan")  # as ASGI wants it of such an application
        path = scope["path"]
        self.seen.append(path)
        if path.startswith("/never"):
            while (await receive())["type"] != "http.disconnect":
                pass
            self.told.append(path)
            return
        if path.startswith("/slow"):
            await self.open.wait()
        body = b"".join([chunk async for chunk in body_of(receive)])
        await respond(send, path.encode() + body)


async def started(http: InMemory[HttpClient], method: str, path: str, **more: Any) -> Any:
    """Send a request, and wait until the server has it."""
    task = asyncio.create_task(http.client.request(method, path, **more))
    await asyncio.sleep(0)
    await http.settled()
    return task


async def test_running_requests_end_and_new_ones_wait() -> None:
    app = Gates()
    async with connected(app, HttpClient) as http:
        slow = await started(http, "GET", "/slow?secret=1")
        http.server.admit_requests(Admission.NONE)
        waiting = [await started(http, "POST", f"/{n}", body=b"%d" % n) for n in range(5)]
        name = http.server.connection.stable_id
        [running] = http.server.running_requests()
        assert running == RunningRequest(name, 0, "GET", "/slow")
        assert str(running) == f"GET /slow (stream 0 of connection {name})"
        idle = asyncio.create_task(http.server.wait_idle())
        await http.settled()
        assert not idle.done()
        app.open.set()
        assert (await slow).body == b"/slow"
        await idle
        assert http.server.running_requests() == []
        assert app.seen == ["/slow"]
        http.server.admit_requests(Admission.ALL)
        assert [(await task).body for task in waiting] == [b"/%d%d" % (n, n) for n in range(5)]
        assert (await http.client.request("GET", "/after")).body == b"/after"


async def test_waiting_requests_are_served_by_the_copy() -> None:
    app = Gates()
    async with connected(app, HttpClient) as http:
        assert (await http.client.request("GET", "/before")).body == b"/before"
        http.server.admit_requests(Admission.NONE)
        waiting = [await started(http, "POST", f"/{n}", body=b"%d" % n) for n in range(5)]
        assert app.seen == ["/before"]
        http.carry()
        assert [(await task).body for task in waiting] == [b"/%d%d" % (n, n) for n in range(5)]
        assert (await http.client.request("GET", "/after")).body == b"/after"


def request(path: bytes, body: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """The bytes of a request."""
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":authority", b"localhost"),
        (b":path", path),
        (b"content-length", b"%d" % len(body)),
        *more,
    ]
    _, header = pylsqpack.Encoder().encode(0, fields)
    return encode_frame(FrameType.HEADERS, header) + encode_frame(FrameType.DATA, body)


@pytest.mark.parametrize("when", ["before", "between", "until between"])
async def test_a_request_split_anywhere_is_served_by_the_copy(when: str) -> None:
    """In three parts: a part that is held, one that is not, and a part that the copy gets."""
    whole = request(b"/path", b"body")
    header = len(whole) - len(b"body") - 2
    async with connected(demo_app, RawClient) as raw:
        for split in range(len(whole) - 3 if when == "before" else header - 3):
            stream_id = 4 * split
            if when != "between":
                raw.server.admit_requests(Admission.NONE)
            raw.client.write(stream_id, whole[:split])
            await raw.settled()
            if when == "until between":
                raw.server.admit_requests(Admission.ALL)
            else:
                raw.server.admit_requests(Admission.NONE)
            raw.client.write(stream_id, whole[split : split + 3])
            await raw.settled()
            assert raw.server.running_requests() == []
            raw.carry()
            raw.client.write(stream_id, whole[split + 3 :], ends=True)
            while stream_id not in raw.client.ended:
                await raw.settled()
            assert raw.client.bodies[stream_id] == b"body", split
        assert raw.client.resets == {}
        assert raw.client.closed_by is None


@pytest.mark.parametrize("end", ["reset", "stop", "both"])
async def test_a_waiting_request_that_is_cancelled(end: str) -> None:
    """The application hears of it, and of its end, in this order."""
    app = Gates()
    async with connected(app, RawClient) as raw:
        raw.server.admit_requests(Admission.NONE)
        raw.client.write(0, request(b"/never", b"body")[:-1])
        await raw.settled()
        if end != "stop":
            raw.client.connection.reset_stream(0, ErrorCode.H3_REQUEST_CANCELLED)
        if end != "reset":
            raw.client.connection.stop_stream(0, ErrorCode.H3_REQUEST_CANCELLED)
        raw.client.transmit()
        await raw.settled()
        assert app.seen == []
        raw.carry()
        await raw.server.wait_idle()
        raw.client.write(4, request(b"/next", b"body"), ends=True)
        while 4 not in raw.client.ended:
            await raw.settled()
        assert app.seen[-1] == "/next"
        assert app.told == app.seen[:-1]
        assert raw.client.closed_by is None


async def test_a_request_that_is_reset_before_its_header_is_complete() -> None:
    app = Gates()
    async with connected(app, RawClient) as raw:
        raw.client.write(0, request(b"/never", b"")[:5])
        await raw.settled()
        raw.server.admit_requests(Admission.NONE)
        raw.client.connection.reset_stream(0, ErrorCode.H3_REQUEST_CANCELLED)
        raw.client.transmit()
        await raw.settled()
        assert raw.client.resets[0] == [ErrorCode.H3_REQUEST_INCOMPLETE]
        raw.carry()
        assert app.seen == []


async def test_a_request_that_is_cancelled_at_once_does_not_reach_the_application() -> None:
    app = Gates()
    async with connected(app, RawClient) as raw:
        raw.client.write(0, request(b"/cancelled", b"body"))
        raw.client.connection.reset_stream(0, ErrorCode.H3_REQUEST_CANCELLED)
        raw.client.transmit()
        await raw.settled()
        await raw.server.wait_idle()
        raw.client.write(4, request(b"/next", b"body"), ends=True)
        while 4 not in raw.client.ended:
            await raw.settled()
        assert app.seen == ["/next"]


async def test_a_waiting_upload_gets_one_window() -> None:
    produced = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal produced
        for number in range(200):
            produced += 10_000
            yield b"%d" % (number % 10) * 10_000

    async with connected(demo_app, HttpClient, max_stream_data=WINDOW) as http:
        http.server.admit_requests(Admission.NONE)
        upload = await started(http, "POST", "/digest", body=pieces())
        for _ in range(50):
            await http.settled()
        # What the window lets through and what waits for it, but no more
        assert produced <= WINDOW + (256 + 64) * 1024
        http.server.admit_requests(Admission.ALL)
        expected = hashlib.sha256(b"".join([piece async for piece in pieces()])).hexdigest()
        assert (await upload).body.decode() == expected


async def test_a_header_longer_than_the_window_arrives_after_all() -> None:
    """HTTP/3 has to see all of it before there is a request whose body could be paced."""
    fields = [(b"x-%d" % number, b"x" * 50_000) for number in range(5)]
    whole = request(b"/", b"body", *fields)
    assert len(whole) > 2 * WINDOW
    for carried in (False, True):
        app = Gates()
        options = connected(app, RawClient, max_stream_data=WINDOW, max_header_size=1 << 20)
        async with options as raw:
            raw.server.admit_requests(Admission.NONE)
            raw.client.write(0, whole, ends=True)
            for _ in range(20):
                await raw.settled()
            assert app.seen == []
            if carried:
                raw.carry()
            else:
                raw.server.admit_requests(Admission.ALL)
            while 0 not in raw.client.ended:
                await raw.settled()
            assert raw.client.bodies[0] == b"/body"


async def test_too_much_that_waits_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "MOST_WITHHELD", 50_000)
    app = Gates()
    async with connected(app, HttpClient) as http:
        http.server.admit_requests(Admission.NONE)
        first = await started(http, "POST", "/first", body=b"x" * 20_000)
        for size in (40_000, 300_000):
            with pytest.raises(RequestRejected, match="may be sent again") as caught:
                await http.client.request("POST", "/large", body=bytes(size))
            assert caught.value.error_code == ErrorCode.H3_REQUEST_REJECTED
        http.carry()
        assert (await first).body == b"/first" + b"x" * 20_000
        assert (await http.client.request("POST", "/large", body=bytes(400))).status == 200
        assert app.seen == ["/first", "/large"]
        assert http.client.closed_by is None


async def test_a_header_that_is_turned_away_half_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "MOST_WITHHELD", 5000)
    app = Gates()
    async with connected(app, RawClient) as raw:
        raw.server.admit_requests(Admission.NONE)
        raw.client.write(0, request(b"/large", b"", (b"x-long", b"x" * 7000)), ends=True)
        while 0 not in raw.client.resets:
            await raw.settled()
        assert raw.client.resets[0][0] == ErrorCode.H3_REQUEST_REJECTED
        raw.carry()
        raw.client.write(4, request(b"/next", b"body"), ends=True)
        while 4 not in raw.client.ended:
            await raw.settled()
        assert app.seen == ["/next"]


async def test_other_streams_are_not_held_up() -> None:
    """What the client says about itself is heard, and the end of a request that was answered."""
    answers = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await answers.wait()
        await respond(send, b"early")

    async with connected(app, RawClient) as raw:
        raw.client.write(0, request(b"/", b"body that nobody reads")[:-10])
        await raw.settled()
        raw.server.admit_requests(Admission.NONE)
        answers.set()
        await raw.server.wait_idle()
        while set(raw.client.resets.get(0, ())) != {ErrorCode.H3_NO_ERROR}:
            await raw.settled()
        await raw.settled()  # the client resets its part of the stream
        assert raw.server.withheld_events() == []
        control = raw.client.connection.get_next_available_stream_id(is_unidirectional=True)
        raw.client.write(control, b"\0")  # a second control stream
        lost = await raw.client.wait_lost()
        assert lost.error_code == ErrorCode.H3_STREAM_CREATION_ERROR


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH"])
async def test_rejected_requests(method: str) -> None:
    app = Gates()
    async with connected(app, HttpClient) as http:
        running = await started(http, method, "/never")
        http.server.reject_requests()
        await http.server.wait_idle()
        expected = (
            (RequestFailed, ErrorCode.H3_REQUEST_CANCELLED)
            if method.startswith("P") and method != "PUT"
            else (RequestRejected, ErrorCode.H3_REQUEST_REJECTED)
        )
        with pytest.raises(RequestFailed) as caught:
            await running
        assert (type(caught.value), caught.value.error_code) == expected
        http.carry()
        assert (await http.client.request("GET", "/next")).body == b"/next"
        assert app.told == ["/never"]


@pytest.mark.parametrize(
    ("method", "code"),
    [(b"GET", ErrorCode.H3_REQUEST_REJECTED), (b"POST", ErrorCode.H3_REQUEST_CANCELLED)],
)
async def test_rejected_in_both_directions_on_the_wire(method: bytes, code: int) -> None:
    app = Gates()
    async with connected(app, RawClient) as raw:
        fields = [
            (b":method", method),
            (b":scheme", b"https"),
            (b":authority", b"localhost"),
            (b":path", b"/never"),
        ]
        raw.client.http.send_headers(0, fields)
        raw.client.transmit()
        await raw.settled()
        raw.server.reject_requests()
        await raw.settled()
        assert raw.client.resets == {0: [code, code]}


async def test_a_running_request_is_not_carried() -> None:
    app = Gates()
    async with connected(app, HttpClient) as http:
        running = await started(http, "GET", "/slow")
        with pytest.raises(SnapshotError, match=r"GET /slow \(stream 0 .* is running"):
            http.server.export_state()
        http.server.admit_requests(Admission.NONE)
        waiting = await started(http, "GET", "/waiting")
        app.open.set()
        await running
        with pytest.raises(SnapshotError, match="put their events back"):
            http.server.export_state()
        http.server.admit_requests(Admission.ALL)
        assert (await waiting).body == b"/waiting"


async def test_a_lost_connection_is_idle() -> None:
    app = Gates()
    async with connected(app, HttpClient) as http:
        running = await started(http, "GET", "/never")
        idle = asyncio.create_task(http.server.wait_idle())
        http.server.close(reason_phrase="over")
        await idle
        await asyncio.gather(running, return_exceptions=True)


async def test_requests_are_held_from_the_handshake_on() -> None:
    app = Gates()
    async with connected(app, HttpClient, held=True) as http:
        waiting = await started(http, "GET", "/waiting")
        assert app.seen == []
        http.server.admit_requests(Admission.ALL)
        assert (await waiting).body == b"/waiting"


def test_what_a_client_sends_is_shown_with_care() -> None:
    running = RunningRequest("1f", 8, "GET", "/\x1b[31m" + "x" * 500)
    assert str(running) == f"GET /?[31m{'x' * 90}… (stream 8 of connection 1f)"
