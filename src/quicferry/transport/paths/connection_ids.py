"""Whether the peer gives new connection IDs for those that were used."""

from __future__ import annotations

from aioquic.quic.connection import QuicConnection

_WAIT = 3
"""Probe timeouts. A peer that replaces what is retired (RFC 9000 5.1.2) has done so by then."""
_WAIT_FOR_THE_FIRST = 3.0
"""Seconds, at least, where a client has given none yet: the first may be lost, and lost again."""


class PeerConnectionIds:
    """The supply of the peer's connection IDs.

    Each new address is used with one of its own (RFC 9000 9.5), where there is one. Some peers
    replace none that is retired: then it is better to go on with what was used before than to be
    out of reach.

    Args:
        connection: The connection.
    """

    def __init__(self, connection: QuicConnection) -> None:
        self._connection = connection
        self._empty_since: float | None = None

    def look(self, now: float) -> None:
        """Take note of how many there are; to be called whenever that may have changed.

        Until the handshake is confirmed the first may still be on their way, or lost. A client does
        not wait for that: its server may have confirmed it, and moved.
        """
        connection = self._connection
        has_some = connection._peer_cid_available or not connection._peer_cid.cid
        is_early = not (
            connection._handshake_complete
            if connection._is_client
            else connection._handshake_confirmed
        )
        if has_some or is_early:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = now

    @property
    def given_up_at(self) -> float | None:
        """When it is clear that none will come, in seconds; None while there are some."""
        if self._empty_since is None:
            return None
        connection = self._connection
        wait: float = _WAIT * connection._loss.get_probe_timeout()
        if not connection._is_client and connection._peer_cid_sequence_numbers == {0}:
            wait = max(wait, _WAIT_FOR_THE_FIRST)
        return self._empty_since + wait

    def have_run_out(self, now: float) -> bool:
        """Return whether there are none, and none is to be expected any more."""
        at = self.given_up_at
        return at is not None and now >= at
