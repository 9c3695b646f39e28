"""A QUIC server that can be moved to another address while its clients stay connected.

`serve` starts a `Server`. A relocation takes three calls:

    await server.imminent()                                  # every connection prepares
    await server.switch(Address.parse("127.0.0.2:4433"))     # the sockets move
    await server.wait_completed()                            # every client has followed
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from ipaddress import IPv4Address
from typing import Any

from aioquic.asyncio.protocol import QuicStreamHandler
from aioquic.h3.connection import H3_ALPN
from aioquic.quic.configuration import QuicConfiguration
from aioquic.tls import SessionTicketFetcher, SessionTicketHandler
from hypercorn.typing import ASGIFramework

from quicferry.io import (
    DEFAULT_LINGER,
    DEFAULT_MAX_HALF_OPEN,
    AddressValidation,
    ConnectionProtocol,
    ConnectionRouter,
    EventStream,
    Handshakes,
    StatelessReset,
)
from quicferry.protocol import Address, MigrationProtocol, ServerMigration, protocol_name
from quicferry.transport import address_from_network

from .application import DEFAULT_LIMIT_CONCURRENCY, DEFAULT_STARTUP_TIMEOUT, Application
from .arrival import Arrival
from .asgi import AsgiProtocol
from .certificate import check_certificate
from .departure import Departure, running_requests
from .draining import Calls, RunningRequest
from .errors import ConfigurationError
from .planning import Choice, Destination, Unready, announced_to, check_pool
from .relocator import DEFAULT_DEADLINE, Relocator
from .reports import Completion, Preparation, Relocation, RelocationEvent, ServerEvent
from .suspension import Suspension
from .synchronisation import Phase, Progress

logger = logging.getLogger("quicferry.server")


class Server:
    """A running server; made by `serve`. As a context manager it is closed at the end.

    Args:
        router: Its connections and sockets.
        configuration: The configuration of its connections.
        application: The ASGI application that answers requests, already started; or None.
        grace: Seconds that running requests have to come to their end when it is closed.
    """

    def __init__(
        self,
        router: ConnectionRouter,
        configuration: QuicConfiguration,
        application: Application | None,
        grace: float = 0.0,
    ) -> None:
        options = getattr(configuration, "server_migration", None)
        self._router = router
        self._relocator = Relocator(router, options, self._publish)
        self._application = application
        self._calls = Calls() if application is None else application.calls
        self._grace = grace
        self._out_of_time = asyncio.Event()
        self._streams: list[EventStream[ServerEvent]] = []
        self._closing: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()

    @property
    def address(self) -> Address:
        """Where the server is; the host is unspecified if it listens at all of the host's."""
        return self._router.endpoint.address

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where the server is. The first one can be moved, the others stay."""
        return self._router.endpoint.addresses

    @property
    def phase(self) -> Phase:
        """Where the server is in a migration."""
        return self._relocator.sync.phase

    @property
    def connections(self) -> Mapping[str, ConnectionProtocol]:
        """The connections that are open, by stable id."""
        return self._relocator.connections()

    @property
    def running_requests(self) -> tuple[RunningRequest, ...]:
        """The requests that the application is working on, also after its response."""
        return running_requests(self.connections.values(), self._calls)

    def events(self) -> EventStream[ServerEvent]:
        """Return an iterator over what happens from now on, until the server is closed."""
        stream: EventStream[ServerEvent] = EventStream()
        if self._closed.is_set():
            stream.end()
        self._streams = [*self._live_streams(), stream]
        return stream

    def publish(self, event: RelocationEvent) -> None:
        """Tell everyone who iterates over `events` how a relocation goes on."""
        self._publish(ServerEvent(None, event))

    def status(self) -> dict[str, Any]:
        """Return how the server and each connection is, in values that JSON can express."""
        sync = self._relocator.sync
        progress = sync.progress
        return {
            "address": str(self.address),
            "addresses": [str(address) for address in self.addresses],
            "phase": self.phase.value,
            "connections": [
                {
                    "id": name,
                    "client": str(protocol.peer_address),
                    "server": str(address_from_network(self._router.berth(protocol).local)),
                    "negotiated": _names(protocol.negotiated),
                    "state": protocol.connection.migration_state,
                    "progress": progress[name].value if name in progress else None,
                    "knows_withdrawals": protocol.connection.knows_withdrawals,
                    "announced": announced_to(protocol.connection),
                }
                for name, protocol in self.connections.items()
            ],
            "unready": list(sync.unready),
            "silent": list(sync.those(Progress.SILENT)),
            "pending": list(sync.those(Progress.SWITCHED)),
            "handshakes": dataclasses.asdict(self._router.handshake_counts),
        }

    # For the orchestrator

    async def imminent(
        self,
        protocol: MigrationProtocol | None = None,
        address: Destination = None,
        *,
        connections: Mapping[str, Choice] | None = None,
        deadline: float = DEFAULT_DEADLINE,
        unready: Unready = Unready.ABORT,
        destination: Address | None = None,
        bind: Address | None = None,
    ) -> Preparation:
        """Announce that the server will be moved, and wait until it is ready or out of time.

        New clients are refused from here on. To be cancelled while it waits changes nothing. A
        client that acknowledges nothing is not waited for, but left behind (`silence.patience`).

        Args:
            protocol: The protocol for all connections; None for the best one that each can use.
            address: The destination, for connections that migrate by Explicit.
            connections: Protocol and address of each connection that shall migrate, by stable id,
                instead of the same for all; the others are closed at the switch.
            deadline: Seconds to wait until all are ready.
            unready: What to do with clients that cannot be moved as is asked for, because they were
                told of another move before and cannot be told that it will not be, or have not
                followed the last one: refuse, or go without them. The latter have until the
                deadline before.
            destination: Where the server will go, if that is known: whether its clients will find
                it there is looked at before anything is announced.
            bind: The same, for a move within this host: whether the address can be bound, too.

        Raises:
            RelocationError: If the request makes no sense, or cannot be met by a connection that
                it names; nothing has happened then. ABORTED if the migration was aborted
                meanwhile.
            ConfigurationError: If the arguments contradict each other.
        """
        return await self._relocator.imminent(
            protocol,
            address,
            connections,
            deadline=deadline,
            unready=unready,
            destination=destination,
            bind=bind,
        )

    async def switch(self, address: Address, *, unready: Unready = Unready.ABORT) -> Relocation:
        """Move the server to `address` after it has prepared.

        While connections still prepare it waits, but not beyond the deadline. The new address is
        bound first, then those that cannot move along are closed from the old one, then all others
        go on at the new one. What is still under way to the old address is received as well.

        Args:
            address: Where to listen from now on.
            unready: What to do if connections are not ready by the deadline.

        Raises:
            RelocationError: If the server cannot be moved, or not to this address; nothing has
                changed then, and it can be tried again. NOT_READY if it was aborted because not
                all were ready.
        """
        return await self._relocator.switch(address, unready)

    async def abort(self) -> None:
        """Give an announced migration up; every connection goes on as if nothing had happened.

        Clients are told that the server stays. Those that cannot be told are in `still_announced`.

        Raises:
            RelocationError: If none has been announced, or the server has already moved.
        """
        self._relocator.abort()

    def still_announced(self) -> dict[str, str]:
        """Return who expects the server elsewhere, although no migration is under way.

        Returns:
            Where, by the stable ids of connections whose clients were told of a move that has been
            given up, and cannot be told that.
        """
        return self._relocator.still_announced()

    async def wait_completed(self, within: float | None = None) -> Completion:
        """Wait until every connection has followed the server, or has ended.

        Args:
            within: Seconds to wait at most; None for no limit. Afterwards the report says who has
                not followed.

        Raises:
            RelocationError: If the server has not been moved.
        """
        return await self._relocator.wait_completed(within)

    def departure(self) -> Departure:
        """Return the means to hand the connections over to another server."""
        return Departure(self._relocator, self._router, self._application)

    def arrival(self) -> Arrival:
        """Return the means to adopt the connections of another server; clients have to wait.

        Raises:
            RelocationError: If this server was not started just now.
        """
        return Arrival(self._relocator, self._router, self._application)

    def suspension(self) -> Suspension:
        """Return the means to carry the whole process to another host."""
        return Suspension(self._relocator, self._router)

    # The end

    async def close(self, grace: float | None = None) -> None:
        """Close all connections and the sockets, when running requests have come to their end.

        New clients and new requests are refused from now on; connected clients are told
        (RFC 9114 5.2). Calling it again waits for that, and may shorten the time.

        Args:
            grace: Seconds that running requests have at most; 0 for none, by default what the
                server was started with.

        Raises:
            ApplicationError: If the application fails to stop; the server is closed all the same.
        """
        grace = self._grace if grace is None else grace
        if grace > 0:
            asyncio.get_running_loop().call_later(grace, self._out_of_time.set)
        else:
            self._out_of_time.set()
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def wait_closed(self) -> None:
        """Wait until the server is closed."""
        await self._closed.wait()

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _close(self) -> None:
        self._router.handshakes = Handshakes.REFUSED_EVERYWHERE
        self._relocator.begin_nothing()
        if not self._out_of_time.is_set():
            await self._wind_down()
        self._relocator.close()
        for protocol in list(self._router.protocols):
            protocol.close()
        try:
            if self._application is not None:
                await self._application.stop()
        finally:
            self._router.close()
            self._closed.set()
            for stream in self._streams:
                stream.end()

    async def _wind_down(self) -> None:
        """Let running requests come to their end, and close each connection that has none left."""

        async def leave(protocol: ConnectionProtocol) -> None:
            await protocol.wind_down()
            protocol.close()

        connected = self.connections.values()
        for protocol in list(self._router.protocols):
            if not protocol.is_connected:
                protocol.close()
        ends = asyncio.gather(*map(leave, connected), self._calls.wait_idle())
        time_over = asyncio.create_task(self._out_of_time.wait())
        try:
            await asyncio.wait((ends, time_over), return_when=asyncio.FIRST_COMPLETED)
        finally:
            time_over.cancel()
            ends.cancel()
            [result] = await asyncio.gather(ends, return_exceptions=True)
            if isinstance(result, Exception):
                logger.error("a connection fails at its end", exc_info=result)

    def _publish(self, event: ServerEvent) -> None:
        for stream in self._live_streams():
            stream.put(event)

    def _live_streams(self) -> list[EventStream[ServerEvent]]:
        return [stream for stream in self._streams if not stream.has_ended]


async def serve(
    host: str,
    port: int,
    *,
    configuration: QuicConfiguration,
    app: ASGIFramework | None = None,
    create_protocol: Callable[..., ConnectionProtocol] = ConnectionProtocol,
    session_ticket_fetcher: SessionTicketFetcher | None = None,
    session_ticket_handler: SessionTicketHandler | None = None,
    retry: bool = False,
    stream_handler: QuicStreamHandler | None = None,
    linger: float = DEFAULT_LINGER,
    grace: float = 0.0,
    startup_timeout: float = DEFAULT_STARTUP_TIMEOUT,
    limit_concurrency: int = DEFAULT_LIMIT_CONCURRENCY,
    key: bytes | None = None,
    others: Sequence[tuple[str, int]] = (),
    max_half_open: int = DEFAULT_MAX_HALF_OPEN,
) -> Server:
    """Start a QUIC server.

    Args:
        host: The name or address to listen at. ``0.0.0.0`` stands for all IPv4 addresses of the
            host, ``::`` for those of both families: then the ones of IPv4 are a further address.
        port: The UDP port; 0 for any.
        configuration: As in aioquic, with a certificate; a `Configuration` also has the choices
            about server migration.
        app: An ASGI application, to be served over HTTP/3.
        create_protocol: Without `app`: makes what drives a connection, as in aioquic.
        session_ticket_fetcher: As in aioquic.
        session_ticket_handler: As in aioquic.
        retry: As in aioquic: whether clients have to prove their address before the handshake. From
            a tenth of `max_half_open` on they have to in any case.
        stream_handler: As in aioquic.
        linger: Seconds for which an address is still listened at after a switch to another.
        grace: Seconds that running requests have to come to their end when the server is closed.
        startup_timeout: Seconds that the application has to start.
        limit_concurrency: How many requests the application may work on at once, those included
            whose clients are gone; further ones are answered with status 503.
        key: At least 32 secret bytes that outlive the process (`load_key`). With them, clients are
            told by a stateless reset of connections that an earlier process had (RFC 9000 10.3),
            and Retry tokens of other processes with the same key are taken.
        others: Further hosts and ports to listen at. `Server.switch` and a handover move the first
            address only: connections at the others stay, or are closed if the server goes.
        max_half_open: How many connections there may be whose handshake is under way; a fourth of
            them from one address (of IPv6, from one /64). Others are refused, or those give way
            that have most. After 10 seconds a handshake is given up.

    Raises:
        BindError: If an address cannot be bound.
        ApplicationError: If the application fails to start.
        ConfigurationError: If the configuration is not one for a server, or clients would refuse an
            address of its pool.
        OSError: If the name cannot be resolved.
    """
    configuration = copy.copy(configuration)
    check_certificate(configuration)
    if max_half_open < 1:
        raise ConfigurationError("max_half_open is less than 1, so that nobody can connect")
    if configuration.connection_id_length < 1:
        raise ConfigurationError(
            "connection_id_length is 0, which tells connections apart by nothing; 8 is usual"
        )
    addresses: dict[Address, None] = {}
    for where in ((host, port), *others):
        addresses |= dict.fromkeys(await _resolve(*where))
    migration = getattr(configuration, "server_migration", None)
    if isinstance(migration, ServerMigration):
        check_pool(migration.pool, addresses)
    address, *further = addresses
    application = None
    if app is not None:
        application = Application(
            app, startup_timeout=startup_timeout, limit_concurrency=limit_concurrency
        )
        create_protocol = partial(AsgiProtocol, application=application)
        if configuration.alpn_protocols is None:
            configuration.alpn_protocols = H3_ALPN
        await application.start()
    try:
        router = ConnectionRouter(
            address,
            configuration=configuration,
            create_protocol=create_protocol,
            session_ticket_fetcher=session_ticket_fetcher,
            session_ticket_handler=session_ticket_handler,
            validation=AddressValidation(key),
            retry=retry,
            max_half_open=max_half_open,
            resets=None if key is None else StatelessReset(key),
            stream_handler=stream_handler,
            linger=linger,
            others=further,
        )
    except BaseException:
        if application is not None:
            await application.stop()
        raise
    return Server(router, configuration, application, grace)


async def _resolve(host: str, port: int) -> list[Address]:
    """Return where to listen for a host."""
    infos = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
    )
    address = address_from_network(infos[0][4])
    if address is None:
        raise ConfigurationError(f"{host!r} has no IP address; give one to listen at")
    if address.family == 6 and address.host.is_unspecified:
        # One socket for both would show IPv4 clients at addresses that no frame can carry.
        return [address, Address(IPv4Address(0), port)]
    return [address]


def _names(protocols: MigrationProtocol | None) -> list[str] | None:
    return None if protocols is None else [protocol_name(each) for each in protocols]
