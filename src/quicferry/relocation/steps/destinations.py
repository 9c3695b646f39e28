"""Where an agent lets servers go.

A host that is trusted with a server is not trusted with every address: one that was broken into
could have an agent receive what clients send to somebody else on its host, a name server for
example. So an agent takes a server to an address of this host and a port that anybody may use, or
one that its configuration names, unless it was told which addresses are meant.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Self

from quicferry.protocol import Address

UNPRIVILEGED = 1024
"""The first port that a program may use without any right (ip(7))."""

_DISCARD_PORT = 9
_FOREIGN_TOO = {
    4: Path("/proc/sys/net/ipv4/ip_nonlocal_bind"),
    6: Path("/proc/sys/net/ipv6/ip_nonlocal_bind"),
}
"""Whether programs may use addresses that this host has not."""


@dataclass(frozen=True)
class Place:
    """An address that servers may come to.

    Attributes:
        host: The IP address.
        port: The port; None for any.
    """

    host: IPv4Address | IPv6Address
    port: int | None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the place that is written as an IP address, or as one with a port.

        Raises:
            ValueError: If it is none, or stands for all addresses of a host.
        """
        try:
            place = cls(ip_address(text.removeprefix("[").removesuffix("]")), None)
        except ValueError:
            address = Address.parse(text)
            place = cls(address.host, address.port)
        if (problem := _no_single_host(place.host)) is not None:
            raise ValueError(f"{text} {problem}; write the address that clients reach")
        return place


@dataclass(frozen=True)
class Destinations:
    """Where an agent lets servers go.

    Attributes:
        places: Nowhere but there; if there are none, to any address of this host.
        ports: Below `UNPRIVILEGED`, where servers may go as well if there are no places.
    """

    places: tuple[Place, ...] = ()
    ports: frozenset[int] = frozenset()

    def with_ports(self, ports: Iterable[int]) -> Destinations:
        """Return the same with further ports."""
        return replace(self, ports=self.ports | frozenset(ports))

    def problem(self, address: Address) -> str | None:
        """Return why a server must not go to an address, and what to do about it."""
        if (wrong := _no_single_host(address.host)) is not None:
            return f"{address} {wrong}; name the one that clients reach: --address HOST:PORT"
        if address.port == 0:
            return f"{address} has no port; name the one that clients reach: --address HOST:PORT"
        if self.places:
            if any(p.host == address.host and p.port in (None, address.port) for p in self.places):
                return None
            why = "this agent was told others"
        elif address.port < UNPRIVILEGED and address.port not in self.ports:
            why = f"ports below {UNPRIVILEGED} have to be allowed"
        elif _allows_foreign(address.family):
            why = "programs on this host may use foreign addresses (net.ipv4.ip_nonlocal_bind)"
        elif not _is_here(address.host):
            why = "it is no address of this host"
        else:
            return None
        return (
            f"this agent lets no server go to {address}: {why}; if it is meant, start the agent "
            f"with --allow-address {address}"
        )


def ports_in(command: Sequence[str]) -> frozenset[int]:
    """Return the ports that a command line names in ``--bind``."""
    found = set()
    for option, value in zip(command, [*command[1:], ""], strict=True):
        name, equals, rest = option.partition("=")
        port = (rest if equals else value).rpartition(":")[2]
        if name == "--bind" and port.isascii() and port.isdecimal():
            found.add(int(port))
    return frozenset(found)


def _no_single_host(host: IPv4Address | IPv6Address) -> str | None:
    embedded = host.ipv4_mapped if isinstance(host, IPv6Address) else None
    for each in (host, embedded):
        if each is not None and each.is_unspecified:
            return "stands for all addresses of a host"
        if each is not None and (each.is_multicast or int(each) == 0xFFFFFFFF):
            return "stands for more than one host"
    return None if embedded is None else "is an IPv4 address in the form of an IPv6 one"


def _is_here(host: IPv4Address | IPv6Address) -> bool:
    family = socket.AF_INET if host.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((str(host), 0))
            sock.connect((str(host), _DISCARD_PORT))  # not to a broadcast address: EACCES
        except OSError as exc:
            return exc.errno not in (errno.EADDRNOTAVAIL, errno.EACCES, errno.EINVAL)
    return True


def _allows_foreign(family: int) -> bool:
    try:
        return _FOREIGN_TOO[family].read_text().strip() == "1"
    except OSError:
        return False
