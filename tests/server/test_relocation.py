from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from aioquic.asyncio.client import connect as stock_connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import ErrorCode, H3Connection
from aioquic.h3.events import DataReceived
from aioquic.quic.events import ConnectionTerminated, QuicEvent
from aioquic.quic.packet import QuicErrorCode
from loopback import (
    Filter,
    at,
    client_configuration,
    free_port,
    http_client,
    next_event,
    pattern,
    pattern_digest,
    served,
    server_configuration,
    server_side,
    stock_configuration,
)

from quicferry import (
    Address,
    ClientMigration,
    ConnectFailed,
    ConnectionLost,
    HttpClient,
    MigrationAddress,
    MigrationProtocol,
    Policy,
    RelocationError,
    Scheduler,
    Server,
    ServerMigration,
    Unready,
)
from quicferry.io import UdpSocket
from quicferry.protocol import MigrationCompleted, MigrationReady, ServerMigrationReceived
from quicferry.server import ConfigurationError, Phase, PhaseChanged

HOSTS = ("127.0.0.1", "127.0.0.2", "127.0.0.3")
EXPLICIT = MigrationProtocol.EXPLICIT
POOL = MigrationProtocol.POOL_OF_ADDRESSES
SYMMETRIC = MigrationProtocol.SYMMETRIC
SYNCHRONIZED = MigrationProtocol.SYNCHRONIZED_SYMMETRIC
SIZE = 1_000_000


def pool(port: int, *hosts: str) -> ServerMigration:
    return ServerMigration(pool=tuple(MigrationAddress.of(at(host, port)) for host in hosts))


def only(protocols: MigrationProtocol, **options: Any) -> dict[str, Any]:
    """Return the arguments of a client that supports only these protocols."""
    return {"configuration": client_configuration(ClientMigration(protocols, **options))}


async def load(client: HttpClient, until: asyncio.Event) -> int:
    """Send requests one after another and check each answer; return how many it were."""
    count = 0
    while not until.is_set():
        body = b"request %d " % count * 50
        assert (await client.request("POST", "/", body=body)).body == body
        count += 1
    return count


async def download(client: HttpClient) -> str:
    digest = hashlib.sha256()
    async with client.stream("GET", f"/bytes/{SIZE}") as response:
        async for chunk in response:
            digest.update(chunk)
    return digest.hexdigest()


@asynccontextmanager
async def under_load(*clients: HttpClient) -> AsyncIterator[None]:
    """Keep clients busy, and check afterwards that they got everything they asked for."""
    until = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        loads = [group.create_task(load(client, until)) for client in clients]
        downloads = [group.create_task(download(client)) for client in clients]
        try:
            yield
            for client in clients:  # and they go on afterwards
                assert (await client.request("POST", "/", body=b"on")).body == b"on"
        finally:
            until.set()
    assert all(task.result() for task in loads)
    assert {task.result() for task in downloads} == {pattern_digest(SIZE)}


async def relocate(
    server: Server,
    destination: Address,
    protocol: MigrationProtocol | None = None,
    address: Address | None = None,
) -> None:
    """Move a server, and check that every client follows."""
    source = server.address
    preparation = await server.imminent(protocol, address)
    assert preparation.is_ready
    assert not preparation.unready
    relocation = await server.switch(destination)
    assert (relocation.source, relocation.destination) == (source, destination)
    completion = await server.wait_completed(10)
    assert completion.is_complete
    assert sorted(completion.completed) == sorted(relocation.told)
    assert server.address == destination
    assert server.phase is Phase.SERVING


PROTOCOLS = [EXPLICIT, POOL, SYMMETRIC, SYNCHRONIZED]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
async def test_there_and_back_under_load(protocol: MigrationProtocol) -> None:
    port = free_port(*HOSTS)
    migration = pool(port, *HOSTS) if protocol is POOL else ServerMigration()
    async with (
        served(port=port, configuration=server_configuration(migration)) as server,
        http_client(server) as first,
        http_client(server) as second,
    ):
        await server_side(server, first)
        await server_side(server, second)
        ids = set(server.connections)
        async with under_load(first, second):
            for host in ("127.0.0.2", "127.0.0.1"):
                address = at(host, port)
                await relocate(server, address, protocol, address if protocol is EXPLICIT else None)
                assert first.server_address == second.server_address == address
        assert set(server.connections) == ids


@pytest.mark.parametrize("policy", list(Policy))
async def test_policies(policy: Policy) -> None:
    port = free_port(*HOSTS)
    async with (
        served(port=port) as server,
        http_client(server, **only(EXPLICIT, policy=policy)) as client,
    ):
        await server_side(server, client)
        destination = at("127.0.0.2", port)
        received = next_event(client, ServerMigrationReceived)
        preparation = await server.imminent(EXPLICIT, destination)
        assert preparation.is_ready
        await received
        completed = next_event(client, MigrationCompleted)
        await server.switch(destination)
        if policy is Policy.PROACTIVE:
            client.probe_server_address()
        assert (await client.request("POST", "/", body=b"found")).body == b"found"
        await completed
        assert (await server.wait_completed(10)).is_complete


@pytest.mark.parametrize("scheduler", list(Scheduler))
async def test_schedulers(scheduler: Scheduler) -> None:
    port = free_port(*HOSTS)
    configuration = server_configuration(pool(port, *HOSTS))
    async with (
        served(port=port, configuration=configuration) as server,
        http_client(server, **only(POOL, scheduler=scheduler, seed=5)) as client,
    ):
        await server_side(server, client)
        async with under_load(client):
            await relocate(server, at("127.0.0.3", port))


async def test_only_the_port_changes() -> None:
    port, other = free_port("127.0.0.1"), free_port("127.0.0.1")
    async with served(port=port) as server, http_client(server) as client:
        await server_side(server, client)
        async with under_load(client):
            await relocate(server, at("127.0.0.1", other), EXPLICIT, at("127.0.0.1", other))
            await relocate(server, at("127.0.0.1", port), SYMMETRIC)


@pytest.mark.parametrize(
    ("protocol", "source", "destination", "announced"),
    [
        (EXPLICIT, "0.0.0.0", "127.0.0.2", "127.0.0.2"),
        (EXPLICIT, "127.0.0.1", "0.0.0.0", "127.0.0.2"),
        (SYMMETRIC, "0.0.0.0", "127.0.0.2", None),
    ],
)
async def test_wildcard_addresses(
    protocol: MigrationProtocol, source: str, destination: str, announced: str | None
) -> None:
    port = free_port()
    async with (
        served(port=port, host=source) as server,
        http_client(server, host="127.0.0.1") as client,
    ):
        await server_side(server, client)
        address = None if announced is None else at(announced, port)
        async with under_load(client):
            await relocate(server, at(destination, port), protocol, address)
            assert client.server_address == at("127.0.0.2", port)


async def test_a_wildcard_server_is_not_found_where_it_has_not_moved_to() -> None:
    """It would be reached at the announced address, being bound to all; but it must not answer."""
    link = Filter()
    challenges = 0
    challenged = asyncio.Event()

    def count_challenges(data: bytes, addr: Any) -> bool:
        nonlocal challenges
        if addr[0] == "127.0.0.2":
            challenges += 1
            challenged.set()
        return False

    link.drops_sent = count_challenges
    port = free_port()
    async with (
        served(port=port, host="0.0.0.0") as server,
        http_client(server, host="127.0.0.1", wrap_transport=link) as client,
        http_client(server, host="127.0.0.1") as other,
    ):
        await server_side(server, client)
        await server_side(server, other)
        async with under_load(client, other):
            destination = at("127.0.0.2", port)
            assert (await server.imminent(EXPLICIT, destination)).is_ready
            while challenges < 3:
                challenged.clear()
                await challenged.wait()
            assert client.server_address == at("127.0.0.1", port)
            await server.switch(destination)
            assert (await server.wait_completed(10)).is_complete
            await relocate(server, at("0.0.0.0", port), EXPLICIT, at("127.0.0.3", port))
            assert client.server_address == at("127.0.0.3", port)
            await relocate(server, at("127.0.0.1", port), SYNCHRONIZED)


async def test_a_wildcard_server_keeps_the_host_when_only_the_port_changes() -> None:
    async with (
        served(host="0.0.0.0") as server,
        http_client(server, host="127.0.0.3") as client,
    ):
        await server_side(server, client)
        port = free_port()
        async with under_load(client):
            await relocate(server, at("0.0.0.0", port), SYNCHRONIZED)
        assert client.server_address == at("127.0.0.3", port)


# Many protocols at once


async def test_automatic_choice() -> None:
    port = free_port(*HOSTS)
    configuration = server_configuration(pool(port, "127.0.0.2"))
    destination = at("127.0.0.2", port)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(port=port, configuration=configuration))
        clients: list[HttpClient] = []
        expected: dict[str, MigrationProtocol] = {}
        for protocols, best in (
            (POOL | EXPLICIT, POOL),
            (EXPLICIT | SYMMETRIC | SYNCHRONIZED, EXPLICIT),
            (SYMMETRIC | SYNCHRONIZED, SYNCHRONIZED),
            (SYMMETRIC, SYMMETRIC),
        ):
            client = await stack.enter_async_context(http_client(server, **only(protocols)))
            protocol = await server_side(server, client)
            expected[protocol.connection.stable_id] = best
            clients.append(client)
        async with under_load(*clients):
            preparation = await server.imminent(address=destination)
            assert preparation.protocols == expected
            await server.switch(destination)
            assert (await server.wait_completed(10)).is_complete


class StockClient(QuicConnectionProtocol):
    """A client of HTTP/3 on aioquic's own classes."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._http = H3Connection(self._quic)
        self._bodies: dict[int, bytes] = {}
        self._responses: dict[int, asyncio.Future[bytes]] = {}
        self.terminated: asyncio.Future[QuicEvent] = asyncio.get_running_loop().create_future()

    async def get(self, path: str) -> bytes:
        stream_id = self._quic.get_next_available_stream_id()
        fields = {":method": "GET", ":scheme": "https", ":authority": "localhost", ":path": path}
        headers = [(name.encode(), value.encode()) for name, value in fields.items()]
        self._http.send_headers(stream_id, headers, end_stream=True)
        response = self._responses[stream_id] = asyncio.get_running_loop().create_future()
        self.transmit()
        return await response

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ConnectionTerminated):
            self.terminated.set_result(event)
        for received in self._http.handle_event(event):
            if isinstance(received, DataReceived):
                body = self._bodies.get(received.stream_id, b"") + received.data
                self._bodies[received.stream_id] = body
                if received.stream_ended:
                    self._responses[received.stream_id].set_result(body)


async def test_every_protocol_and_a_stock_client_at_once() -> None:
    port = free_port(*HOSTS)
    configuration = server_configuration(pool(port, "127.0.0.2"))
    stock_arguments: dict[str, Any] = {
        "configuration": stock_configuration(),
        "create_protocol": StockClient,
    }
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(served(port=port, configuration=configuration))
        clients: list[HttpClient] = []
        for protocol in PROTOCOLS:
            clients.append(await stack.enter_async_context(http_client(server, **only(protocol))))
            await server_side(server, clients[-1])
        stock = await stack.enter_async_context(stock_connect("127.0.0.1", port, **stock_arguments))
        assert isinstance(stock, StockClient)
        size = 20_000
        body = b"".join(pattern(size))
        assert await stock.get(f"/bytes/{size}") == body
        async with under_load(*clients):
            preparation = await server.imminent(address=at("127.0.0.2", port))
            assert sorted(preparation.protocols.values()) == sorted(PROTOCOLS)
            assert list(preparation.unable.values()) == ["PROTOCOL_NOT_NEGOTIATED"]
            assert await stock.get(f"/bytes/{size}") == body
            relocation = await server.switch(at("127.0.0.2", port))
            assert relocation.closed == tuple(preparation.unable)
            assert (await server.wait_completed(10)).is_complete
        event = await stock.terminated
        assert event == ConnectionTerminated(ErrorCode.H3_NO_ERROR, None, "server migrated")


async def test_a_client_without_the_extension_is_served_until_the_switch() -> None:
    async with (
        served(port=free_port(*HOSTS)) as server,
        http_client(server) as client,
        http_client(server, configuration=stock_configuration()) as stock,
    ):
        name = (await server_side(server, stock)).connection.stable_id
        await server_side(server, client)
        preparation = await server.imminent()
        assert preparation.is_ready
        assert preparation.unable == {name: "PROTOCOL_NOT_NEGOTIATED"}
        assert (await stock.request("POST", "/", body=b"still here")).body == b"still here"
        relocation = await server.switch(at("127.0.0.2", server.address.port))
        assert relocation.closed == (name,)
        lost = await stock.wait_lost()
        assert (lost.error_code, lost.reason) == (ErrorCode.H3_NO_ERROR, "server migrated")
        assert (await server.wait_completed(10)).is_complete
        assert (await client.request("POST", "/", body=b"moved")).body == b"moved"


async def test_only_clients_without_the_extension() -> None:
    async with (
        served(port=free_port(*HOSTS)) as server,
        http_client(server, configuration=stock_configuration()) as stock,
    ):
        await server_side(server, stock)
        destination = at("127.0.0.2", server.address.port)
        await server.imminent(EXPLICIT, destination)
        await server.switch(destination)
        assert (await stock.wait_lost()).reason == "server migrated"
        assert (await server.wait_completed(10)).is_complete
        async with http_client(server) as client:
            assert (await client.request("POST", "/", body=b"new")).body == b"new"


async def test_named_connections() -> None:
    port = free_port(*HOSTS)
    destination = at("127.0.0.2", port)
    async with (
        served(port=port) as server,
        http_client(server) as explicit,
        http_client(server) as symmetric,
        http_client(server) as best,
        http_client(server) as unnamed,
    ):
        ids = [
            (await server_side(server, client)).connection.stable_id
            for client in (explicit, symmetric, best, unnamed)
        ]
        preparation = await server.imminent(
            connections={
                ids[0]: (EXPLICIT, destination),
                ids[1]: (SYMMETRIC, None),
                ids[2]: (None, None),
            }
        )
        assert preparation.protocols == dict(
            zip(ids[:3], (EXPLICIT, SYMMETRIC, SYNCHRONIZED), strict=True)
        )
        assert preparation.unable == {ids[3]: "NOT_NAMED"}
        relocation = await server.switch(destination)
        assert relocation.closed == (ids[3],)
        assert (await unnamed.wait_lost()).reason == "server migrated"
        completion = await server.wait_completed(10)
        assert sorted(completion.completed) == sorted(ids[:3])
        for client in (explicit, symmetric, best):
            assert (await client.request("POST", "/", body=b"on")).body == b"on"


# Handshakes meanwhile


async def test_handshakes_are_refused_until_the_switch() -> None:
    async with served(port=free_port(*HOSTS)) as server:
        await server.imminent()
        with pytest.raises(ConnectFailed):
            async with http_client(server):
                pass
        await server.abort()
        async with http_client(server) as client:
            await server_side(server, client)
            await server.imminent()
            with pytest.raises(ConnectFailed):
                async with http_client(server):
                    pass
            await server.switch(at("127.0.0.2", server.address.port))
            async with http_client(server) as late:
                assert (await late.request("POST", "/", body=b"late")).body == b"late"


async def test_handshakes_under_way_are_closed() -> None:
    link = Filter()
    answered = asyncio.Event()

    def lose_answer(data: bytes, addr: Any) -> bool:
        answered.set()
        return True

    link.drops_received = lose_answer
    async with (
        served() as server,
        http_client(server, wrap_transport=link, wait_connected=False) as client,
    ):
        client.transmit()
        await answered.wait()
        link.mend()
        await server.imminent()
        with pytest.raises(ConnectFailed) as caught:
            await client.wait_connected()
        assert caught.value.error_code == QuicErrorCode.CONNECTION_REFUSED


# Deadline, abort, going without


@asynccontextmanager
async def one_deaf_client(
    server: Server,
) -> AsyncIterator[tuple[HttpClient, HttpClient, str, Filter]]:
    """Provide two clients; what the second sends is lost from now on."""
    link = Filter()
    async with http_client(server) as client, http_client(server, wrap_transport=link) as deaf:
        await server_side(server, client)
        name = (await server_side(server, deaf)).connection.stable_id
        link.drops_sent = lambda data, addr: True
        yield client, deaf, name, link


async def test_deadline_and_abort() -> None:
    async with (
        served(port=free_port(*HOSTS)) as server,
        one_deaf_client(server) as (client, deaf, name, link),
    ):
        source, destination = server.address, at("127.0.0.2", server.address.port)
        preparation = await server.imminent(EXPLICIT, destination, deadline=0.05)
        assert not preparation.is_ready
        assert preparation.unready == (name,)
        assert server.phase is Phase.OVERDUE
        assert server.status()["unready"] == [name]
        with pytest.raises(RelocationError, match=f"NOT_READY.*{name}.*aborted"):
            await server.switch(destination)
        assert (server.phase, server.address) == (Phase.SERVING, source)
        link.mend()
        for each in (client, deaf):
            assert (await each.request("POST", "/", body=b"as ever")).body == b"as ever"
        await relocate(server, destination, EXPLICIT, destination)


async def test_going_without() -> None:
    async with (
        served(port=free_port(*HOSTS)) as server,
        one_deaf_client(server) as (client, deaf, name, _),
    ):
        destination = at("127.0.0.2", server.address.port)
        announcing = asyncio.create_task(server.imminent(EXPLICIT, destination, deadline=0.05))
        await asyncio.sleep(0)
        relocation = await server.switch(destination, unready=Unready.LEAVE)  # waits for that
        assert announcing.done()
        assert relocation.closed == (name,)
        assert (await deaf.wait_lost()).reason == "server migrated"
        assert (await server.wait_completed(10)).is_complete
        assert (await client.request("POST", "/", body=b"moved")).body == b"moved"


async def test_late_readiness_counts() -> None:
    async with (
        served(port=free_port(*HOSTS)) as server,
        one_deaf_client(server) as (_, _, _, link),
    ):
        destination = at("127.0.0.2", server.address.port)
        assert not (await server.imminent(EXPLICIT, destination, deadline=0.05)).is_ready
        events = server.events()
        link.mend()
        async for event in events:
            if event.event == PhaseChanged(Phase.READY):
                break
        assert (await server.switch(destination)).closed == ()
        assert (await server.wait_completed(10)).is_complete


async def test_abort_leaves_no_trace() -> None:
    async with served(port=free_port(*HOSTS)) as server, http_client(server) as client:
        await server_side(server, client)
        async with under_load(client):
            destination = at("127.0.0.2", server.address.port)
            await server.imminent(EXPLICIT, destination)
            await server.abort()
            assert server.phase is Phase.SERVING
            await client.request("POST", "/", body=b"as ever")
        await relocate(server, destination, EXPLICIT, destination)


async def test_who_waits_hears_of_the_abort() -> None:
    async with (
        served() as server,
        one_deaf_client(server) as (_, _, _, link),
    ):
        announcing = asyncio.create_task(server.imminent(SYNCHRONIZED))
        await asyncio.sleep(0)
        moving = asyncio.create_task(server.switch(at("127.0.0.2", server.address.port)))
        await asyncio.sleep(0)
        await server.abort()
        for task in (announcing, moving):
            with pytest.raises(RelocationError, match="ABORTED"):
                await task
        link.mend()


async def test_cancelling_who_waits_changes_nothing() -> None:
    async with (
        served(port=free_port(*HOSTS)) as server,
        one_deaf_client(server) as (_, _, _, link),
    ):
        announcing = asyncio.create_task(server.imminent(SYNCHRONIZED))
        await asyncio.sleep(0)
        announcing.cancel()
        await asyncio.wait([announcing])
        assert server.phase is Phase.PREPARING
        link.mend()
        await server.switch(at("127.0.0.2", server.address.port))
        assert (await server.wait_completed(10)).is_complete


async def test_a_client_that_disappears_after_the_switch_is_named() -> None:
    link = Filter()
    configuration = server_configuration(idle_timeout=0.5)
    async with (
        served(port=free_port(*HOSTS), configuration=configuration) as server,
        http_client(server, wrap_transport=link) as client,
    ):
        name = (await server_side(server, client)).connection.stable_id
        await server.imminent()
        link.cut()
        await server.switch(at("127.0.0.2", server.address.port))
        completion = await server.wait_completed(0.01)
        assert (completion.is_complete, completion.pending) == (False, (name,))
        with pytest.raises(RelocationError, match="MIGRATION_ALREADY_IN_PROGRESS"):
            await server.imminent()
        completion = await server.wait_completed()
        assert (completion.is_complete, completion.lost) == (True, (name,))
        await server.imminent()


async def test_a_new_clients_pool_is_waited_for() -> None:
    port = free_port(*HOSTS)
    link = Filter()
    async with (
        served(port=port, configuration=server_configuration(pool(port, "127.0.0.2"))) as server,
        http_client(server, wrap_transport=link, wait_connected=False) as client,
    ):
        # The pool comes with the last datagram of the handshake; lose it
        finished = asyncio.Event()
        link.drops_received = lambda data, addr: finished.is_set()
        events = server.events()
        link.drops_sent = _once_sent(finished)
        client.transmit()
        async for event in events:
            if type(event.event).__name__ == "HandshakeFinished":
                break
        [name] = server.connections
        announcing = asyncio.create_task(server.imminent())
        await asyncio.sleep(0)
        assert server.status()["connections"][0]["progress"] == "waiting"
        with pytest.raises(RelocationError, match="MIGRATION_ALREADY_IN_PROGRESS"):
            await server.imminent()
        link.mend()
        assert (await announcing).protocols == {name: POOL}
        await server.switch(at("127.0.0.2", port))
        assert (await client.request("POST", "/", body=b"there")).body == b"there"
        assert (await server.wait_completed(10)).is_complete


def _once_sent(event: asyncio.Event) -> Callable[[bytes, Any], bool]:
    """Return a filter that drops nothing, and sets `event` when a Handshake packet is sent."""

    def look(data: bytes, addr: Any) -> bool:
        if b"\xe0" in data[:1] or len(data) < 1200:
            event.set()
        return False

    return look


# Refusals


async def test_refused_requests_change_nothing() -> None:
    port = free_port(*HOSTS)
    destination = at("127.0.0.2", port)
    async with (
        served(port=port) as server,
        http_client(server, **only(SYMMETRIC)) as client,
    ):
        name = (await server_side(server, client)).connection.stable_id

        async def refused(code: str, *arguments: Any, **keywords: Any) -> None:
            with pytest.raises(RelocationError) as caught:
                await server.imminent(*arguments, **keywords)
            assert caught.value.code.name == code
            assert server.phase is Phase.SERVING
            assert (await client.request("POST", "/", body=b"x")).body == b"x"

        await refused("PROTOCOL_NOT_NEGOTIATED", EXPLICIT, destination)
        await refused("PROTOCOL_NOT_NEGOTIATED", connections={name: (SYNCHRONIZED, None)})
        await refused("UNKNOWN_CONNECTION", connections={"nobody": (None, None)})
        await refused("UNKNOWN_PROTOCOL", SYMMETRIC | EXPLICIT)
        await refused("EMPTY_POOL_MIGRATION_ADDRESSES", POOL)
        await refused("INVALID_ADDRESS", SYMMETRIC, destination)
        for address in (
            None,
            server.address,
            at("127.0.0.2", 0),
            at("0.0.0.0", port),
            at("224.0.0.1", port),
            at("255.255.255.255", port),
            at("[::1]", port),
        ):
            await refused("INVALID_ADDRESS", EXPLICIT, address)
            await refused("INVALID_ADDRESS", connections={name: (EXPLICIT, address)})
        with pytest.raises(ConfigurationError):
            await server.imminent(SYMMETRIC, connections={name: (SYMMETRIC, None)})
        with pytest.raises(ConfigurationError):
            await server.imminent(deadline=0)
        with pytest.raises(RelocationError, match="NOT_PREPARED"):
            await server.switch(destination)
        with pytest.raises(RelocationError, match="NOT_PREPARED"):
            await server.abort()
        with pytest.raises(RelocationError, match="NOT_PREPARED"):
            await server.wait_completed(1)


async def test_migration_switched_off() -> None:
    async with served(configuration=server_configuration(None)) as server:
        with pytest.raises(RelocationError, match="MIGRATION_DISABLED"):
            await server.imminent()


async def test_protocol_that_the_server_does_not_support() -> None:
    configuration = server_configuration(ServerMigration(SYMMETRIC))
    async with served(configuration=configuration) as server:
        with pytest.raises(RelocationError, match="PROTOCOL_NOT_NEGOTIATED: this server does not"):
            await server.imminent(EXPLICIT, at("127.0.0.2", 4433))


async def test_named_connection_whose_pool_is_not_acknowledged() -> None:
    port = free_port(*HOSTS)
    link = Filter()
    async with served(
        port=port, configuration=server_configuration(pool(port, "127.0.0.2"))
    ) as server:
        finished = asyncio.Event()
        link.drops_received = lambda data, addr: finished.is_set()
        link.drops_sent = _once_sent(finished)
        events = server.events()
        async with http_client(server, wrap_transport=link, wait_connected=False) as client:
            client.transmit()
            async for event in events:
                if type(event.event).__name__ == "HandshakeFinished":
                    break
            [name] = server.connections
            with pytest.raises(RelocationError, match="POOL_MIGRATION_ADDRESSES_NOT_ACKNOWLEDGED"):
                await server.imminent(connections={name: (POOL, None)})
            assert server.phase is Phase.SERVING
            link.mend()
            assert (await client.request("POST", "/", body=b"x")).body == b"x"


async def test_another_announcement_after_an_abort() -> None:
    port = free_port(*HOSTS)
    async with served(port=port) as server, http_client(server) as client:
        await server_side(server, client)
        await server.imminent(EXPLICIT, at("127.0.0.2", port))
        await server.abort()
        with pytest.raises(RelocationError, match="INVALID_STATE"):
            await server.imminent(EXPLICIT, at("127.0.0.3", port))
        await relocate(server, at("127.0.0.2", port), EXPLICIT, at("127.0.0.2", port))


async def test_wrong_destination_is_refused_and_can_be_corrected() -> None:
    port = free_port(*HOSTS)
    async with (
        served(port=port, configuration=server_configuration(pool(port, "127.0.0.2"))) as server,
        http_client(server, **only(POOL)) as pooled,
        http_client(server, **only(EXPLICIT)) as explicit,
    ):
        await server_side(server, pooled)
        await server_side(server, explicit)
        await server.imminent(address=at("127.0.0.2", port))
        for wrong in (
            server.address,
            at("127.0.0.3", port),
            at("127.0.0.2", port + 1),
            at("127.0.0.2", 0),
            at("[::1]", port),
        ):
            with pytest.raises(RelocationError, match="INVALID_ADDRESS"):
                await server.switch(wrong)
            assert server.phase is Phase.READY
        await server.switch(at("127.0.0.2", port))
        assert (await pooled.request("POST", "/", body=b"there")).body == b"there"
        assert (await server.wait_completed(10)).is_complete


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)
async def test_address_that_cannot_be_bound(protocol: MigrationProtocol) -> None:
    port = free_port(*HOSTS)
    destination = at("127.0.0.2", port)
    migration = pool(port, *HOSTS) if protocol is POOL else ServerMigration()
    async with (
        served(port=port, configuration=server_configuration(migration)) as server,
        http_client(server) as client,
        http_client(server, configuration=stock_configuration()) as stock,
    ):
        await server_side(server, client)
        await server_side(server, stock)
        taken = UdpSocket.bind(destination)
        async with under_load(client, stock):
            await server.imminent(protocol, destination if protocol is EXPLICIT else None)
            with pytest.raises(RelocationError, match=r"CANNOT_BIND.*in use.*goes on at 127"):
                await server.switch(destination)
            assert server.address == at("127.0.0.1", port)
        taken.close()
        async with under_load(client):
            await server.switch(destination)
            assert (await server.wait_completed(10)).is_complete


# Events, and the end


async def test_events_of_a_relocation() -> None:
    async with served(port=free_port(*HOSTS)) as server:
        events = server.events()
        async with http_client(server) as client:
            name = (await server_side(server, client)).connection.stable_id
            await relocate(server, at("127.0.0.2", server.address.port), SYNCHRONIZED)
            phases = []
            seen = []
            async for event in events:
                if isinstance(event.event, PhaseChanged):
                    assert event.connection_id is None
                    phases.append(event.event.phase)
                else:
                    assert event.connection_id == name
                    seen.append(event.event)
                if phases[-1:] == [Phase.SERVING]:
                    break
        assert phases == [Phase.PREPARING, Phase.READY, Phase.SWITCHED, Phase.SERVING]
        assert MigrationReady(SYNCHRONIZED) in seen
        assert MigrationCompleted(SYNCHRONIZED, server.address) in seen


async def test_closing_a_server_that_is_being_moved() -> None:
    async with served() as server:
        async with one_deaf_client(server) as (client, _, _, link):
            announcing = asyncio.create_task(server.imminent(SYNCHRONIZED))
            await asyncio.sleep(0)
            events = server.events()
            await asyncio.gather(server.close(), server.close())
            with pytest.raises(RelocationError, match="the server is closed"):
                await announcing
            assert isinstance(await client.wait_lost(), ConnectionLost)
            link.mend()
        assert [event async for event in events] == []
        await server.wait_closed()
        assert [event async for event in server.events()] == []
