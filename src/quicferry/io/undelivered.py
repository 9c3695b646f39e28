"""What the network says of datagrams that it could not deliver (ICMP; IP_RECVERR, ip(7)).

The socket stays unconnected, since the peer of a QUIC connection may come to be elsewhere. Linux
keeps what routers and hosts have said in a queue of the socket, each with the address that a
datagram went to and the beginning of that datagram. Other systems tell unconnected sockets nothing.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from quicferry.transport import NetworkAddress

MOST_AT_ONCE = 16
"""Messages that are read in one go."""

_IS_KNOWN = sys.platform == "linux"
_IP_RECVERR = 11
_IPV6_RECVERR = 25
_FROM_ICMP = (2, 3)
_LARGEST = 2048

_UNREACHABLE = {
    errno.EACCES,
    errno.EADDRNOTAVAIL,
    errno.ECONNREFUSED,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EPERM,
}


@dataclass(frozen=True)
class Undelivered:
    """A datagram did not arrive, and no other will that is sent there now.

    Attributes:
        data: Its beginning, as far as it is known; this is what tells that it was sent at all.
        peer: Where it went to.
        errno: Why it did not arrive.
    """

    data: bytes
    peer: NetworkAddress
    errno: int

    def __str__(self) -> str:
        host, port = self.peer[:2]
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        reason = os.strerror(self.errno)
        if self.errno == errno.ECONNREFUSED:
            return f"nobody listens at {where} ({reason})"
        return f"{where} cannot be reached ({reason})"


UndeliveredReceiver = Callable[[Undelivered], None]
"""Takes what the network says of a datagram."""


def ask_for_errors(sock: socket.socket, wanted: bool) -> None:
    """Let the kernel keep a queue of what is undelivered, or throw it away and keep none."""
    if _IS_KNOWN and sock.fileno() >= 0:
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, wanted)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, wanted)


def read_errors(sock: socket.socket) -> Iterator[Undelivered]:
    """Yield what is in the queue."""
    for _ in range(MOST_AT_ONCE if _IS_KNOWN else 0):
        try:
            data, ancillary, _, peer = sock.recvmsg(_LARGEST, 512, socket.MSG_ERRQUEUE)
        except OSError:
            return
        for level, kind, body in ancillary:
            if (level, kind) in (
                (socket.IPPROTO_IP, _IP_RECVERR),
                (socket.IPPROTO_IPV6, _IPV6_RECVERR),
            ):
                code, origin = struct.unpack_from("=IB", body)
                if origin in _FROM_ICMP and code in _UNREACHABLE:
                    yield Undelivered(data, peer, code)


def failed_here(data: bytes, peer: NetworkAddress, error: OSError) -> Undelivered | None:
    """Return what it means that the kernel did not take a datagram; None: it may take the next."""
    if error.errno not in _UNREACHABLE:
        return None
    return Undelivered(data, peer, error.errno)
