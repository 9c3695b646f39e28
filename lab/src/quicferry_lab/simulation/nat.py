"""A network address translator in front of a client.

Mappings are those of a cone NAT: an internal address has one external address, whatever it sends
to. What comes back is filtered as `NatKind` says. `Nat.rebind` gives the client another external
address, as NATs do when a mapping times out; the old one goes on working for a grace time.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from .network import Network, Receiver, SimulatedAddress


class NatKind(enum.Enum):
    """Who may send to a client behind the NAT."""

    FULL_CONE = "full-cone"
    """Everybody."""
    ADDRESS_RESTRICTED = "address-restricted"
    """Hosts that the client has sent to."""
    PORT_RESTRICTED = "port-restricted"
    """Addresses, with their port, that the client has sent to."""


@dataclass
class _Mapping:
    external: SimulatedAddress
    expires: float = math.inf
    sent_to: set[SimulatedAddress] = field(default_factory=set)


class Nat:
    """Stands between one client and the network.

    Args:
        network: The network.
        kind: How strictly incoming datagrams are filtered.
        external: The client's first external address.
    """

    def __init__(self, network: Network, kind: NatKind, external: SimulatedAddress) -> None:
        self.kind = kind
        self._network = network
        self._receiver: Receiver | None = None
        self._mappings: list[_Mapping] = []
        self._open(external)

    @property
    def external(self) -> SimulatedAddress:
        """The address under which the client is seen now."""
        return self._mappings[-1].external

    def attach(self, receiver: Receiver) -> None:
        """Hand datagrams that pass the NAT to `receiver`."""
        self._receiver = receiver

    def send(self, data: bytes, destination: SimulatedAddress) -> None:
        """Send a datagram of the client."""
        mapping = self._mappings[-1]
        mapping.sent_to.add(destination)
        self._network.send(data, mapping.external, destination)

    def rebind(self, external: SimulatedAddress, *, grace: float) -> None:
        """From now on the client is seen under another address.

        Args:
            external: The new external address.
            grace: For so many seconds datagrams to the old one still reach the client.
        """
        old = self._mappings[-1]
        old.expires = self._network.now + grace
        self._open(external)

    def _open(self, external: SimulatedAddress) -> None:
        mapping = _Mapping(external)
        self._mappings.append(mapping)

        def receive(data: bytes, source: SimulatedAddress) -> None:
            if self._passes(mapping, source) and self._receiver is not None:
                self._receiver(data, source)

        self._network.attach(external, receive)

    def _passes(self, mapping: _Mapping, source: SimulatedAddress) -> bool:
        if self._network.now > mapping.expires:
            return False
        match self.kind:
            case NatKind.FULL_CONE:
                return True
            case NatKind.ADDRESS_RESTRICTED:
                return any(address[0] == source[0] for address in mapping.sent_to)
            case NatKind.PORT_RESTRICTED:
                return source in mapping.sent_to
