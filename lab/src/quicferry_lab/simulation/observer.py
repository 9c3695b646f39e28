"""Sees every packet before it is encrypted, and remembers what must not happen twice.

Two rules of QUIC are easy to break when connections move, and nobody on the network would notice:
a packet number must not be used twice with a key (RFC 9001 5.3; it gives the key away), and a
connection ID must not be used with two addresses (RFC 9000 9.5; it lets the path be linked).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

from aioquic.quic.crypto import CryptoContext
from aioquic.quic.packet import is_long_header

from .errors import InvariantError
from .network import SimulatedAddress

CONNECTION_ID_LENGTH = 8
"""Of all connections in a simulation (aioquic's default)."""


@dataclass(frozen=True)
class SentPacket:
    """A packet as its sender built it."""

    sender: str
    secret: bytes
    number: int
    header: bytes
    payload: bytes

    @property
    def is_1rtt(self) -> bool:
        """Whether the packet has a short header."""
        return not is_long_header(self.header[0])


class Observer:
    """Records packets and checks the rules.

    Attributes:
        sender: The name of the endpoint that is sending just now; set by the endpoint.
        packets: Every packet that was built, in order.
        may_reuse: Whether an endpoint of this name may use a connection ID with another address
            now: because it is a double of one that does, or its peer has left it no other.
    """

    def __init__(self) -> None:
        self.sender = ""
        self.may_reuse: Callable[[str], bool] = lambda sender: False
        self.packets: list[SentPacket] = []
        self._numbers: dict[bytes, set[int]] = defaultdict(set)
        self._uses: dict[tuple[str, bytes], set[tuple[SimulatedAddress, SimulatedAddress]]]
        self._uses = defaultdict(set)
        self._forbidden: dict[tuple[str, bytes], set[SimulatedAddress]] = defaultdict(set)
        self._unheard: set[SimulatedAddress] = set()
        self._aliases: dict[SimulatedAddress, SimulatedAddress] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch all connections of this process."""
        encrypt_packet = CryptoContext.encrypt_packet

        def watched(
            crypto: CryptoContext, plain_header: bytes, plain_payload: bytes, packet_number: int
        ) -> bytes:
            self._packet_encrypted(crypto, plain_header, plain_payload, packet_number)
            return encrypt_packet(crypto, plain_header, plain_payload, packet_number)

        with patch.object(CryptoContext, "encrypt_packet", watched):
            yield

    def forget(self) -> None:
        """Forget the packets so far."""
        self.packets.clear()
        self._numbers.clear()
        self._uses.clear()

    def address_changed(self, old: SimulatedAddress, new: SimulatedAddress) -> None:
        """A NAT gave a client a new address.

        Its peer cannot know that this is not a migration of the client, and may go on with the
        connection ID that it uses (RFC 9000 9.5): to it both are one address.
        """
        self._aliases[new] = self._aliases.get(old, old)

    def client_moved(self, old: SimulatedAddress, new: SimulatedAddress) -> None:
        """A client moved to another address of its own, with another connection ID.

        From the moment its peer knows, none that went to the old address may go to the new one. A
        peer that cannot validate the new address goes back to the old one, and forth again when it
        hears more from there: that is a matter of later connection IDs, and as with a NAT.
        """
        self.address_changed(old, new)
        self._unheard.add(new)

    def datagram_received(self, receiver: str, source: SimulatedAddress) -> None:
        """An endpoint receives a datagram."""
        if source in self._unheard:
            self._unheard.remove(source)
            for (sender, connection_id), uses in self._uses.items():
                if sender == receiver and uses:
                    self._forbidden[sender, connection_id].add(source)

    def datagram_sent(
        self, sender: str, local: SimulatedAddress, destination: SimulatedAddress, data: bytes
    ) -> None:
        """An endpoint sends a datagram: note which connection ID it uses between which addresses.

        Raises:
            InvariantError: It has used it between others.
        """
        if is_long_header(data[0]):
            return
        connection_id = data[1 : 1 + CONNECTION_ID_LENGTH]
        uses = self._uses[sender, connection_id]
        uses.add((local, self._aliases.get(destination, destination)))
        forbidden = self._forbidden[sender, connection_id]
        if (len(uses) > 1 or destination in forbidden) and not self.may_reuse(sender):
            raise InvariantError(
                f"{sender} used connection ID {connection_id.hex()} between {local} and "
                f"{destination}, and before, "
                + " and ".join(f"between {a} and {b}" for a, b in sorted(uses))
            )

    def _packet_encrypted(
        self, crypto: CryptoContext, header: bytes, payload: bytes, number: int
    ) -> None:
        assert crypto.secret is not None
        numbers = self._numbers[crypto.secret]
        if number in numbers:
            raise InvariantError(f"{self.sender} used packet number {number} twice with one key")
        numbers.add(number)
        self.packets.append(SentPacket(self.sender, crypto.secret, number, header, payload))


class Guard(Observer):
    """Checks the same rules for runs that are long: it keeps no packets.

    It expects packet numbers to rise with each key, which is more than the rule demands, and all
    that this project's connections do.
    """

    def __init__(self) -> None:
        super().__init__()
        self._largest: dict[bytes, int] = {}

    def forget(self) -> None:
        """Forget the packets so far."""
        super().forget()
        self._largest.clear()

    def _packet_encrypted(
        self, crypto: CryptoContext, header: bytes, payload: bytes, number: int
    ) -> None:
        assert crypto.secret is not None
        if number <= self._largest.get(crypto.secret, -1):
            raise InvariantError(
                f"{self.sender} used packet number {number} with a key, and one as large before"
            )
        self._largest[crypto.secret] = number
