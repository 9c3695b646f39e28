"""Clients that wait to be let in: one after the other, and by turns.

To begin a handshake takes milliseconds of cryptography. If a hundred want that at once, whoever is
connected already would wait for all of them. So they are let in one for each turn of the event
loop, and those of one network wait for each other only.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from aioquic.quic.packet import QuicHeader

from quicferry.transport import NetworkAddress

from .udp import UdpSocket

_SITE = 64
"""Bits of an IPv6 address that one site has for itself (RFC 6177)."""


@dataclass(frozen=True)
class Knock:
    """A datagram that begins a connection, and waits for that.

    Attributes:
        socket: Where it has arrived.
        data: The datagram.
        header: Of its first packet.
        source: Its sender.
        host: The host address that it was sent to, at a wildcard socket.
        original: The connection ID that the client had chosen before a Retry packet; None if there
            was none, so that its address is not validated.
    """

    socket: UdpSocket
    data: bytes
    header: QuicHeader
    source: NetworkAddress
    host: str | None
    original: bytes | None

    @property
    def name(self) -> tuple[bytes, NetworkAddress]:
        """What all datagrams of this attempt have in common."""
        return self.header.destination_cid, self.source


class Knocks:
    """Those that wait."""

    def __init__(self) -> None:
        self._of: dict[bytes, deque[Knock]] = {}
        self._names: set[tuple[bytes, NetworkAddress]] = set()

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: tuple[bytes, NetworkAddress]) -> bool:
        return name in self._names

    def put(self, knock: Knock) -> None:
        """Let one wait."""
        self._names.add(knock.name)
        self._of.setdefault(network_of(knock.source), deque()).append(knock)

    def take(self) -> Knock:
        """Return whose turn it is; the next turn is that of another network, if there is one."""
        network = next(iter(self._of))
        waiting = self._of.pop(network)
        knock = waiting.popleft()
        if waiting:
            self._of[network] = waiting
        self._names.discard(knock.name)
        return knock


def network_of(source: NetworkAddress) -> bytes:
    """Return what one client cannot easily have many of: an IPv4 address, or the /64 of another."""
    host = ip_address(source[0])
    if isinstance(host, IPv6Address):
        return host.packed[: _SITE // 8] if host.ipv4_mapped is None else host.ipv4_mapped.packed
    return host.packed
