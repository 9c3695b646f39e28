"""One UDP socket: binding, batches of datagrams, segmentation by the kernel.

A `UdpSocket` is bound, not connected: a QUIC peer may change its address at any time. What cannot
be sent is dropped, as the network would do it; QUIC's loss recovery is what repairs that. Runs of
datagrams of one size to one address are handed to the kernel in one call and cut there
(UDP_SEGMENT, udp(7)), which takes a fifth of the time of a call for each; a kernel or network
interface that cannot do so is noticed, and gets one call for each.

A socket bound to a wildcard address receives datagrams for every address of the host, and must
answer from the one that the peer used. So it asks the kernel for the destination address of each
datagram, and names the source address when it sends (IP_PKTINFO, ip(7); RFC 3542 6).
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address

from quicferry.protocol import Address
from quicferry.transport import NetworkAddress, network_address

from .errors import BindError
from .undelivered import UndeliveredReceiver, ask_for_errors, failed_here, read_errors

logger = logging.getLogger("quicferry.io")

Datagram = tuple[bytes, NetworkAddress]
"""A datagram, and the address of the peer that it goes to or came from."""

BUFFER_SIZE = 4 << 20
"""What is asked of the kernel for each direction, in bytes; it may grant less."""

_MAX_DATAGRAM = 65535
_MAX_SEGMENTS = 64
_MAX_RUN = 65000
_UDP_SEGMENT = 103
_IP_PKTINFO = 8
_SEGMENTATION_ERRORS = {errno.EINVAL, errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT}
_Ancillary = tuple[int, int, bytes]


class UdpSocket:
    """A bound, non-blocking UDP socket.

    Args:
        sock: A bound socket; it belongs to this object from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._segmentation = True
        self._undelivered: UndeliveredReceiver | None = None
        self.local: NetworkAddress = sock.getsockname()
        self.is_wildcard = ip_address(self.local[0]).is_unspecified
        self._tells_destinations = False
        if self.is_wildcard:
            self.tell_destinations(True)

    @classmethod
    def bind(cls, address: Address, *, beside: Iterable[UdpSocket] = ()) -> UdpSocket:
        """Return a new socket bound to `address`.

        Args:
            address: Where to listen; port 0 stands for any free one.
            beside: Sockets of the same owner that may overlap with the new one, because one of
                the two is bound to a wildcard address. No other socket can be taken over.

        Raises:
            BindError: If the address cannot be bound; nothing has changed then.
        """
        family = socket.AF_INET6 if address.family == 6 else socket.AF_INET
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as exc:
            raise BindError(address, exc) from exc
        try:
            sock.setblocking(False)
            if family == socket.AF_INET6:
                # Both families in one socket would show clients at IPv4-mapped addresses, which no
                # migration frame can carry.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                sock.setsockopt(socket.SOL_SOCKET, option, BUFFER_SIZE)
            _bind_beside(sock, network_address(address), [other._socket for other in beside])
            return cls(sock)
        except OSError as exc:
            sock.close()
            raise BindError(address, exc) from exc

    def fileno(self) -> int:
        """Return the file descriptor, -1 after `close`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close the socket; what is sent afterwards is dropped."""
        self._socket.close()

    def tell_destinations(self, wanted: bool) -> None:
        """Say with each datagram which of the host's addresses it was sent to, or save that."""
        self._tells_destinations = wanted
        if self._socket.family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, wanted)
        else:
            self._socket.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, wanted)

    def report_undelivered(self, receiver: UndeliveredReceiver | None) -> None:
        """Hand on what is known of datagrams that were not delivered; None ends that.

        Who asks for it has to `receive` when the socket is readable. What the network says may be
        made up by anybody who knows of the socket: the receiver checks that the datagram is its
        own.
        """
        if receiver is None and self._undelivered is None:
            return
        self._undelivered = receiver
        ask_for_errors(self._socket, receiver is not None)

    def receive(self, limit: int) -> Iterator[tuple[bytes, NetworkAddress, str | None]]:
        """Yield up to `limit` datagrams that are waiting.

        Each comes with the address of its sender and, on a wildcard socket that tells it, with the
        host address that it was sent to.
        """
        self._report()
        for _ in range(limit):
            try:
                if self._tells_destinations:
                    data, ancillary, _, peer = self._socket.recvmsg(_MAX_DATAGRAM, 128)
                    yield data, peer, _destination(ancillary)
                else:
                    data, peer = self._socket.recvfrom(_MAX_DATAGRAM)
                    yield data, peer, None
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                # An ICMP error for some earlier datagram; it says nothing about other peers.
                logger.debug("receiving at %s: %s", self.local, exc)

    def send(self, datagrams: Sequence[Datagram], source: str | None = None) -> None:
        """Send datagrams in order; what the kernel does not take is dropped.

        Args:
            datagrams: The datagrams.
            source: On a wildcard socket, the host address to send from.
        """
        ancillary = _source(source) if source is not None and self.is_wildcard else []
        start = 0
        while start < len(datagrams):
            end = _end_of_run(datagrams, start) if self._segmentation else start + 1
            if not (end - start > 1 and self._send_run(datagrams[start:end], ancillary)):
                for data, peer in datagrams[start:end]:
                    self._send_one(data, peer, ancillary)
            start = end

    def _send_one(self, data: bytes, peer: NetworkAddress, ancillary: list[_Ancillary]) -> None:
        try:
            self._put([data], ancillary, peer)
        except OSError as exc:
            self._not_sent(data, peer, exc)

    def _send_run(self, run: Sequence[Datagram], ancillary: list[_Ancillary]) -> bool:
        """Send datagrams of one size in one call; False if they have to be sent one by one."""
        first, peer = run[0]
        size = (socket.SOL_UDP, _UDP_SEGMENT, struct.pack("=H", len(first)))
        try:
            self._put([data for data, _ in run], [*ancillary, size], peer)
        except OSError as exc:
            if exc.errno not in _SEGMENTATION_ERRORS:
                self._not_sent(first, peer, exc)
                return True
            logger.debug("no segmentation at %s: %s", self.local, exc)
            self._segmentation = False
            return False
        return True

    def _put(self, parts: list[bytes], ancillary: list[_Ancillary], peer: NetworkAddress) -> None:
        try:
            self._socket.sendmsg(parts, ancillary, 0, peer)
        except OSError:
            if self._undelivered is None:
                raise
            # The error may be about a datagram before this one, and is over then.
            self._report()
            self._socket.sendmsg(parts, ancillary, 0, peer)

    def _not_sent(self, data: bytes, peer: NetworkAddress, error: OSError) -> None:
        logger.debug("sending from %s to %s: %s", self.local, peer, error)
        undelivered = failed_here(data, peer, error)
        if self._undelivered is not None and undelivered is not None:
            self._undelivered(undelivered)

    def _report(self) -> None:
        if self._undelivered is not None:
            for undelivered in list(read_errors(self._socket)):
                if self._undelivered is not None:
                    self._undelivered(undelivered)


def _end_of_run(datagrams: Sequence[Datagram], start: int) -> int:
    """Return where the run that begins at `start` ends; only its last datagram may be shorter."""
    data, peer = datagrams[start]
    size = room = len(data)
    end = start + 1
    while end < len(datagrams) and end - start < _MAX_SEGMENTS:
        data, other = datagrams[end]
        room += len(data)
        if other != peer or len(data) > size or room > _MAX_RUN:
            break
        end += 1
        if len(data) < size:
            break
    return end


def _bind_beside(sock: socket.socket, address: NetworkAddress, own: list[socket.socket]) -> None:
    """Bind `sock`, where its address may overlap only with the sockets `own`.

    The kernel lets a wildcard and a specific address share a port if SO_REUSEADDR is set on both.
    It is set no longer than that, so that no other program can share the address (socket(7)).
    """
    try:
        sock.bind(address)
        return
    except OSError as exc:
        if exc.errno != errno.EADDRINUSE or not own:
            raise
    if any(other.getsockname()[:2] == address[:2] for other in own):
        raise OSError(errno.EADDRINUSE, "this server is already there")
    sharing = [sock, *own]
    for each in sharing:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    finally:
        for each in sharing:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)


def _destination(ancillary: list[_Ancillary]) -> str | None:
    """Return the destination address of a received datagram."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO):
            return socket.inet_ntop(socket.AF_INET, data[8:12])
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return socket.inet_ntop(socket.AF_INET6, data[:16])
    return None


def _source(host: str) -> list[_Ancillary]:
    """Return the control message that makes a datagram leave from `host`."""
    packed = ip_address(host).packed
    if len(packed) == 16:
        data = struct.pack("=16sI", packed, 0)
        return [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, data)]
    return [(socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=I4s4s", 0, packed, bytes(4)))]
