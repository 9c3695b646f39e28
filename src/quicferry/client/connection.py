"""Connecting to a server that may move."""

from __future__ import annotations

import asyncio
import copy
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, TypeVar, overload

from aioquic.asyncio.protocol import QuicStreamHandler
from aioquic.h3.connection import H3_ALPN
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicTokenHandler
from aioquic.tls import SessionTicketHandler

from quicferry.io import ClientLink, ConnectionProtocol, UdpEndpoint, WrapTransport
from quicferry.protocol import Address, ClientMigration
from quicferry.transport import Configuration, Connection, NetworkAddress

from .names import ascii_host, remote_name, tls_name
from .race import first_connected, in_turn

ProtocolT = TypeVar("ProtocolT", bound=ConnectionProtocol)


@overload
def connect(
    host: str,
    port: int,
    *,
    configuration: QuicConfiguration | None = ...,
    session_ticket_handler: SessionTicketHandler | None = ...,
    stream_handler: QuicStreamHandler | None = ...,
    token_handler: QuicTokenHandler | None = ...,
    wait_connected: bool = ...,
    local_port: int = ...,
    wrap_transport: WrapTransport | None = ...,
) -> AbstractAsyncContextManager[ConnectionProtocol]: ...


@overload
def connect(
    host: str,
    port: int,
    *,
    configuration: QuicConfiguration | None = ...,
    create_protocol: Callable[..., ProtocolT],
    session_ticket_handler: SessionTicketHandler | None = ...,
    stream_handler: QuicStreamHandler | None = ...,
    token_handler: QuicTokenHandler | None = ...,
    wait_connected: bool = ...,
    local_port: int = ...,
    wrap_transport: WrapTransport | None = ...,
) -> AbstractAsyncContextManager[ProtocolT]: ...


@asynccontextmanager
async def connect(
    host: str,
    port: int,
    *,
    configuration: QuicConfiguration | None = None,
    create_protocol: Callable[..., Any] = ConnectionProtocol,
    session_ticket_handler: SessionTicketHandler | None = None,
    stream_handler: QuicStreamHandler | None = None,
    token_handler: QuicTokenHandler | None = None,
    wait_connected: bool = True,
    local_port: int = 0,
    wrap_transport: WrapTransport | None = None,
) -> AsyncIterator[Any]:
    """Connect to a QUIC server; used as an asynchronous context manager.

    The connection is closed at the end of the context. Its socket accepts datagrams from any
    address, since the server may move; which of them belong to the connection is what QUIC finds
    out.

    If the name has several addresses, all are tried, one a quarter of a second after the other, and
    the first that answers is used (RFC 8305). An address where the network says that nobody is has
    failed at once; after the handshake, only the server itself can end the connection.

    Args:
        host: The server's name, international or not, or its IP address.
        port: Its UDP port.
        configuration: As in aioquic; a `Configuration` also has the choices about server
            migration. By default the HTTP/3 protocol and every kind of server migration.
        create_protocol: Makes what drives the connection and is returned, once for each address
            that is tried; for HTTP/3 it is `quicferry.client.HttpClient`.
        session_ticket_handler: As in aioquic.
        stream_handler: As in aioquic.
        token_handler: As in aioquic.
        wait_connected: As in aioquic: whether to wait for the handshake. If not, only the first
            address is tried.
        local_port: The local UDP port; 0 for any. One port serves one address of each family.
        wrap_transport: Puts something between the connection and its socket, for example an
            emulated network; see `quicferry.io.link`.

    Raises:
        ConnectFailed: If the handshake does not succeed.
        BindError: If `local_port` cannot be bound.
        OSError: If the name cannot be resolved.
    """
    host = ascii_host(host)
    addresses = await _resolve(host, port)
    configuration = _completed(configuration, host)

    def begin(remote: NetworkAddress) -> _Attempt:
        connection = Connection(
            configuration=configuration,
            session_ticket_handler=session_ticket_handler,
            token_handler=token_handler,
        )
        protocol = create_protocol(connection, stream_handler=stream_handler)
        protocol.remote = remote_name(host, port)
        protocol.hold_migration_events()
        attempt = _Attempt(protocol, remote, local_port, wrap_transport)
        try:
            protocol.connect(remote, transmit=wait_connected)
        except BaseException:
            attempt.close()
            raise
        return attempt

    attempt = await first_connected(addresses, begin) if wait_connected else begin(addresses[0])
    with closing(attempt):
        # In a turn of the event loop to come: whoever gets the connection asks for them first.
        asyncio.get_running_loop().call_soon(attempt.protocol.hand_on_migration_events)
        try:
            yield attempt.protocol
        finally:
            attempt.protocol.close()
            await attempt.protocol.wait_left()


class _Attempt:
    """A connection to one address, and the socket that it uses.

    Raises:
        BindError: If the local port cannot be bound.
    """

    def __init__(
        self,
        protocol: ConnectionProtocol,
        remote: NetworkAddress,
        local_port: int,
        wrap: WrapTransport | None,
    ) -> None:
        self.protocol = protocol
        unspecified = IPv6Address(0) if len(remote) == 4 else IPv4Address(0)
        self._link = ClientLink(protocol, wrap)
        self._endpoint = UdpEndpoint(Address(unspecified, local_port), self._link.received)
        self._link.open(self._endpoint)

    async def wait_connected(self) -> None:
        """Wait until the handshake is complete."""
        await self.protocol.wait_connected()

    def give_up(self) -> None:
        """End the connection; who closes the socket need not wait (RFC 9000 10.2)."""
        self.protocol.close()
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._link.close()
        self._endpoint.close()


async def _resolve(host: str, port: int) -> list[NetworkAddress]:
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    return in_turn([_reachable(address) for *_, address in infos])


def _reachable(address: NetworkAddress) -> NetworkAddress:
    """Return an address, but this host's own for the unspecified one, as TCP understands it.

    What answers from 127.0.0.1 would not be taken for 0.0.0.0.
    """
    host, *rest = address
    if not ip_address(host.partition("%")[0]).is_unspecified:
        return address
    return ("::1" if ":" in host else "127.0.0.1", *rest)


def _completed(configuration: QuicConfiguration | None, host: str) -> QuicConfiguration:
    """Return a configuration for a connection to `host`; the caller's is not changed."""
    if configuration is None:
        configuration = Configuration(alpn_protocols=H3_ALPN, server_migration=ClientMigration())
    else:
        configuration = copy.copy(configuration)
    if configuration.server_name is None:
        configuration.server_name = tls_name(host)
    return configuration
