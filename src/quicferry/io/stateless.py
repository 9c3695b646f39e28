"""Answers to datagrams that belong to no connection.

Version negotiation (RFC 9000 6), address validation by Retry (RFC 9000 8.1.2), and an Initial
packet that closes what the client has just tried to open (RFC 9000 10.2.3). None of them keeps any
state; each answer is smaller than the datagram that it answers.
"""

from __future__ import annotations

import os

from aioquic.buffer import Buffer, BufferReadError
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    encode_quic_version_negotiation,
)
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.retry import QuicRetryTokenHandler

from quicferry.transport import NetworkAddress

_CLOSE_CAPACITY = 64


def encode_initial_close(header: QuicHeader, error_code: QuicErrorCode) -> bytes:
    """Return the datagram that refuses the connection which an Initial packet wants to open.

    Its keys follow from the connection ID that the client chose, so no connection is needed.
    """
    assert header.version is not None, "an Initial packet has a version"
    crypto = CryptoPair()
    crypto.setup_initial(cid=header.destination_cid, is_client=False, version=header.version)
    builder = QuicPacketBuilder(
        host_cid=header.destination_cid,
        is_client=False,
        max_datagram_size=SMALLEST_MAX_DATAGRAM_SIZE,
        peer_cid=header.source_cid,
        version=header.version,
    )
    builder.start_packet(QuicPacketType.INITIAL, crypto)
    frame = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=_CLOSE_CAPACITY)
    frame.push_uint_var(error_code)
    frame.push_uint_var(QuicFrameType.PADDING)
    frame.push_uint_var(0)
    datagrams, _ = builder.flush()
    return datagrams[0]


def answer_unknown_version(data: bytes, supported: list[int]) -> bytes | None:
    """Return a Version Negotiation packet for a datagram of an unknown version.

    What of it is known is the same for all versions (RFC 8999 5.1). Connection IDs may be longer
    than in any version that is known (RFC 9000 6.1), which is why aioquic does not read them.

    Args:
        data: A datagram that begins with a long header.
        supported: The versions that are known.

    Returns:
        The answer; None if there is none, because the version is known, or the datagram is itself
        about versions, too small (RFC 9000 5.2.2) or damaged.
    """
    buf = Buffer(data=data)
    try:
        buf.pull_uint8()
        version = buf.pull_uint32()
        destination_cid = buf.pull_bytes(buf.pull_uint8())
        source_cid = buf.pull_bytes(buf.pull_uint8())
    except BufferReadError:
        return None
    is_asked = version not in (QuicProtocolVersion.NEGOTIATION, *supported)
    if not is_asked or len(data) < SMALLEST_MAX_DATAGRAM_SIZE:
        return None
    return encode_quic_version_negotiation(
        source_cid=destination_cid, destination_cid=source_cid, supported_versions=supported
    )


class AddressValidation:
    """Validates client addresses with Retry packets before a connection is made for them."""

    def __init__(self) -> None:
        self._tokens = QuicRetryTokenHandler()

    def challenge(self, header: QuicHeader, addr: NetworkAddress, now: float) -> bytes:
        """Return the Retry packet for an Initial packet without a token."""
        assert header.version is not None, "an Initial packet has a version"
        source_cid = os.urandom(8)
        token = self._tokens.create_token(
            address=addr,
            original_destination_connection_id=header.destination_cid,
            retry_source_connection_id=source_cid,
            now=now,
        )
        return encode_quic_retry(
            version=header.version,
            source_cid=source_cid,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )

    def original_destination(self, header: QuicHeader, addr: NetworkAddress, now: float) -> bytes:
        """Return the connection ID that the client had chosen before the Retry packet.

        Raises:
            ValueError: If the token is not one for this client, or has expired.
        """
        return self._tokens.validate_token(
            address=addr, destination_cid=header.destination_cid, token=header.token, now=now
        )
