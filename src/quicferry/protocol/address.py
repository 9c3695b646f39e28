"""Addresses: one endpoint's, and the 24 bytes that the migration frames carry.

A `MigrationAddress` is IPv4 (4 bytes), its port (2), IPv6 (16), its port (2) in network byte order;
a family that is absent is all zero.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

_WIRE = struct.Struct("!4sH16sH")

MIGRATION_ADDRESS_SIZE = _WIRE.size
"""The size of an encoded `MigrationAddress` in bytes."""


@dataclass(frozen=True)
class Address:
    """An IP address and a UDP port."""

    host: IPv4Address | IPv6Address
    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 0xFFFF:
            raise ValueError(f"port {self.port} is not between 0 and 65535")

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address written as ``192.0.2.1:4433`` or ``[2001:db8::1]:4433``.

        Raises:
            ValueError: If `text` has another form.
        """
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        try:
            if not colon or not port.isascii() or not port.isdigit():
                raise ValueError
            parsed = ip_address(host[1:-1] if bracketed else host)
            if bracketed != isinstance(parsed, IPv6Address):
                raise ValueError
            return cls(parsed, int(port))
        except ValueError:
            raise ValueError(
                f"{text!r} is not an address; write 192.0.2.1:4433 or [2001:db8::1]:4433"
            ) from None

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.host.version

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.family == 6 else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class MigrationAddress:
    """An address as migration frames carry it: of one family, or of both.

    Both absent stands for "address unknown" (Synchronized Symmetric).
    """

    ipv4: Address | None = None
    ipv6: Address | None = None

    def __post_init__(self) -> None:
        for address, family in ((self.ipv4, 4), (self.ipv6, 6)):
            if address is not None and address.family != family:
                raise ValueError(f"{address} is not an IPv{family} address")

    @classmethod
    def of(cls, *addresses: Address) -> MigrationAddress:
        """Return the migration address made of one address, or of one of each family.

        Raises:
            ValueError: If two addresses are of the same family.
        """
        by_family = {address.family: address for address in addresses}
        if len(by_family) != len(addresses):
            raise ValueError("a migration address holds at most one address of each family")
        return cls(by_family.get(4), by_family.get(6))

    @classmethod
    def parse(cls, text: str) -> MigrationAddress:
        """Return the migration address written as one `Address`, or as two with a comma.

        Raises:
            ValueError: If `text` has another form.
        """
        return cls.of(*(Address.parse(part.strip()) for part in text.split(",")))

    def for_family(self, family: int) -> Address | None:
        """Return the address of family 4 or 6, or None where it is absent."""
        return self.ipv4 if family == 4 else self.ipv6

    def encode(self) -> bytes:
        """Return the 24 bytes of the wire form."""
        ipv4, ipv6 = self.ipv4, self.ipv6
        return _WIRE.pack(
            ipv4.host.packed if ipv4 else bytes(4),
            ipv4.port if ipv4 else 0,
            ipv6.host.packed if ipv6 else bytes(16),
            ipv6.port if ipv6 else 0,
        )

    @classmethod
    def decode(cls, data: bytes) -> MigrationAddress:
        """Return the address that 24 bytes stand for.

        Raises:
            ValueError: If `data` has another length.
        """
        if len(data) != _WIRE.size:
            raise ValueError(f"a migration address takes {_WIRE.size} bytes, not {len(data)}")
        host4, port4, host6, port6 = _WIRE.unpack(data)
        return cls(
            Address(IPv4Address(host4), port4) if any(data[:6]) else None,
            Address(IPv6Address(host6), port6) if any(data[6:]) else None,
        )

    def __str__(self) -> str:
        return ",".join(str(address) for address in (self.ipv4, self.ipv6) if address) or "unknown"


def refusal(address: Address, server: Address) -> str | None:
    """Return why a client whose server is at `server` must not send to `address`, or None.

    A server must not be able to use its clients to reach what it cannot reach itself, nor to flood
    a third party (RFC 9000 21.5). So it may name

    - addresses that are globally reachable (RFC 6890, and IANA's registries that it has set up);
    - those of its own kind, if it is not at such an address itself: at a private one (RFC 1918,
      RFC 4193) every private one, at a loopback address every loopback one, and so on. One at a
      loopback address may name those of the documentation too, which lead nowhere.

    It may not name what no server is at, such as multicast addresses, or an IPv6 address that
    leads to an IPv4 address which is not global. Ports below 1024 belong to other services: it may
    name 80 and 443, and the one that it has itself.

    Args:
        address: What the server has named, or where one of its packets seems to come from.
        server: Where the client has found the server itself, before it was told of anything. A
            server that listens at all its addresses does not know that; its host is unspecified,
            and every kind may be its own.
    """
    port, kind = address.port, _kind(address.host)
    if port == 0:
        return "its port is 0"
    if kind in _NEVER:
        return f"it is {kind}"
    if port < _FIRST_FREE_PORT and port not in (*_PORTS_OF_HTTP, server.port):
        return f"its port {port} may be that of another service; the server's is {server.port}"
    own = _kind(server.host)
    if kind == _GLOBAL or own in (kind, _UNSPECIFIED) or (kind, own) == (_DOCUMENTATION, _LOOPBACK):
        return None
    return f"it is {kind}, and the server is not at one"


_FIRST_FREE_PORT = 1024
_PORTS_OF_HTTP = (80, 443)

_GLOBAL = "a global address"
_LOOPBACK = "a loopback address"
_LINK_LOCAL = "a link-local address"
_PRIVATE = "a private address"
_DOCUMENTATION = "an address for documentation"
_BENCHMARKING = "an address for benchmarks"
_ASSIGNED = "an address for protocols"
_RESERVED = "a reserved address"
_MULTICAST = "a multicast address"
_UNSPECIFIED = "the unspecified address"
_THIS_NETWORK = 'an address of "this network"'
_BROADCAST = "the broadcast address"
_RELAY = "the address of a relay"
_MAPPED = "an IPv4-mapped IPv6 address"
_COMPATIBLE = "an IPv4-compatible IPv6 address"
_TRANSLATED = "an IPv4 address in the prefix of a translator"
_EMBEDDED = "an IPv6 address with an IPv4 address in it that is not global"
_NEVER = {
    *(_MULTICAST, _UNSPECIFIED, _THIS_NETWORK, _BROADCAST, _RELAY),
    *(_MAPPED, _COMPATIBLE, _TRANSLATED, _EMBEDDED),
}

# IANA's special-purpose address registries (RFC 6890), and for IPv6 also what is allocated at all
# (RFC 4291 2.4). Not what `ipaddress` says: that depends on the version of Python, down to the last
# digit (3.11.9 changed it), and holds some multicast addresses for global.
_KINDS = [
    (ip_network(network), kind)
    for network, kind in (
        ("0.0.0.0/32", _UNSPECIFIED),
        ("0.0.0.0/8", _THIS_NETWORK),  # RFC 1122 3.2.1.3
        ("10.0.0.0/8", _PRIVATE),  # RFC 1918
        ("100.64.0.0/10", "an address shared by customers of a provider"),  # RFC 6598
        ("127.0.0.0/8", _LOOPBACK),
        ("169.254.0.0/16", _LINK_LOCAL),  # RFC 3927
        ("172.16.0.0/12", _PRIVATE),
        ("192.0.0.0/24", _ASSIGNED),  # RFC 6890 2.1
        ("192.0.2.0/24", _DOCUMENTATION),  # RFC 5737
        ("192.88.99.0/24", _RELAY),  # of 6to4, RFC 7526
        ("192.168.0.0/16", _PRIVATE),
        ("198.18.0.0/15", _BENCHMARKING),  # RFC 2544
        ("198.51.100.0/24", _DOCUMENTATION),
        ("203.0.113.0/24", _DOCUMENTATION),
        ("224.0.0.0/4", _MULTICAST),
        ("255.255.255.255/32", _BROADCAST),
        ("240.0.0.0/4", _RESERVED),  # RFC 1112 4
        ("0.0.0.0/0", _GLOBAL),
        ("::/128", _UNSPECIFIED),
        ("::1/128", _LOOPBACK),
        ("::/96", _COMPATIBLE),  # RFC 4291 2.5.5.1
        ("::ffff:0:0/96", _MAPPED),
        ("64:ff9b::/96", _GLOBAL),  # RFC 6052; what is in it is looked at as well
        ("64:ff9b:1::/48", _TRANSLATED),  # RFC 8215
        ("2001::/32", "a Teredo address"),  # RFC 4380
        ("2001:2::/48", _BENCHMARKING),  # RFC 5180
        ("2001::/23", _ASSIGNED),  # RFC 2928
        ("2001:db8::/32", _DOCUMENTATION),  # RFC 3849
        ("2002::/16", "a 6to4 address"),  # RFC 3056
        ("3fff::/20", _DOCUMENTATION),  # RFC 9637
        ("2000::/3", _GLOBAL),
        ("fc00::/7", _PRIVATE),  # RFC 4193
        ("fe80::/10", _LINK_LOCAL),
        ("fec0::/10", "a site-local address"),  # RFC 3879
        ("ff00::/8", _MULTICAST),
        ("::/0", _RESERVED),
    )
]
_NAT64 = IPv6Network("64:ff9b::/96")


def _kind(host: IPv4Address | IPv6Address) -> str:
    """Return what kind of address `host` is."""
    if any(_kind(each) != _GLOBAL for each in _embedded(host)):
        return _EMBEDDED
    return next(kind for network, kind in _KINDS if host in network)


def _embedded(host: IPv4Address | IPv6Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses to which an IPv6 address leads, by a translator or a tunnel."""
    if isinstance(host, IPv4Address):
        return ()
    if host in _NAT64:
        return (IPv4Address(int(host) & 0xFFFFFFFF),)
    return host.teredo or ((host.sixtofour,) if host.sixtofour else ())
