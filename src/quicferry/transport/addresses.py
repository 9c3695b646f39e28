"""Between sockets' addresses, as aioquic passes them through, and quicferry's."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any

from quicferry.protocol import Address

NetworkAddress = Any
"""What ``socket.recvfrom`` returns: ``(host, port)``, or four values for IPv6."""


def address_from_network(address: NetworkAddress) -> Address | None:
    """Return a socket's address, an IPv4-mapped one as IPv4; None if it is no IP address."""
    try:
        return _read(address)
    except TypeError:  # not hashable, so no socket has returned it
        return None


def read_address(address: NetworkAddress) -> Address | None:
    """As `address_from_network`, for an address that is not likely to be seen again."""
    try:
        host = ip_address(address[0].partition("%")[0])
        if isinstance(host, IPv6Address) and host.ipv4_mapped is not None:
            host = host.ipv4_mapped
        return Address(host, address[1])
    except (AttributeError, IndexError, TypeError, ValueError):
        return None


_read = lru_cache(maxsize=4096)(read_address)  # asked for every datagram, of few addresses


def network_address(address: Address, like: NetworkAddress | None = None) -> NetworkAddress:
    """Return the form that sockets take.

    Args:
        address: Where to send.
        like: An address in use on the same socket. A dual-stack socket reports IPv4 peers as
            IPv4-mapped ones, and a link-local address needs the interface of the one in use.
    """
    host, port = str(address.host), address.port
    if address.family == 6:
        scope = like[3] if like is not None and address.host.is_link_local else 0
        return (host, port, 0, scope)
    if like is not None and len(like) == 4:
        return (f"::ffff:{host}", port, 0, 0)
    return (host, port)
