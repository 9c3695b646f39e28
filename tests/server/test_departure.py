"""A server before its connections leave it: who is waited for, who waits, who is told."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress
from typing import Any

import pytest
from loopback import (
    Filter,
    body_of,
    client_configuration,
    http_client,
    respond,
    served,
    server_configuration,
    server_side,
)

from quicferry import HttpClient
from quicferry.client import RequestFailed
from quicferry.io import ConnectionProtocol
from quicferry.protocol import MigrationProtocol
from quicferry.server import RelocationError, RelocationErrorCode


class Doors:
    """An application whose answer to each path waits until that is opened.

    Attributes:
        entered: The paths in the order in which their calls began; `told` those of which it heard
            that the client is gone, `cancelled` those that were cancelled.
        stubborn: Whether a call goes on although it was cancelled.
    """

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.told: list[str] = []
        self.cancelled: list[str] = []
        self.stubborn = False
        self._doors: dict[str, asyncio.Event] = {}
        self._changed = asyncio.Condition()

    def open(self, path: str) -> None:
        self._doors.setdefault(path, asyncio.Event()).set()

    async def until_entered(self, path: str) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: path in self.entered)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError("it has no lifespan")
        path = scope["path"]
        async with self._changed:
            self.entered.append(path)
            self._changed.notify_all()
        door = self._doors.setdefault(path, asyncio.Event())
        try:
            if path.startswith("/listening"):
                while (await receive())["type"] != "http.disconnect":
                    pass
                self.told.append(path)
                return
            await door.wait()
        except asyncio.CancelledError:
            self.cancelled.append(path)
            if not self.stubborn:
                raise
            await door.wait()
        body = b"".join([chunk async for chunk in body_of(receive)])
        await respond(send, path.encode() + body)


async def begun(app: Doors, client: HttpClient, path: str) -> asyncio.Task[Any]:
    """Send a request, and wait until the application has it."""
    task = asyncio.create_task(client.request("GET", path))
    await app.until_entered(path)
    return task


async def test_what_a_server_offers() -> None:
    async with served(configuration=server_configuration(None)) as server:
        assert server.departure().negotiable == MigrationProtocol(0)
    async with served(create_protocol=ConnectionProtocol) as server:
        departure = server.departure()
        assert not departure.has_state
        assert await departure.export() is None


async def test_first_what_is_complete_is_served_then_nothing_new() -> None:
    """While the first runs; and then, while those run that were served meanwhile."""
    app = Doors()
    async with served(app) as server, http_client(server) as client:
        first = await begun(app, client, "/first")
        await server.imminent(MigrationProtocol.SYMMETRIC)
        draining = asyncio.create_task(server.departure().drain(60))
        second = await begun(app, client, "/second")
        app.open("/first")
        await first
        third = asyncio.create_task(client.request("GET", "/third"))
        await client.ping()
        assert not draining.done()
        assert app.entered == ["/first", "/second"]
        app.open("/second")
        await draining
        await second
        assert app.entered == ["/first", "/second"]
        app.open("/third")
        server.departure().call_off()
        assert (await third).body == b"/third"


async def test_an_upload_that_is_not_complete_waits() -> None:
    app = Doors()
    complete = asyncio.Event()

    async def upload() -> Any:
        yield b"begin"
        await complete.wait()
        yield b"end"

    async with served(app) as server, http_client(server) as client:
        first = await begun(app, client, "/first")
        await server.imminent(MigrationProtocol.SYMMETRIC)
        departure = server.departure()
        draining = asyncio.create_task(departure.drain(60))
        await asyncio.sleep(0)
        app.open("/upload")
        sending = asyncio.create_task(client.request("POST", "/upload", body=upload()))
        await client.ping()
        await client.ping()
        assert app.entered == ["/first"]
        app.open("/first")
        await first
        await draining
        complete.set()
        departure.call_off()
        assert (await sending).body == b"/uploadbeginend"


async def test_after_a_time_that_was_too_short_new_ones_wait_all_the_same() -> None:
    app = Doors()
    async with served(app) as server, http_client(server) as client:
        first = await begun(app, client, "/first")
        await server.imminent(MigrationProtocol.SYMMETRIC)
        departure = server.departure()
        with pytest.raises(RelocationError, match=r"GET /first .*give them more time"):
            await departure.drain(0.01)
        app.open("/second")
        second = asyncio.create_task(client.request("GET", "/second"))
        await client.ping()
        assert app.entered == ["/first"]
        departure.call_off()
        await second
        app.open("/first")
        await first


async def test_calls_are_told_of_the_end_before_they_are_cancelled() -> None:
    app = Doors()
    async with served(app) as server, http_client(server) as client:
        listening = await begun(app, client, "/listening")
        deaf = await begun(app, client, "/deaf")
        rejected = await server.departure().reject_requests()
        assert [request.path for request in rejected] == ["/listening", "/deaf"]
        assert (app.told, app.cancelled) == (["/listening"], ["/deaf"])
        for task in (listening, deaf):
            with pytest.raises(RequestFailed):
                await task


async def test_a_call_that_does_not_end_is_named() -> None:
    app = Doors()
    app.stubborn = True
    async with served(app) as server, http_client(server) as client:
        task = await begun(app, client, "/deaf")
        with pytest.raises(RelocationError, match=r"GET /deaf .*although") as caught:
            await server.departure().reject_requests()
        assert caught.value.code is RelocationErrorCode.REQUESTS_RUNNING
        assert app.cancelled == ["/deaf"]
        app.open("/deaf")
        with suppress(RequestFailed):
            await task


@pytest.mark.parametrize(("running", "more"), [(10, ""), (11, " and 1 more")])
async def test_ten_are_named_and_the_others_counted(running: int, more: str) -> None:
    app = Doors()
    async with served(app) as server, http_client(server) as client:
        tasks = [await begun(app, client, f"/{number}") for number in range(running)]
        with pytest.raises(RelocationError) as caught:
            await server.departure().drain(0.01)
        assert str(caught.value).count("GET /") == 10
        assert f"){more}; give them" in str(caught.value)
        for number in range(running):
            app.open(f"/{number}")
        await asyncio.gather(*tasks)


async def test_what_has_come_in_the_freeze_is_taken_in_when_it_is_over() -> None:
    """The client sends nothing again: it might have been its last word."""
    app = Doors()
    link = Filter()
    async with served(app) as server, http_client(server, wrap_transport=link) as client:
        await server_side(server, client)
        await server.imminent(MigrationProtocol.SYMMETRIC)
        departure = server.departure()
        await departure.drain(5)
        assert len(list(departure.freeze())) == 1
        request = asyncio.create_task(client.request("GET", "/late"))
        for _ in range(10_000):
            if list(departure.show_held()):
                break
            await asyncio.sleep(0)
        assert list(departure.show_held())
        link.cut()
        departure.resume()
        await app.until_entered("/late")
        link.mend()
        app.open("/late")
        assert (await request).body == b"/late"


async def test_what_cannot_be_frozen_is_named_and_the_rest_goes_on() -> None:
    """Here it is too early: the client has not been heard of since the last attempt."""
    app = Doors()
    async with served(app) as server, http_client(server) as client:
        name = (await server_side(server, client)).connection.stable_id
        await server.imminent(MigrationProtocol.SYMMETRIC)
        departure = server.departure()
        assert len(list(departure.freeze())) == 1
        departure.resume()
        await server.imminent(MigrationProtocol.SYMMETRIC)
        with pytest.raises(RelocationError, match=f"{name}.*round trip") as caught:
            list(departure.freeze())
        assert caught.value.code is RelocationErrorCode.CANNOT_FREEZE
        departure.resume()
        app.open("/next")
        assert (await client.request("GET", "/next")).body == b"/next"


async def test_of_dropped_connections_nothing_is_left_and_others_are_served() -> None:
    app = Doors()
    plain = client_configuration(None)
    async with (
        served(app) as server,
        http_client(server) as client,
        http_client(server, configuration=plain) as staying,
    ):
        dropped = await server_side(server, client)
        await server_side(server, staying)
        await server.imminent(MigrationProtocol.SYMMETRIC)
        departure = server.departure()
        await departure.drain(5)
        app.open("/waiting")
        waiting = asyncio.create_task(staying.request("GET", "/waiting"))
        await staying.ping()
        assert not app.entered
        assert len(list(departure.freeze())) == 1
        assert departure.drop() == (dropped.connection.stable_id,)
        assert (await waiting).body == b"/waiting"
        assert dropped not in server.connections.values()
        assert "not settled in time" in (await dropped.wait_lost()).reason
        assert dropped.connection.datagrams_to_send(0) == []
        left = weakref.ref(dropped)
        del dropped
        await asyncio.sleep(0)
        gc.collect()
        assert left() is None, "it is kept for as long as the server lives"
