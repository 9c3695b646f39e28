"""The client's way between its connection and its socket, and the seam for something in between.

A `DatagramLink` hands datagrams on in both directions, one at a time. What wraps a link is a link
itself, so that wrappers can be stacked:

    class Lossy:
        def __init__(self, inner: DatagramLink) -> None:
            self._inner = inner

        def send(self, data: bytes, addr: NetworkAddress) -> None:
            if random.random() < 0.99:
                self._inner.send(data, addr)

        def deliver(self, data: bytes, addr: NetworkAddress) -> None:
            self._inner.deliver(data, addr)

    async with quicferry.connect(host, port, wrap_transport=Lossy) as client: ...

A link may drop, delay, repeat and reorder, also after its connection has ended: then datagrams go
nowhere. The address is always the server's, as the connection knows it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from quicferry.transport import NetworkAddress

from .endpoint import Received, UdpEndpoint
from .protocol import ConnectionProtocol
from .udp import Datagram, UdpSocket
from .undelivered import Undelivered


class DatagramLink(Protocol):
    """Hands datagrams on between a connection and the network."""

    def send(self, data: bytes, addr: NetworkAddress) -> None:
        """Take a datagram from the connection towards `addr`."""

    def deliver(self, data: bytes, addr: NetworkAddress) -> None:
        """Take a datagram that came from `addr` towards the connection."""


WrapTransport = Callable[[DatagramLink], DatagramLink]
"""Given the link to the real socket and connection, returns the one to use instead."""


class ClientLink:
    """Joins one connection to one endpoint, through a wrapper if there is one.

    Args:
        protocol: The connection.
        wrap: What is to stand between the connection and the socket; None for nothing.
    """

    def __init__(self, protocol: ConnectionProtocol, wrap: WrapTransport | None) -> None:
        self._protocol = protocol
        self._endpoint: UdpEndpoint | None = None
        self._wrapped = wrap(_Ends(self)) if wrap is not None else None
        protocol.attach(self)

    def open(self, endpoint: UdpEndpoint) -> None:
        """Send through `endpoint` from now on.

        Until the handshake is complete, an answer of the network that the server cannot be reached
        ends it. Later that would be trusting whom one does not know (RFC 9000 14.2.1), and a server
        that moves may be away for a while.
        """
        self._endpoint = endpoint
        endpoint.socket.tell_destinations(False)  # the kernel chooses where to send from, too
        endpoint.socket.report_undelivered(self._undelivered)

    def close(self) -> None:
        """Drop everything from now on."""
        self._endpoint = None

    def send(self, datagrams: Sequence[Datagram]) -> None:
        """Send the connection's datagrams."""
        if self._wrapped is not None:
            for data, addr in datagrams:
                self._wrapped.send(data, addr)
        else:
            self.put(datagrams)

    def received(self, socket: UdpSocket, datagrams: Received) -> None:
        """Take datagrams from the socket."""
        if self._wrapped is not None:
            for data, addr, _ in datagrams:
                self._wrapped.deliver(data, addr)
        else:
            for data, addr, _ in datagrams:
                self._protocol.receive(data, addr)
            self._protocol.settle()
        if self._protocol.is_connected:
            socket.report_undelivered(None)

    def put(self, datagrams: Sequence[Datagram]) -> None:
        """Put datagrams on the socket."""
        if self._endpoint is not None:
            self._endpoint.socket.send(datagrams)

    def take(self, data: bytes, addr: NetworkAddress) -> None:
        """Hand a datagram to the connection."""
        if self._endpoint is not None:
            self._protocol.receive(data, addr)
            self._protocol.settle_soon()

    def _undelivered(self, what: Undelivered) -> None:
        connection = self._protocol.connection
        peer = connection.get_peer_address()
        # Nobody who has not seen our packets knows the ID that their headers have.
        is_own = any(name and name in what.data for name in connection.own_connection_ids)
        if is_own and peer is not None and peer[:2] == what.peer[:2]:
            # Not at once: the connection may be sending just now.
            asyncio.get_running_loop().call_soon(self._protocol.unreachable, str(what))


class _Ends:
    """The innermost link: the socket on one side, the connection on the other."""

    def __init__(self, link: ClientLink) -> None:
        self._link = link

    def send(self, data: bytes, addr: NetworkAddress) -> None:
        self._link.put([(data, addr)])

    def deliver(self, data: bytes, addr: NetworkAddress) -> None:
        self._link.take(data, addr)
