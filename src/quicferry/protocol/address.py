"""Addresses: one endpoint's, and the 24 bytes that the migration frames carry.

A `MigrationAddress` is IPv4 (4 bytes), its port (2), IPv6 (16), its port (2) in network byte order;
a family that is absent is all zero.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

_WIRE = struct.Struct("!4sH16sH")
_BROADCAST = IPv4Address("255.255.255.255")

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


def refusal(address: Address, current: Address) -> str | None:
    """Return why a client whose server is at `current` must not send to `address`, or None.

    The rules are those for a preferred address (RFC 9000 21.5.6): a server must not be able to
    use its clients to reach what it cannot reach itself, or to flood a third party.
    """
    host = address.host
    if address.port == 0:
        return "its port is 0"
    if host.is_unspecified:
        return "it is the unspecified address"
    if host.is_multicast:
        return "it is a multicast address"
    if host == _BROADCAST:
        return "it is the broadcast address"
    if isinstance(host, IPv6Address) and host.ipv4_mapped is not None:
        return "it is an IPv4-mapped IPv6 address"
    if host.is_loopback and not current.host.is_loopback:
        return "it is a loopback address, and the connection is not local"
    if host.is_link_local and not current.host.is_link_local:
        return "it is a link-local address, and the connection is not"
    return None
