"""Packets that only ask whether somebody is at an address."""

from __future__ import annotations

from aioquic.quic.connection import NEW_CONNECTION_ID_FRAME_CAPACITY
from aioquic.quic.packet_builder import QuicPacketBuilder, QuicSentPacket

_TAG_SIZE = 16
_PATH_CHALLENGE_SIZE = 1 + 8


def probe_size(connection_id: bytes, provided: bytes | None = None) -> int:
    """Return the size in bytes of a 1-RTT datagram with a PATH_CHALLENGE and nothing else.

    Args:
        connection_id: Its destination connection ID.
        provided: What a NEW_CONNECTION_ID in it provides; None if there is none.
    """
    size = 1 + len(connection_id) + 2 + _PATH_CHALLENGE_SIZE + _TAG_SIZE
    return size if provided is None else size + NEW_CONNECTION_ID_FRAME_CAPACITY


class ProbeBuilder(QuicPacketBuilder):
    """A packet builder whose packets may vanish without a trace.

    That nobody answers a probe is expected. So it arms no probe timeout, its loss is no sign of
    congestion, and an answer to it gives no RTT sample for the path in use.
    """

    def flush(self) -> tuple[list[bytes], list[QuicSentPacket]]:
        """Return the datagrams, and their packets for the packet number space."""
        datagrams, packets = super().flush()
        for packet in packets:
            packet.is_ack_eliciting = False
            packet.in_flight = False
        return datagrams, packets
