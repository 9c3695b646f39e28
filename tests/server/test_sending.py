"""What applications do with `send` and `receive` that servers have been known to get wrong."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from aioquic.h3.connection import ErrorCode, H3Connection
from aioquic.h3.events import H3Event, HeadersReceived
from aioquic.quic.events import QuicEvent
from loopback import body_of, http_client, respond, served, server_side

from quicferry import ConnectionProtocol
from quicferry.client import RequestFailed

LARGE = 300_000
"""Bytes of a message that is more than what may wait to be sent."""


async def begin(send: Any, *headers: tuple[bytes, bytes], status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def body(send: Any, content: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": more})


async def test_tasks_that_send_at_the_same_time_take_turns() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"

        async def part(letter: bytes) -> None:
            for _ in range(5):
                await body(send, letter * LARGE)

        await begin(send)
        await asyncio.gather(*map(part, (b"a", b"b", b"c")))
        await body(send, b"", more=False)

    async with served(app) as server, http_client(server) as client:
        content = (await client.request("GET", "/")).body
    runs = [len(list(run)) for _, run in itertools.groupby(content)]
    assert sum(runs) == 15 * LARGE
    assert [length % LARGE for length in runs] == [0] * len(runs)


async def test_waiting_tasks_are_told_when_the_client_is_gone() -> None:
    told: list[str] = []
    all_told = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"

        async def part(letter: str) -> None:
            try:
                while True:
                    await body(send, letter.encode() * LARGE)
            except OSError:
                told.append(letter)

        await begin(send)
        await asyncio.gather(*map(part, "abc"))
        all_told.set()

    async with served(app) as server, http_client(server) as client:
        async with client.stream("GET", "/") as response:
            assert response.status == 200
        await all_told.wait()
        assert sorted(told) == ["a", "b", "c"]


async def test_message_that_is_cut_off_cannot_be_taken_for_whole() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        begun = asyncio.Event()

        async def send_much() -> None:
            begun.set()
            await body(send, b"x" * 10 * LARGE)

        await begin(send)
        sending = asyncio.create_task(send_much())
        await begun.wait()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await body(send, b"", more=False)

    async with served(app) as server, http_client(server) as client:
        with pytest.raises(RequestFailed) as caught:
            await client.request("GET", "/")
        assert caught.value.error_code == ErrorCode.H3_INTERNAL_ERROR
        assert client.closed_by is None


@pytest.mark.parametrize("status", [100, 103, 99])
async def test_response_needs_a_final_status(status: int, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await begin(send, status=status)
        await body(send, b"", more=False)

    async with served(app) as server, http_client(server) as client:
        assert (await client.request("GET", "/")).status == 500
    assert f"not {status}" in caplog.text


async def test_date_is_added_once() -> None:
    date = b"Thu, 01 Jan 1970 00:00:00 GMT"

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await begin(send, *([(b"Date", date)] if scope["path"] == "/own" else []))
        await body(send, b"", more=False)

    async with served(app) as server, http_client(server) as client:
        for path in ("/own", "/"):
            response = await client.request("GET", path)
            dates = [value for name, value in response.headers if name == "date"]
            assert len(dates) == 1
            assert (dates[0].encode() == date) is (path == "/own")


class Interim(ConnectionProtocol):
    """A client that shows every header of a response, the interim ones too."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)
        self.received: asyncio.Queue[H3Event] = asyncio.Queue()

    def quic_event_received(self, event: QuicEvent) -> None:
        for received in self.http.handle_event(event):
            self.received.put_nowait(received)

    def post(self, *fields: tuple[bytes, bytes]) -> int:
        """Send the header of a request, and leave its body for later."""
        stream_id = self._quic.get_next_available_stream_id()
        head = {b":method": b"POST", b":scheme": b"https", b":authority": b"x", b":path": b"/"}
        self.http.send_headers(stream_id, [*head.items(), *fields])
        self.transmit()
        return stream_id

    def send_body(self, stream_id: int, content: bytes) -> None:
        self.http.send_data(stream_id, content, end_stream=True)
        self.transmit()

    async def status(self) -> bytes:
        """Return the status of the next header."""
        event = await self.received.get()
        while not isinstance(event, HeadersReceived):
            event = await self.received.get()
        return dict(event.headers)[b":status"]


EXPECTATION = (b"expect", b"100-Continue")


async def test_client_that_waits_is_asked_for_the_body_when_it_is_read() -> None:
    read = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await read.wait()
        await respond(send, b"".join([chunk async for chunk in body_of(receive)]))

    async with served(app) as server, http_client(server, create_protocol=Interim) as client:
        assert isinstance(client, Interim)
        stream_id = client.post(EXPECTATION)
        await client.ping()
        assert client.received.empty()
        read.set()
        assert await client.status() == b"100"
        client.send_body(stream_id, b"here it is")
        assert await client.status() == b"200"


async def test_no_body_is_asked_for_that_is_not_read_or_not_held_back() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        if (b"x-refuse", b"1") in scope["headers"]:
            await respond(send, b"no")
            return
        await respond(send, b"".join([chunk async for chunk in body_of(receive)]))

    async with served(app) as server, http_client(server, create_protocol=Interim) as client:
        assert isinstance(client, Interim)
        client.post(EXPECTATION, (b"x-refuse", b"1"))
        assert await client.status() == b"200"
        client.send_body(client.post(EXPECTATION), b"sent at once")
        assert await client.status() == b"200"


async def test_cancelled_requests_leave_nothing_behind() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await begin(send)
        await body(send, b"more follows")
        while (await receive())["type"] != "http.disconnect":
            pass

    async with served(app) as server, http_client(server) as client:
        protocol = await server_side(server, client)
        for _ in range(20):
            async with client.stream("POST", "/", body=b"x") as response:
                assert response.status == 200
        await protocol.wait_idle()  # type: ignore[attr-defined]  # served over HTTP/3
        bridge = protocol._bridge  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        assert not bridge.streams


async def test_every_receive_after_a_disconnect_is_told_of_it() -> None:
    told: list[str] = []
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"

        async def watch() -> None:
            for _ in range(2):
                while (message := await receive())["type"] == "http.request":
                    pass
                told.append(message["type"])

        await begin(send)
        await body(send, b"more follows")
        await asyncio.gather(watch(), watch())
        ended.set()

    async with served(app) as server, http_client(server) as client:
        async with client.stream("GET", "/") as response:
            assert response.status == 200
        await ended.wait()
    assert told == ["http.disconnect"] * 4
