"""Real connections on the simulated network: what an event loop and sockets are elsewhere.

An `Endpoint` drives one sans-IO connection (anything with aioquic's interface) and the application
on top of it. A `Client` is an endpoint with an address of its own, perhaps behind a NAT. A
`ServerHost` listens at one address and routes datagrams to its connections by connection ID, as
aioquic's own server does; it can be frozen, and come back to life at another address.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from aioquic._buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicPacketType, pull_quic_header

from quicferry.protocol.events import MigrationEvent
from quicferry.transport import Connection

from .errors import SimulationError
from .nat import Nat
from .network import Network, SimulatedAddress
from .observer import CONNECTION_ID_LENGTH, Observer

TICK = 1e-6
"""Seconds. A timer that is due fires a moment later: on a real clock time goes on meanwhile."""

WAKES_FOR_NOTHING = 1000
"""So many times a timer may be due again at once: more would keep a processor busy."""


class Application(Protocol):
    """What runs on a connection."""

    def handle_event(self, event: events.QuicEvent) -> None:
        """The connection has something to tell."""


class Endpoint(ABC):
    """One connection, driven in virtual time.

    Args:
        name: For the observer and error messages.
        network: The network, whose clock is used.
        observer: Told about every datagram that is sent.
        connection: The connection.

    Attributes:
        application: Gets the connection's events.
        migration_events: Times and events of the migrations so far.
        handshake_complete: Whether the handshake is complete.
        terminated: How the connection ended; None while it lives.
        heard: When it last received a datagram from each address.
        heard_last: The address that the latest datagram came from.
        on_migration_event: Called with each event of a migration when it happens.
    """

    def __init__(
        self, name: str, network: Network, observer: Observer, connection: QuicConnection
    ) -> None:
        self.name = name
        self.network = network
        self.connection = connection
        self.application: Application | None = None
        self.migration_events: list[tuple[float, MigrationEvent]] = []
        self.handshake_complete = False
        self.terminated: events.ConnectionTerminated | None = None
        self.heard: dict[SimulatedAddress, float] = {}
        self.heard_last: SimulatedAddress | None = None
        self.on_migration_event: Callable[[MigrationEvent], None] = lambda event: None
        self._observer = observer
        self._timer_at: float | None = None
        self._wake_at: float | None = None
        self._due_again = 0

    @property
    @abstractmethod
    def local(self) -> SimulatedAddress:
        """The address of this end, as it knows it itself."""

    @property
    def frozen(self) -> bool:
        """Whether the program that this connection belongs to does not run at the moment."""
        return False

    @property
    def migrating(self) -> Connection:
        """The connection, which must be one that can migrate."""
        assert isinstance(self.connection, Connection)
        return self.connection

    def call_later(self, delay: float, action: Callable[[], None]) -> None:
        """Let the application do something in `delay` seconds, or once it is no longer frozen."""

        def act() -> None:
            action()
            self.flush()

        self.network.call_later(delay, lambda: self._when_running(act))

    def receive(self, data: bytes, source: SimulatedAddress) -> None:
        """A datagram has arrived."""
        self.heard[source] = self.network.now
        self.heard_last = source
        self._observer.datagram_received(self.name, source)
        self.connection.receive_datagram(data, source, self.network.now)
        self.flush()

    def flush(self) -> None:
        """Hand events to the application, send what is to be sent, and set the timer.

        To be called after every use of the connection.
        """
        self._drain_events()
        self._observer.sender = self.name
        for data, destination in self.connection.datagrams_to_send(self.network.now):
            self._observer.datagram_sent(self.name, self.local, destination, data)
            self._send(data, destination)
        self._drain_events()
        self._set_timer()

    def _send(self, data: bytes, destination: SimulatedAddress) -> None:
        self.network.send(data, self.local, destination)

    def _when_running(self, action: Callable[[], None]) -> None:
        action()

    def _drain_events(self) -> None:
        while (event := self.connection.next_event()) is not None:
            self._handle_event(event)
        if isinstance(self.connection, Connection):
            while (migration_event := self.connection.next_migration_event()) is not None:
                self.migration_events.append((self.network.now, migration_event))
                self.on_migration_event(migration_event)

    def _handle_event(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.HandshakeCompleted):
            self.handshake_complete = True
        elif isinstance(event, events.ConnectionTerminated):
            self.terminated = event
        if self.application is not None:
            self.application.handle_event(event)

    def _set_timer(self) -> None:
        self._timer_at = None if self.terminated else self.connection.get_timer()
        if self._timer_at is None:
            return
        # One wake-up at a time: an earlier one that is under way finds out about a later timer.
        wake_at = max(self._timer_at, self.network.now + TICK)
        if self._wake_at is None or wake_at < self._wake_at:
            self._wake_at = wake_at
            self.network.call_at(wake_at, self._wake)

    def _wake(self) -> None:
        now = self.network.now
        if self._wake_at is not None and now >= self._wake_at:
            self._wake_at = None
        if self.frozen or self._timer_at is None:
            return
        if now >= self._timer_at:
            self.connection.handle_timer(now)
            self.flush()
            is_due = self._timer_at is not None and self._timer_at <= now
            self._due_again = self._due_again + 1 if is_due else 0
            if self._due_again > WAKES_FOR_NOTHING:
                raise SimulationError(f"{self.name} does not do what its timer is for")
        else:
            self._set_timer()


class Client(Endpoint):
    """A client: one connection with an address of its own.

    Args:
        name: For the observer and error messages.
        network: The network.
        observer: Told about every datagram that is sent.
        connection: The connection.
        address: The client's address.
        nat: What stands between it and the network.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        observer: Observer,
        connection: QuicConnection,
        address: SimulatedAddress,
        nat: Nat | None = None,
    ) -> None:
        super().__init__(name, network, observer, connection)
        self.nat = nat
        self._address = address
        if nat is not None:
            nat.attach(self.receive)
        else:
            network.attach(address, self.receive)

    @property
    def local(self) -> SimulatedAddress:
        """The client's own address, behind the NAT if there is one."""
        return self._address

    @property
    def spare_connection_ids(self) -> int:
        """How many unused connection IDs of the server the client has."""
        return self.migrating.spare_connection_ids

    @property
    def external(self) -> SimulatedAddress:
        """The address under which the network sees the client."""
        return self._address if self.nat is None else self.nat.external

    def connect(self, server: SimulatedAddress) -> None:
        """Start the handshake."""
        self.connection.connect(server, self.network.now)
        self.flush()

    def rebind(self, external: SimulatedAddress, *, grace: float) -> None:
        """The NAT gives the client another external address, and the client does not know.

        Args:
            external: The new address.
            grace: For so many seconds the old one still works.
        """
        assert self.nat is not None
        self._observer.address_changed(self.external, external)
        self.nat.rebind(external, grace=grace)

    def migrate(self, address: SimulatedAddress, *, grace: float = 0.0) -> None:
        """The client moves to another address of its own (RFC 9000 9), with a new connection ID.

        Args:
            address: The new address.
            grace: For so many seconds datagrams to the old one still arrive.
        """
        assert self.nat is None
        old = self._address
        self._observer.client_moved(old, address)
        self.network.call_later(grace, lambda: self.network.detach(old))
        self.network.attach(address, self.receive)
        self._address = address
        self.connection.change_connection_id()
        self.connection.send_ping(0)
        self.flush()

    def _send(self, data: bytes, destination: SimulatedAddress) -> None:
        if self.nat is not None:
            self.nat.send(data, destination)
        else:
            super()._send(data, destination)


class ServerEndpoint(Endpoint):
    """The server's end of one connection."""

    def __init__(
        self, name: str, host: ServerHost, observer: Observer, connection: QuicConnection
    ) -> None:
        super().__init__(name, host.network, observer, connection)
        self._host = host

    @property
    def local(self) -> SimulatedAddress:
        """The address that the server listens at."""
        return self._host.address

    @property
    def frozen(self) -> bool:
        """Whether the server is being moved."""
        return self._host.frozen

    def _when_running(self, action: Callable[[], None]) -> None:
        self._host.when_running(action)

    def _handle_event(self, event: events.QuicEvent) -> None:
        self._host.route(event, self)
        super()._handle_event(event)


class ServerHost:
    """A server program with any number of connections.

    Args:
        network: The network.
        observer: Told about every datagram that is sent.
        address: Where it listens.
        configuration: Of its connections.
        connection_type: Their class.
        create_application: Makes the application of a new connection.

    Attributes:
        address: Where it listens now, or listened before it was frozen.
        frozen: Whether it is being moved: it receives nothing and does nothing.
        endpoints: Its connections, oldest first.
    """

    def __init__(
        self,
        network: Network,
        observer: Observer,
        address: SimulatedAddress,
        configuration: QuicConfiguration,
        connection_type: type[QuicConnection],
        create_application: Callable[[Endpoint], Application] | None = None,
    ) -> None:
        self.network = network
        self.address = address
        self.frozen = False
        self.endpoints: list[ServerEndpoint] = []
        self._observer = observer
        self._configuration = configuration
        self._connection_type = connection_type
        self._create_application = create_application
        self._routes: dict[bytes, ServerEndpoint] = {}
        self._deferred: list[Callable[[], None]] = []
        network.attach(address, self.receive)

    def freeze(self) -> None:
        """Stop the program: nobody listens, no timer runs.

        Connections that cannot migrate are closed before.
        """
        for endpoint in self.endpoints:
            connection = endpoint.connection
            if not (isinstance(connection, Connection) and connection.negotiated):
                connection.close(reason_phrase="server migrated")
                endpoint.flush()
        self.network.detach(self.address)
        self.frozen = True

    def resume(self, address: SimulatedAddress) -> None:
        """Let the program run again, at `address`, and tell every connection."""
        self.address = address
        self.frozen = False
        self.network.attach(address, self.receive)
        for endpoint in self.endpoints:
            if endpoint.terminated is None and isinstance(endpoint.connection, Connection):
                if endpoint.connection.negotiated:
                    endpoint.connection.network_switch(address, now=self.network.now)
                endpoint.flush()
        deferred, self._deferred = self._deferred, []
        for action in deferred:
            action()

    def when_running(self, action: Callable[[], None]) -> None:
        """Do something now, or when the server runs again."""
        if self.frozen:
            self._deferred.append(action)
        else:
            action()

    def receive(self, data: bytes, source: SimulatedAddress) -> None:
        """A datagram has arrived: give it to its connection, or start a new one."""
        try:
            header = pull_quic_header(Buffer(data=data), host_cid_length=CONNECTION_ID_LENGTH)
        except ValueError:
            return
        endpoint = self._routes.get(header.destination_cid)
        if (
            endpoint is None
            and header.packet_type is QuicPacketType.INITIAL
            and len(data) >= SMALLEST_MAX_DATAGRAM_SIZE
        ):
            endpoint = self._accept(header.destination_cid)
        if endpoint is not None:
            endpoint.receive(data, source)

    def route(self, event: events.QuicEvent, endpoint: ServerEndpoint) -> None:
        """Keep the routing by connection ID up to date."""
        if isinstance(event, events.ConnectionIdIssued):
            self._routes[event.connection_id] = endpoint
        elif isinstance(event, events.ConnectionIdRetired):
            del self._routes[event.connection_id]
        elif isinstance(event, events.ConnectionTerminated):
            self._routes = {cid: e for cid, e in self._routes.items() if e is not endpoint}

    def _accept(self, original_destination_cid: bytes) -> ServerEndpoint:
        connection = self._connection_type(
            configuration=self._configuration,
            original_destination_connection_id=original_destination_cid,
        )
        if isinstance(connection, Connection):
            connection.server_address = self.address
        endpoint = ServerEndpoint(f"server-{len(self.endpoints)}", self, self._observer, connection)
        if self._create_application is not None:
            endpoint.application = self._create_application(endpoint)
        self.endpoints.append(endpoint)
        self._routes[original_destination_cid] = endpoint
        self._routes[connection.host_cid] = endpoint
        return endpoint
