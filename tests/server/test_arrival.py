"""A server to which connections come: nothing that was on its way is lost, not even a last word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from loopback import Filter, at, free_port, http_client, respond, served, server_side

from quicferry import HttpClient, Server
from quicferry.protocol import MigrationProtocol
from quicferry.server import Arrival, Departure

SOURCE, DESTINATION = "127.0.0.1", "127.0.0.2"


class Noted:
    """An application that tells which requests have come, and where.

    Attributes:
        came: Set at the next one.
        requests: Host and path of each.
    """

    def __init__(self) -> None:
        self.came = asyncio.Event()
        self.requests: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise ValueError("it has no lifespan")
        where = f"{scope['server'][0]}{scope['path']}"
        self.requests.append(where)
        self.came.set()
        await respond(send, where.encode())


@asynccontextmanager
async def frozen(
    app: Noted, link: Filter
) -> AsyncIterator[tuple[Server, Departure, Arrival, HttpClient]]:
    """Provide a destination whose copy is switched and silent, and the frozen source."""
    port = free_port(SOURCE, DESTINATION)
    async with (
        served(app, port=port, host=SOURCE) as source,
        served(app, port=port, host=DESTINATION) as destination,
        http_client(source, wrap_transport=link) as client,
    ):
        arrival = destination.arrival()
        await server_side(source, client)
        await source.imminent(MigrationProtocol.EXPLICIT, at(DESTINATION, port))
        departure = source.departure()
        await departure.drain(5)
        (connection,) = departure.freeze()
        arrival.thaw(connection)
        arrival.switch()
        yield destination, departure, arrival, client


async def say_at_last(client: HttpClient, departure: Departure, link: Filter) -> asyncio.Task[Any]:
    """Let a request arrive at the frozen source, and nothing after it."""
    request = asyncio.create_task(client.request("GET", "/last"))
    for _ in range(10_000):
        if list(departure.show_held()):
            break
        await asyncio.sleep(0)
    assert list(departure.show_held())
    link.cut()
    return request


@pytest.mark.parametrize("is_ahead", [True, False], ids=["before-it-lives", "when-it-lives"])
async def test_what_the_source_got_in_the_freeze(is_ahead: bool) -> None:
    app, link = Noted(), Filter()
    async with frozen(app, link) as (_, departure, arrival, client):
        request = await say_at_last(client, departure, link)
        if is_ahead:
            for data, address in list(departure.show_held()):
                arrival.deliver(data, address)
            assert not app.requests, "the copy is silent still"
            arrival.activate()
        else:
            arrival.activate()
            departure.depart(arrival.deliver)
        await app.came.wait()
        assert app.requests == [f"{DESTINATION}/last"]
        if is_ahead:
            departure.depart(arrival.deliver)
        arrival.commit()
        link.mend()
        assert (await request).body == f"{DESTINATION}/last".encode()


async def test_what_is_discarded_is_not_there_any_more() -> None:
    """The source goes on, and another attempt may bring the same connection."""
    app, link = Noted(), Filter()
    async with frozen(app, link) as (destination, departure, arrival, client):
        assert len(destination.connections) == 1
        arrival.discard()
        assert not destination.connections
        departure.resume()
        assert (await client.request("GET", "/on")).body == f"{SOURCE}/on".encode()
