"""A server's connections at one endpoint: who gets which datagram.

A datagram belongs to the connection that issued its destination connection ID. An Initial packet
with an unknown one opens a connection, if a ClientHello begins in it and handshakes are accepted at
present; otherwise it is answered with CONNECTION_REFUSED, or a Retry packet. Noise is not answered:
nothing is made of a datagram that no client can have made, and `half_open` bounds what is made of
others. All connections touched by a batch of datagrams process and send once, at its end.

Each connection has a `Berth`: the socket that it sends from. When the endpoint moves, the
connections that move along are berthed at the new socket, one by one; one that is closing stays at
the old socket, where its client looks for it.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from aioquic.asyncio.protocol import QuicStreamHandler
from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicHeader,
    QuicPacketType,
    pull_quic_header,
)
from aioquic.tls import SessionTicketFetcher, SessionTicketHandler

from quicferry.protocol import Address
from quicferry.transport import (
    Connection,
    NetworkAddress,
    Opening,
    SnapshotError,
    read_opening,
    thaw,
)

from .endpoint import DEFAULT_LINGER, Received, UdpEndpoint
from .half_open import (
    DEFAULT_MAX_HALF_OPEN,
    HalfOpen,
    HandshakeCounts,
    LaterParts,
    Verdict,
)
from .knocks import Knock
from .protocol import ConnectionProtocol
from .stateless import (
    AddressValidation,
    StatelessReset,
    answer_unknown_version,
    encode_initial_close,
)
from .udp import Datagram, UdpSocket

_LONG_HEADER = 0x80


class Handshakes(enum.Enum):
    """What happens to clients that want to connect."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    """At the address that the server is about to leave; at its others they are accepted."""
    REFUSED_EVERYWHERE = "refused-everywhere"


class Berth:
    """Where a connection sends from, and is reached."""

    def __init__(self, socket: UdpSocket, host: str | None) -> None:
        self.socket = socket
        self.host = host

    @property
    def local(self) -> NetworkAddress:
        """The server's address as this connection's client sees it, without address translation."""
        if self.host is None:
            return self.socket.local
        return (self.host, *self.socket.local[1:])

    def send(self, datagrams: Sequence[Datagram]) -> None:
        """Send datagrams from here."""
        self.socket.send(datagrams, self.host)

    def receives(self, socket: UdpSocket, host: str | None) -> bool:
        """Whether a datagram that arrived at `socket` for `host` is for a connection that is here.

        At the same wildcard socket it is only if the connection lives at that very address: where
        the server has not moved to yet, it must not answer. Other sockets are those just left.
        """
        return socket is not self.socket or host == self.host


class ConnectionRouter:
    """The connections of a server.

    Args:
        address: The local address; port 0 stands for any free one.
        others: Further local addresses. Connections there stay where they are.
        configuration: For all connections.
        create_protocol: Makes what drives a new connection.
        session_ticket_fetcher: As in aioquic.
        session_ticket_handler: As in aioquic.
        validation: How the addresses of clients are validated before the handshake; by default with
            a key of its own.
        retry: Whether that is done for all clients, and not only while many are connecting.
        max_half_open: How many connections there may be whose handshake is under way.
        resets: How clients are told of connections that nobody knows; None if they are not.
        stream_handler: As in aioquic.
        linger: Seconds for which an address is still listened at after the server has left it.

    Raises:
        BindError: If the address cannot be bound.

    Attributes:
        configuration: Of all connections.
        endpoint: The sockets.
        handshakes: Whether new clients may connect.
        on_open: Called with each new connection before it has received anything.
    """

    def __init__(
        self,
        address: Address,
        *,
        configuration: QuicConfiguration,
        create_protocol: Callable[..., ConnectionProtocol] = ConnectionProtocol,
        session_ticket_fetcher: SessionTicketFetcher | None = None,
        session_ticket_handler: SessionTicketHandler | None = None,
        validation: AddressValidation | None = None,
        retry: bool = False,
        max_half_open: int = DEFAULT_MAX_HALF_OPEN,
        resets: StatelessReset | None = None,
        stream_handler: QuicStreamHandler | None = None,
        linger: float = DEFAULT_LINGER,
        others: Sequence[Address] = (),
    ) -> None:
        self.configuration = configuration
        self._create_protocol = create_protocol
        self._session_ticket_fetcher = session_ticket_fetcher
        self._session_ticket_handler = session_ticket_handler
        self._validation = validation or AddressValidation()
        self._half_open = HalfOpen(max_half_open, always_retry=retry)
        self._later_parts = LaterParts()
        self._resets = resets
        self._given_away: set[bytes] = set()
        self._stream_handler = stream_handler
        self._loop = asyncio.get_running_loop()
        self._routes: dict[bytes, ConnectionProtocol] = {}
        self._connection_ids: dict[ConnectionProtocol, set[bytes]] = {}
        self._berths: dict[ConnectionProtocol, Berth] = {}
        self.handshakes = Handshakes.ACCEPTED
        self.on_open: Callable[[ConnectionProtocol], None] = lambda protocol: None
        self.endpoint = UdpEndpoint(address, self._received, linger=linger, others=others)

    @property
    def protocols(self) -> Collection[ConnectionProtocol]:
        """All connections that have not ended, closing ones included."""
        return self._berths.keys()

    @property
    def handshake_counts(self) -> HandshakeCounts:
        """How many handshakes are under way, and what became of others."""
        return self._half_open.counts

    @property
    def waiting(self) -> int:
        """How many new clients wait for their connection."""
        return self._half_open.waiting

    def berth(self, protocol: ConnectionProtocol) -> Berth:
        """Return where a connection is."""
        return self._berths[protocol]

    def move(self, protocol: ConnectionProtocol, host: str | None) -> NetworkAddress:
        """Berth a connection at the endpoint's socket that can be moved.

        Args:
            protocol: The connection.
            host: Its host address, if the socket is bound to all of the host's.

        Returns:
            The server's address for this connection from now on.
        """
        return self._berth(protocol, self.endpoint.socket, host)

    def is_movable(self, protocol: ConnectionProtocol) -> bool:
        """Whether a connection moves when the server does: it is at no further address."""
        return self._berths[protocol].socket not in self.endpoint.others

    def _berth(
        self, protocol: ConnectionProtocol, socket: UdpSocket, host: str | None
    ) -> NetworkAddress:
        berth = Berth(socket, host if socket.is_wildcard else None)
        self._berths[protocol] = berth
        protocol.attach(berth)
        return berth.local

    def adopt(self, snapshot: bytes, state: bytes) -> ConnectionProtocol:
        """Make a connection of a snapshot; it has to be moved to a berth, and be activated.

        Args:
            snapshot: What `quicferry.transport.freeze` returned.
            state: What `ConnectionProtocol.export_state` returned.

        Raises:
            SnapshotError: If it cannot go on here; nothing has changed then.
        """
        now = self._loop.time()
        connection = thaw(snapshot, configuration=self.configuration, now=now)
        connection_ids = connection.own_connection_ids
        if any(cid in self._routes for cid in connection_ids):
            raise SnapshotError("the connection is here already")
        protocol = self._create_protocol(connection, stream_handler=self._stream_handler)
        protocol.resume(state)
        self.move(protocol, None)
        self._welcome(protocol, connection_ids)
        return protocol

    def forget(self, protocol: ConnectionProtocol) -> None:
        """Route nothing to a connection any more; it may live elsewhere."""
        self._given_away.update(self._connection_ids.get(protocol, ()))
        self._terminated(protocol)

    def deliver(self, data: bytes, addr: NetworkAddress) -> None:
        """Take in a datagram that another host has received for a connection of this server."""
        if not data or data[0] & _LONG_HEADER:
            return  # of a handshake, which no connection that was carried has to do with any more
        protocol = self._routes.get(data[1 : 1 + self.configuration.connection_id_length])
        if protocol is not None:
            protocol.receive(data, addr)
            if not protocol.connection.is_sealed:
                protocol.settle_soon()

    def close(self) -> None:
        """Close the sockets; connections that are still open find no way out any more."""
        self.endpoint.close()
        self._half_open.close()
        self._routes.clear()
        self._connection_ids.clear()
        self._berths.clear()

    def _received(self, socket: UdpSocket, datagrams: Received) -> None:
        touched: dict[ConnectionProtocol, None] = {}
        for data, addr, host in datagrams:
            protocol = self._route(socket, data, addr, host)
            if protocol is not None and self._berths[protocol].receives(socket, host):
                protocol.receive(data, addr)
                touched[protocol] = None
        for protocol in touched:
            protocol.settle()

    def _route(
        self, socket: UdpSocket, data: bytes, addr: NetworkAddress, host: str | None
    ) -> ConnectionProtocol | None:
        """Return the connection that a datagram belongs to."""
        if data and not data[0] & _LONG_HEADER:
            cid = data[1 : 1 + self.configuration.connection_id_length]
            if (protocol := self._routes.get(cid)) is None:
                self._reset(socket, data, cid, addr, host)
            return protocol
        answer = answer_unknown_version(data, self.configuration.supported_versions)
        if answer is not None:
            socket.send([(answer, addr)], host)
            return None
        try:
            header = pull_quic_header(
                Buffer(data=data), host_cid_length=self.configuration.connection_id_length
            )
        except ValueError:
            return None
        if header.packet_type == QuicPacketType.VERSION_NEGOTIATION:
            return None  # answering it could make two servers answer each other forever
        if header.version not in self.configuration.supported_versions:
            return None  # too small for an answer
        if header.destination_cid in self._routes:
            return self._routes[header.destination_cid]
        if header.packet_type == QuicPacketType.INITIAL:
            answer = self._knock(socket, data, header, addr, host)
            if answer is not None:
                socket.send([(answer, addr)], host)
        return None

    def _reset(
        self, socket: UdpSocket, data: bytes, cid: bytes, addr: NetworkAddress, host: str | None
    ) -> None:
        """Tell a client that its connection is gone, if that is certain.

        It is not while the server moves or connections are carried: then this socket may be one
        that was left, or the connection may not have arrived yet.
        """
        if (
            self._resets is None
            or self._refuses(socket)
            or len(cid) < self.configuration.connection_id_length
            or cid in self._given_away
        ):
            return
        answer = self._resets.answer(data, Berth(socket, host).local, cid)
        if answer is not None:
            socket.send([(answer, addr)], host)

    def _refuses(self, socket: UdpSocket) -> bool:
        """Whether nobody may connect at a socket now."""
        match self.handshakes:
            case Handshakes.ACCEPTED:
                return self.endpoint.is_left(socket)
            case Handshakes.REFUSED:
                return socket not in self.endpoint.others
            case Handshakes.REFUSED_EVERYWHERE:
                return True

    def _knock(
        self,
        socket: UdpSocket,
        data: bytes,
        header: QuicHeader,
        addr: NetworkAddress,
        host: str | None,
    ) -> bytes | None:
        """Let a new client wait for its connection, or return the answer that it gets instead."""
        counts = self._half_open.counts
        opening = read_opening(data, header)
        if opening is Opening.NOTHING:
            counts.dropped += 1
            return None
        cid = header.destination_cid
        if self._half_open.is_waiting((cid, addr)):
            self._later_parts.hold(cid, addr, data)
            return None
        if self._refuses(socket):
            counts.refused += 1
            return encode_initial_close(header, QuicErrorCode.CONNECTION_REFUSED)
        try:
            original = self._validation.original_destination(header, addr)
        except ValueError:
            counts.refused += 1
            return encode_initial_close(header, QuicErrorCode.INVALID_TOKEN)
        match self._half_open.judge(addr, is_validated=original is not None):
            case Verdict.RETRY:
                counts.retried += 1
                return self._validation.challenge(header, addr)
            case Verdict.REFUSE:
                counts.refused += 1
                return encode_initial_close(header, QuicErrorCode.CONNECTION_REFUSED)
        if opening is Opening.LATER_PART:
            self._later_parts.hold(cid, addr, data)
            return None
        if not self._half_open.waiting:
            self._loop.call_soon(self._open_next)
        self._half_open.wait(Knock(socket, data, header, addr, host, original))
        return None

    def _open_next(self) -> None:
        """Open the connection whose turn it is, and leave others to the next turn of the loop."""
        knock = self._half_open.take()
        if knock is None:
            return
        if self._half_open.waiting:
            self._loop.call_soon(self._open_next)
        known = self._routes.get(knock.header.destination_cid)
        if known is not None:  # the same packet has come from another address, too
            known.receive(knock.data, knock.source)
            known.settle_soon()
        elif not self._refuses(knock.socket):
            self._open(knock)
        elif knock.socket.fileno() >= 0:
            self._half_open.counts.refused += 1
            answer = encode_initial_close(knock.header, QuicErrorCode.CONNECTION_REFUSED)
            knock.socket.send([(answer, knock.source)], knock.host)

    def _open(self, knock: Knock) -> None:
        cid, is_validated = knock.header.destination_cid, knock.original is not None
        connection = Connection(
            configuration=self.configuration,
            original_destination_connection_id=knock.original if is_validated else cid,
            retry_source_connection_id=cid if is_validated else None,
            session_ticket_fetcher=self._session_ticket_fetcher,
            session_ticket_handler=self._session_ticket_handler,
        )
        protocol = self._create_protocol(connection, stream_handler=self._stream_handler)
        connection.server_address = self._berth(protocol, knock.socket, knock.host)
        self._half_open.add(protocol, knock)
        self._welcome(protocol, (cid, connection.host_cid))
        for data in (knock.data, *self._later_parts.take(*knock.name)):
            protocol.receive(data, knock.source)
        protocol.settle()

    def _welcome(self, protocol: ConnectionProtocol, connection_ids: Iterable[bytes]) -> None:
        if self._resets is not None:
            protocol.connection.derive_reset_tokens(self._resets.token)
        protocol.follow_connection_ids(
            issued=partial(self._issued, protocol),
            retired=partial(self._retired, protocol),
            terminated=partial(self._terminated, protocol),
        )
        self._connection_ids[protocol] = set()
        for cid in connection_ids:
            self._issued(protocol, cid)
        self.on_open(protocol)

    def _issued(self, protocol: ConnectionProtocol, cid: bytes) -> None:
        if protocol in self._connection_ids:
            self._connection_ids[protocol].add(cid)
            self._routes[cid] = protocol

    def _retired(self, protocol: ConnectionProtocol, cid: bytes) -> None:
        if protocol in self._connection_ids:
            self._connection_ids[protocol].discard(cid)
            self._routes.pop(cid, None)

    def _terminated(self, protocol: ConnectionProtocol) -> None:
        self._berths.pop(protocol, None)
        self._half_open.remove(protocol)
        for cid in self._connection_ids.pop(protocol, ()):
            del self._routes[cid]
