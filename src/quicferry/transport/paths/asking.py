"""How often a client asks an address for its server, and what it may spend on that.

Two things bound it. Each PATH_CHALLENGE may cost the server one of the connection IDs that the
client has issued, and some servers end the connection when they have none left. And the address may
be somebody else's: a hostile server can announce any (RFC 9000 21.5.3), withdraw that, and announce
another.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from aioquic.quic.connection import QuicConnection, QuicConnectionId

from ..addresses import NetworkAddress

# So many probe timeouts of the path in use, and so many seconds at least, must be over before the
# first of as many challenges as the server has connection IDs counts for answered or lost. The new
# path may be longer than the one in use.
_UNANSWERED_FOR = 1.5
_UNANSWERED_AT_LEAST = 0.5
_FEW_CONNECTION_IDS = 2
_REMEMBERED_ADDRESSES = 64
# Seconds between two challenges of an address from which packets were overheard
_OVERHEARD_INTERVAL = 0.02


@dataclass
class _Asked:
    """What was asked of one address.

    Attributes:
        at: When it was last challenged, in seconds.
        unanswered: Challenges since it has answered.
        is_heard: Whether something authentic seems to have come from there.
    """

    at: float = -math.inf
    unanswered: int = 0
    is_heard: bool = False


class Pace:
    """When an address may be challenged again.

    Args:
        connection: The client's connection.
    """

    def __init__(self, connection: QuicConnection) -> None:
        self._connection = connection
        self._delivered: set[int] = {0}
        self._provided = 0
        self._asked: dict[NetworkAddress, _Asked] = {}

    def connection_id_delivered(self, sequence_number: int) -> None:
        """Take note that the server has one of the connection IDs that it was sent."""
        kept = {cid.sequence_number for cid in self._connection._host_cids}
        self._delivered = (self._delivered | {sequence_number}) & kept

    def _spare_connection_ids(self) -> int:
        """Return how many of our connection IDs the server has, besides the one that it uses."""
        own = self._connection._host_cids
        return sum(cid.sequence_number in self._delivered for cid in own) - 1

    def connection_id_to_provide(self) -> QuicConnectionId | None:
        """Return one to be sent along with a challenge, where the server may have none to spend.

        Each challenge brings another one, by turns: two of them may cost the server one each before
        it can acknowledge the first.
        """
        if self._spare_connection_ids() >= _FEW_CONNECTION_IDS:
            return None
        own = self._connection._host_cids
        missing = [cid for cid in own if cid.sequence_number not in self._delivered]
        later = [cid for cid in missing if cid.sequence_number > self._provided]
        chosen = next(iter(later or missing), None)
        if chosen is not None:
            self._provided = chosen.sequence_number
        return chosen

    def interval(self, source: NetworkAddress) -> float:
        """Return how many seconds there have to be between two challenges of an address.

        Where nobody is, they cost nothing. A server that is there, and has not answered half as
        many as it has connection IDs, is given twice as long for each of the others: its answer may
        be held up, by congestion or by its limit against amplification (RFC 9000 8.1).
        """
        connection = self._connection
        if not connection.host_cid:
            return 0.0
        spare = self._spare_connection_ids()
        timeout: float = connection._loss.get_probe_timeout()
        window = max(_UNANSWERED_FOR * timeout, _UNANSWERED_AT_LEAST)
        asked = self._asked.get(source)
        doublings = 0
        if asked is not None and asked.is_heard:
            doublings = max(0, asked.unanswered - max(1, spare // 2))
        return window / max(1, spare - 1) * 2.0 ** min(doublings, 16)

    def is_due(self, source: NetworkAddress, now: float, *, is_overheard: bool = False) -> bool:
        """Return whether an address may be challenged now.

        Args:
            source: The address.
            now: The current time in seconds.
            is_overheard: Whether something has come from there. The first time, the challenges
                before that found nobody.
        """
        asked = self._asked.get(source)
        if asked is None:
            return True
        is_first = is_overheard and not asked.is_heard
        pause = _OVERHEARD_INTERVAL if is_first else self.interval(source)
        return now >= asked.at + max(pause, _OVERHEARD_INTERVAL)

    def challenged(
        self,
        source: NetworkAddress,
        now: float,
        known: Collection[object],
        *,
        is_heard: bool = False,
    ) -> None:
        """Take note of a challenge.

        Args:
            source: Where it goes.
            now: The current time in seconds.
            known: Addresses that must not be forgotten.
            is_heard: Whether something has come from there.
        """
        asked = self._asked.setdefault(source, _Asked())
        asked.at = now
        asked.unanswered += 1
        asked.is_heard |= is_heard
        if len(self._asked) > _REMEMBERED_ADDRESSES:
            self._asked = {addr: it for addr, it in self._asked.items() if addr in known}

    def heard(self, source: NetworkAddress) -> None:
        """Take note that the server seems to be at an address that has been challenged."""
        asked = self._asked.get(source)
        if asked is not None and not asked.is_heard:
            asked.is_heard = True
            # Most of the challenges before that found nobody.
            asked.unanswered = min(asked.unanswered, max(1, self._spare_connection_ids() // 2))

    def answered(self, source: NetworkAddress) -> None:
        """Take note that an address has answered a challenge."""
        self._asked.pop(source, None)

    def forget(self) -> None:
        """Begin anew, because the server has moved."""
        self._asked.clear()


class Budget:
    """What a client may send to addresses that have never answered, whatever makes it do so.

    A bucket of packets and one of bytes, which fill slowly. There is one for all addresses of a
    connection, so that a pool counts for one, and an announcement that is withdrawn and made anew
    for the same. What an address was sent that answers is given back.

    Args:
        packets: What may be sent at once.
        packets_per_second: What is added.
        size: What may be sent at once, in bytes.
        bytes_per_second: What is added.
    """

    def __init__(
        self, packets: int, packets_per_second: float, size: int, bytes_per_second: float
    ) -> None:
        self._capacity = (packets, size)
        self._rate = (packets_per_second, bytes_per_second)
        self._packets: float = packets
        self._bytes: float = size
        self._filled_at = -math.inf
        self._spent: dict[NetworkAddress, tuple[int, int]] = {}

    def _fill(self, now: float) -> None:
        pause = max(0.0, now - self._filled_at)
        self._filled_at = now
        self._packets = min(self._capacity[0], self._packets + pause * self._rate[0])
        self._bytes = min(self._capacity[1], self._bytes + pause * self._rate[1])

    def allows(self, size: int, now: float, *, packets: int = 1) -> bool:
        """Return whether something may be sent.

        Args:
            size: Its size in bytes.
            now: The current time in seconds.
            packets: How many packets it has.
        """
        self._fill(now)
        return self._packets >= packets and self._bytes >= size

    def is_ample(self, now: float) -> bool:
        """Return whether more than half is left."""
        self._fill(now)
        return self._packets > self._capacity[0] / 2 and self._bytes > self._capacity[1] / 2

    def spend(self, destination: NetworkAddress, sizes: Collection[int]) -> None:
        """Take note of what was sent.

        Args:
            destination: Where to.
            sizes: The size of each packet in bytes.
        """
        packets, size = len(sizes), sum(sizes)
        self._packets -= packets
        self._bytes -= size
        before = self._spent.pop(destination, (0, 0))
        self._spent[destination] = before[0] + packets, before[1] + size
        if len(self._spent) > _REMEMBERED_ADDRESSES:
            del self._spent[next(iter(self._spent))]

    def answered(self, address: NetworkAddress) -> None:
        """Take note that somebody at an address wants to be sent packets: give them back."""
        packets, size = self._spent.pop(address, (0, 0))
        self._packets = min(self._capacity[0], self._packets + packets)
        self._bytes = min(self._capacity[1], self._bytes + size)


def named_budget() -> Budget:
    """Return what there is for addresses that the server has named: announced, or in a pool."""
    return Budget(packets=600, packets_per_second=1.0, size=66_000, bytes_per_second=100.0)


def unnamed_budget() -> Budget:
    """Return what there is for those that nobody has named, and that packets seem to come from.

    Anybody can copy any number of packets, and send them from any number of addresses. It is not
    to use up what there is for the others.
    """
    return Budget(packets=240, packets_per_second=4.0, size=16_000, bytes_per_second=260.0)
