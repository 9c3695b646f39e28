"""The sockets of an endpoint: one in use, and those that it has just left.

`UdpEndpoint.rebind` moves an endpoint to another address in three steps that cannot fail halfway:
the new socket is bound first, then everything is sent from it, and the old one goes on receiving
for the time `linger`, so that no datagram is lost that was under way to it. An endpoint may return
to an address that it still lingers at.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Iterable, Sequence

from quicferry.protocol import Address
from quicferry.transport import NetworkAddress, address_from_network

from .errors import BindError
from .udp import UdpSocket

Received = Iterable[tuple[bytes, NetworkAddress, str | None]]
"""Datagrams with their sender and, on a wildcard socket, the host address they were sent to."""

Receiver = Callable[[UdpSocket, Received], None]
"""Takes the datagrams of one wake-up from the socket where they arrived."""

BATCH = 64
"""How many datagrams are read before other tasks of the event loop get their turn."""

DEFAULT_LINGER = 1.0
"""Seconds that a socket which is no longer used goes on receiving."""


class UdpEndpoint:
    """A UDP endpoint of the running event loop, which can change its address.

    Args:
        address: The local address; port 0 stands for any free one.
        receiver: Called with the datagrams that arrive, at the current address or at one that the
            endpoint has left less than `linger` seconds ago.
        linger: Seconds for which datagrams to an address left by `rebind` are still received.
        others: Further local addresses, which never change; port 0 stands for that of `address`.

    Raises:
        BindError: If an address cannot be bound.

    Attributes:
        socket: At the address that can change.
        others: The sockets at the further addresses.
    """

    def __init__(
        self,
        address: Address,
        receiver: Receiver,
        *,
        linger: float = DEFAULT_LINGER,
        others: Sequence[Address] = (),
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._receiver = receiver
        self._linger = linger
        self._lingering: dict[UdpSocket, asyncio.TimerHandle] = {}
        self.socket, *self.others = _bind_all(address, others)
        for socket in (self.socket, *self.others):
            self._listen(socket)

    @property
    def address(self) -> Address:
        """The local address; unspecified where the socket is bound to all of the host's."""
        address = address_from_network(self.socket.local)
        assert address is not None, "a bound socket has an address"
        return address

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The local addresses in use; the first is the one that can change."""
        sockets = (self.socket, *self.others)
        found = [address_from_network(socket.local) for socket in sockets]
        return tuple(address for address in found if address is not None)

    def is_left(self, socket: UdpSocket) -> bool:
        """Whether a socket is only read for what is still under way to it."""
        return socket is not self.socket and socket not in self.others

    def bind(self, address: Address) -> UdpSocket:
        """Return a socket bound to `address` for `switch_to`; nothing else changes.

        Raises:
            BindError: If the address cannot be bound, or is the current one.
        """
        for lingering in self._lingering:
            if address_from_network(lingering.local) == address:
                return lingering
        return UdpSocket.bind(address, beside=[self.socket, *self.others, *self._lingering])

    def check(self, address: Address) -> None:
        """Find out whether `bind` is possible now; nothing is kept.

        A socket that is bound beside a wildcard one, and not read, would swallow datagrams.

        Raises:
            BindError: As `bind`.
        """
        socket = self.bind(address)
        if socket not in self._lingering:
            socket.close()

    def switch_to(self, socket: UdpSocket) -> None:
        """Use a socket of `bind` from now on; the one used so far lingers."""
        handle = self._lingering.pop(socket, None)
        if handle is None:
            self._listen(socket)
        else:
            handle.cancel()
        left, self.socket = self.socket, socket
        self._lingering[left] = self._loop.call_later(self._linger, self._leave, left)

    def rebind(self, address: Address) -> None:
        """Move to another local address.

        Raises:
            BindError: If the address cannot be bound; the endpoint goes on where it is.
        """
        self.switch_to(self.bind(address))

    def settle_at(self, address: Address) -> None:
        """Move to another local address, and linger nowhere.

        Raises:
            BindError: If the address cannot be bound; the endpoint goes on where it is.
        """
        if address != self.address:
            self.rebind(address)
        self._leave_all()

    def close(self) -> None:
        """Close all sockets. Calling it again does nothing."""
        self._leave_all()
        for socket in (self.socket, *self.others):
            self._close(socket)

    def _leave_all(self) -> None:
        for left, handle in self._lingering.items():
            handle.cancel()
            self._close(left)
        self._lingering.clear()

    def _leave(self, left: UdpSocket) -> None:
        del self._lingering[left]
        self._close(left)

    def _listen(self, socket: UdpSocket) -> None:
        self._loop.add_reader(socket.fileno(), self._readable, socket)

    def _close(self, socket: UdpSocket) -> None:
        if socket.fileno() >= 0:
            self._loop.remove_reader(socket.fileno())
            socket.close()

    def _readable(self, socket: UdpSocket) -> None:
        self._receiver(socket, socket.receive(BATCH))


def _bind_all(address: Address, others: Sequence[Address]) -> list[UdpSocket]:
    """Return sockets at all of these addresses.

    Raises:
        BindError: If one cannot be bound; none is then.
    """
    for tries_left in reversed(range(_TRIES)):
        sockets = [UdpSocket.bind(address)]
        port = sockets[0].local[1]
        try:
            for other in others:
                at = Address(other.host, other.port or port)
                sockets.append(UdpSocket.bind(at, beside=sockets))
        except BindError as exc:
            for socket in sockets:
                socket.close()
            if address.port or exc.errno != errno.EADDRINUSE or not tries_left:
                raise
        else:
            return sockets
    raise AssertionError("the last try returns or raises")


_TRIES = 20
"""How often a free port is looked for that is free at all addresses."""
