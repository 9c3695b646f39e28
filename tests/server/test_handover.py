"""A server hands its connections over to another one, step by step, in one process."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from loopback import (
    at,
    client_configuration,
    free_port,
    http_client,
    next_event,
    pattern_digest,
    respond,
    served,
    server_configuration,
    server_side,
    stock_configuration,
)

import quicferry
from quicferry import ClientMigration, Policy, Server
from quicferry.io import ConnectionLost
from quicferry.protocol import (
    MigrationAddress,
    MigrationCompleted,
    MigrationProtocol,
    ServerMigration,
)
from quicferry.server import (
    Arrival,
    Departure,
    Phase,
    RelocationError,
    RelocationErrorCode,
)
from quicferry.server.asgi import AsgiProtocol
from quicferry.transport import NetworkAddress

SOURCE, DESTINATION = "127.0.0.1", "127.0.0.2"


@asynccontextmanager
async def two_servers(
    app: Any = None, **arguments: Any
) -> AsyncIterator[tuple[Server, Server, Arrival]]:
    """Provide a server, and one at another address that waits for its connections."""
    port = free_port(SOURCE, DESTINATION)
    pool = tuple(MigrationAddress.of(at(host, port)) for host in (DESTINATION, SOURCE))
    configuration = server_configuration(ServerMigration(pool=pool))
    async with (
        served(app, port=port, host=SOURCE, configuration=configuration, **arguments) as source,
        served(app, port=port, host=DESTINATION, configuration=configuration) as destination,
    ):
        yield source, destination, destination.arrival()


async def hand_over(
    source: Server,
    destination: Server,
    arrival: Arrival,
    protocol: MigrationProtocol | None = None,
) -> Departure:
    """Do a handover without a network between the two."""
    await announce(source, destination, protocol)
    departure = source.departure()
    await departure.drain(5)
    for frozen in departure.freeze():
        arrival.thaw(frozen)
    await arrival.import_state(await departure.export())
    arrival.switch()
    arrival.activate()
    departure.depart(arrival.deliver)
    arrival.commit()
    return departure


def hand_over_what_is_drained(departure: Departure, arrival: Arrival) -> None:
    for frozen in departure.freeze():
        arrival.thaw(frozen)
    arrival.switch()
    arrival.activate()
    departure.depart(arrival.deliver)
    arrival.commit()


async def announce(
    source: Server, destination: Server, protocol: MigrationProtocol | None = None
) -> None:
    explicit = protocol in (None, MigrationProtocol.EXPLICIT)
    await source.imminent(protocol, destination.address if explicit else None)


@pytest.mark.parametrize("protocol", list(MigrationProtocol), ids=lambda each: each.name)
@pytest.mark.parametrize("policy", list(Policy), ids=lambda each: each.name)
async def test_clients_go_on_at_the_destination(
    protocol: MigrationProtocol, policy: Policy
) -> None:
    migration = ClientMigration(protocols=protocol, policy=policy)
    async with (
        two_servers() as (source, destination, arrival),
        http_client(source, configuration=client_configuration(migration)) as client,
    ):
        await server_side(source, client)
        await hand_over(source, destination, arrival, protocol)
        completed = next_event(client, MigrationCompleted)
        response = await client.request("POST", "/echo", body=b"after")
        await completed
        assert response.body == b"after"
        assert client.server_address == destination.address
        assert (await destination.wait_completed(10)).is_complete
        assert source.phase is Phase.DEPARTED
        assert not source.connections
        assert len(destination.connections) == 1


async def test_a_connection_goes_there_and_back_again() -> None:
    async with two_servers() as (source, destination, arrival), http_client(source) as client:
        await server_side(source, client)
        port = source.address.port
        await hand_over(source, destination, arrival)
        assert (await client.request("POST", "/echo", body=b"there")).body == b"there"
        await destination.wait_completed(10)
        await source.close()
        async with served(port=port, host=SOURCE) as home:
            await hand_over(destination, home, home.arrival())
            assert (await client.request("POST", "/echo", body=b"back")).body == b"back"
            assert client.server_address == home.address


class SlowApp:
    """Answers with the server's host and the path; /slow only when it may."""

    def __init__(self) -> None:
        self.is_running, self.may_end = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            self.is_running.set()
            await self.may_end.wait()
        await respond(send, f"{scope['server'][0]}{scope['path']}".encode())


async def test_a_request_that_arrives_meanwhile_is_answered_at_the_destination() -> None:
    app = SlowApp()
    async with two_servers(app) as (source, destination, arrival), http_client(source) as client:
        slow = asyncio.create_task(client.request("GET", "/slow"))
        await app.is_running.wait()
        await announce(source, destination)
        departure = source.departure()
        with pytest.raises(RelocationError, match="GET /slow") as caught:
            await departure.drain(0)
        assert caught.value.code is RelocationErrorCode.REQUESTS_RUNNING
        app.may_end.set()
        await departure.drain(5)
        assert (await slow).body == b"127.0.0.1/slow"
        held = asyncio.create_task(client.request("GET", "/held"))
        await client.ping()
        assert not held.done()
        hand_over_what_is_drained(departure, arrival)
        assert (await held).body == b"127.0.0.2/held"


async def test_while_a_request_comes_to_its_end_others_are_served() -> None:
    app = SlowApp()
    async with two_servers(app) as (source, destination, arrival), http_client(source) as client:
        slow = asyncio.create_task(client.request("GET", "/slow"))
        await app.is_running.wait()
        await announce(source, destination)
        departure = source.departure()
        draining = asyncio.create_task(departure.drain(20))
        assert (await client.request("GET", "/quick")).body == b"127.0.0.1/quick"
        assert not draining.done()
        app.may_end.set()
        await draining
        assert (await slow).body == b"127.0.0.1/slow"
        hand_over_what_is_drained(departure, arrival)
        assert (await client.request("GET", "/next")).body == b"127.0.0.2/next"


class Thorough:
    """Does something after its response, or after its client is gone, and knows what it has done.

    Attributes:
        is_working: Set when the work that nobody waits for has begun.
        may_end: Lets it come to its end.
        done: The paths for which it did it.
        stubborn: Whether it goes on although it is cancelled.
    """

    def __init__(self) -> None:
        self.is_working, self.may_end = asyncio.Event(), asyncio.Event()
        self.done: list[str] = []
        self.stubborn = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            scope["state"] |= {"quicferry.export": self._export, "quicferry.import": self._import}
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        if scope["path"] == "/answered":
            await respond(send, b"answer")
        else:
            while (await receive())["type"] != "http.disconnect":
                pass
        self.is_working.set()
        while not self.may_end.is_set():
            try:
                await self.may_end.wait()
            except asyncio.CancelledError:
                if not self.stubborn:
                    raise
        self.done.append(scope["path"])

    async def _export(self) -> bytes:
        return " ".join(self.done).encode()

    async def _import(self, data: bytes) -> None:
        self.done = data.decode().split()


@asynccontextmanager
async def working(way: str) -> AsyncIterator[tuple[Thorough, Server, Server, Arrival]]:
    """Provide two servers, where at the first one a call works on that nobody waits for."""
    app = Thorough()
    async with two_servers(app) as (source, destination, arrival), http_client(source) as client:
        if way == "answered":
            assert (await client.request("GET", "/answered")).body == b"answer"
        elif way == "cancelled":
            request = asyncio.create_task(client.request("GET", "/cancelled"))
            while not any(each.running_requests() for each in asgi(source)):
                await client.ping()
            request.cancel()
        else:
            async with http_client(source) as leaving:
                request = asyncio.create_task(leaving.request("GET", "/gone"))
                while not any(each.running_requests() for each in asgi(source)):
                    await client.ping()
            with pytest.raises(ConnectionLost):
                await request
        await app.is_working.wait()
        await announce(source, destination)
        yield app, source, destination, arrival


def asgi(server: Server) -> list[AsgiProtocol]:
    return [each for each in server.connections.values() if isinstance(each, AsgiProtocol)]


UNANSWERED = pytest.mark.parametrize("way", ["cancelled", "gone", "answered"])


@UNANSWERED
async def test_calls_that_nobody_waits_for_end_before_the_state_is_exported(way: str) -> None:
    async with working(way) as (app, source, _, arrival):
        departure = source.departure()
        with pytest.raises(RelocationError, match=f"still running: GET /{way} ") as caught:
            await departure.drain(0)
        assert caught.value.code is RelocationErrorCode.REQUESTS_RUNNING
        assert [each.path for each in departure.running_requests()] == [f"/{way}"]
        draining = asyncio.create_task(departure.drain(20))
        await asyncio.sleep(0)
        app.may_end.set()
        await draining
        assert await departure.export() == f"/{way}".encode()
        hand_over_what_is_drained(departure, arrival)


@UNANSWERED
async def test_calls_that_nobody_waits_for_are_cancelled_if_requests_are_reset(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quicferry.server.departure.TIME_TO_END", 0.1)
    async with working(way) as (app, source, _, arrival):
        departure = source.departure()
        app.stubborn = True
        with pytest.raises(RelocationError, match="although they were cancelled") as caught:
            await departure.reject_requests()
        assert caught.value.code is RelocationErrorCode.REQUESTS_RUNNING
        app.stubborn = False
        rejected = await departure.reject_requests()
        assert [each.path for each in rejected] == [f"/{way}"]
        assert departure.running_requests() == ()
        assert await departure.export() == b""
        hand_over_what_is_drained(departure, arrival)


async def test_a_download_whose_bytes_are_under_way_goes_on() -> None:
    size = 200_000
    async with two_servers() as (source, destination, arrival), http_client(source) as client:
        await server_side(source, client)
        async with client.stream("GET", f"/bytes/{size}") as response:
            chunks = aiter(response)
            first = await anext(chunks)
            await hand_over(source, destination, arrival)
            rest = [chunk async for chunk in chunks]
        assert hashlib.sha256(first + b"".join(rest)).hexdigest() == pattern_digest(size)


async def test_after_a_rollback_the_source_serves_as_before() -> None:
    async with two_servers() as (source, destination, arrival), http_client(source) as client:
        await server_side(source, client)
        await announce(source, destination)
        departure = source.departure()
        await departure.drain(5)
        held = asyncio.create_task(client.request("POST", "/echo", body=b"held"))
        await client.ping()
        frozen = list(departure.freeze())
        for each in frozen:
            arrival.thaw(each)
        arrival.discard()
        departure.resume()
        assert (await held).body == b"held"
        assert client.server_address == source.address
        assert source.phase is Phase.SERVING
        async with http_client(source) as another:
            assert (await another.request("POST", "/echo", body=b"new")).body == b"new"


async def test_nothing_leaves_the_source_while_it_is_frozen() -> None:
    heard: list[bytes] = []
    async with two_servers() as (source, destination, _):
        filter_ = _Recorder(heard)
        async with http_client(source, wrap_transport=filter_) as client:
            await server_side(source, client)
            await announce(source, destination)
            departure = source.departure()
            frozen = list(departure.freeze())
            assert len(frozen) == 1
            heard.clear()
            request = asyncio.create_task(client.request("POST", "/echo", body=b"x"))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(request), 0.3)
            assert not heard
            departure.resume()
            assert (await request).body == b"x"


class _Recorder:
    def __init__(self, heard: list[bytes]) -> None:
        self._heard = heard

    def __call__(self, inner: Any) -> Any:
        self._inner = inner
        return self

    def send(self, data: bytes, addr: NetworkAddress) -> None:
        self._inner.send(data, addr)

    def deliver(self, data: bytes, addr: NetworkAddress) -> None:
        self._heard.append(data)
        self._inner.deliver(data, addr)


async def test_clients_that_cannot_migrate_are_served_until_the_end() -> None:
    async with (
        two_servers() as (source, destination, arrival),
        http_client(source) as client,
        http_client(source, configuration=stock_configuration()) as plain,
    ):
        await server_side(source, client)
        await server_side(source, plain)
        await announce(source, destination)
        departure = source.departure()
        for frozen in departure.freeze():
            arrival.thaw(frozen)
        assert (await plain.request("POST", "/echo", body=b"still")).body == b"still"
        arrival.switch()
        arrival.activate()
        assert len(departure.depart(arrival.deliver)) == 1
        arrival.commit()
        lost = await plain.wait_lost()
        assert lost.reason == "server migrated"
        assert (await client.request("POST", "/echo", body=b"on")).body == b"on"


async def test_a_destination_that_waits_refuses_clients_until_it_owns_the_connections() -> None:
    async with two_servers() as (source, destination, arrival), http_client(source) as client:
        await server_side(source, client)
        with pytest.raises(quicferry.ConnectFailed):
            async with http_client(destination):
                pass
        await hand_over(source, destination, arrival)
        async with http_client(destination) as another:
            assert (await another.request("POST", "/echo", body=b"new")).body == b"new"
        with pytest.raises(quicferry.ConnectFailed):
            async with http_client(source):
                pass


async def test_a_connection_does_not_come_twice() -> None:
    async with two_servers() as (source, destination, arrival), http_client(source) as client:
        await server_side(source, client)
        await announce(source, destination)
        departure = source.departure()
        (frozen,) = departure.freeze()
        arrival.thaw(frozen)
        with pytest.raises(RelocationError, match="already"):
            arrival.thaw(frozen)
        departure.resume()


async def test_what_is_given_up_stays_silent_and_the_server_goes_on() -> None:
    async with two_servers() as (source, destination, _), http_client(source) as client:
        protocol = await server_side(source, client)
        await announce(source, destination)
        departure = source.departure()
        list(departure.freeze())
        assert departure.drop() == (protocol.connection.stable_id,)
        assert source.phase is Phase.SERVING
        assert not source.connections
        async with http_client(source) as another:
            assert (await another.request("POST", "/echo", body=b"new")).body == b"new"


@pytest.mark.parametrize("step", ["switch", "abort", "imminent"])
async def test_commands_wait_for_the_end_of_a_handover(step: str) -> None:
    async with two_servers() as (source, destination, _), http_client(source) as client:
        await server_side(source, client)
        await announce(source, destination)
        departure = source.departure()
        list(departure.freeze())
        commands: dict[str, Coroutine[Any, Any, Any]] = {
            "switch": source.switch(destination.address),
            "abort": source.abort(),
            "imminent": source.imminent(None, destination.address),
        }
        with pytest.raises(RelocationError) as caught:
            await commands.pop(step)
        for other in commands.values():
            other.close()
        assert caught.value.code.name in ("BEING_HANDED_OVER", "MIGRATION_ALREADY_IN_PROGRESS")
        departure.resume()
        assert (await client.request("POST", "/echo", body=b"on")).body == b"on"
