"""How long keys are used: not until the proof that they are safe ends (RFC 9001 6.6).

A key for AES-GCM may encrypt 2^23 packets, and a connection that lives for days gets there. aioquic
updates keys only when it is told to.
"""

from __future__ import annotations

LIFETIME = 1 << 22
"""Packets that one key encrypts: half of what it may, for those that a hand-over did not count."""


class KeyAge:
    """Says when the keys of a connection have to be updated.

    It is due when packet numbers pass a multiple of `LIFETIME`. So nothing has to be counted, nor
    be carried to another host. It waits until the peer has acknowledged a packet with the present
    keys (RFC 9001 6.1): one that is two steps behind would not follow.
    """

    def __init__(self) -> None:
        self._phase: int | None = None
        self._first = 0
        self._last: int | None = None
        self._is_old = False

    def is_due(self, packet_number: int, phase: int, acknowledged: int) -> bool:
        """Return whether the next packet should be the first with new keys.

        Args:
            packet_number: Of the next 1-RTT packet.
            phase: The phase of the present keys.
            acknowledged: The largest number that the peer has acknowledged.
        """
        if phase != self._phase:
            self._phase, self._first, self._is_old = phase, packet_number, False
        last, self._last = self._last, packet_number
        self._is_old |= last is not None and last // LIFETIME != packet_number // LIFETIME
        return self._is_old and acknowledged >= self._first
