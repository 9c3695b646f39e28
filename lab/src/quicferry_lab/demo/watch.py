"""From where a client has heard last: its server may be anywhere."""

from __future__ import annotations

from quicferry.io import DatagramLink
from quicferry.transport import NetworkAddress, address_from_network


class Watch:
    """A datagram link that remembers which server address was heard last.

    Args:
        inner: The link that it stands before.

    Attributes:
        server: The address, as text; empty if nothing was heard yet.
    """

    def __init__(self, inner: DatagramLink) -> None:
        self._inner = inner
        self._last: NetworkAddress | None = None
        self.server = ""

    def send(self, data: bytes, addr: NetworkAddress) -> None:
        """Hand a datagram on to the network."""
        self._inner.send(data, addr)

    def deliver(self, data: bytes, addr: NetworkAddress) -> None:
        """Hand a datagram on to the connection."""
        if addr != self._last:
            self._last = addr
            self.server = str(address_from_network(addr))
        self._inner.deliver(data, addr)
