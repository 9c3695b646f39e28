"""Answers to datagrams that belong to no connection.

Version negotiation (RFC 9000 6), address validation by Retry (RFC 9000 8.1.2), an Initial packet
that closes what the client has just tried to open (RFC 9000 10.2.3), and the stateless reset (RFC
9000 10.3). None of them keeps any state of a client; each answer is smaller than the datagram that
it answers.
"""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Callable
from ipaddress import ip_address

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
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from quicferry.transport import NetworkAddress

_CLOSE_CAPACITY = 64

_NONCE = 12
_RETRY_CID = 8
_TOKEN_LIFETIME = 30.0
"""Seconds: clients bring the token of a Retry packet at once (RFC 9000 8.1.3)."""

_RESET_TOKEN = 16
_SMALLEST_RESET = 21
_RESET_SIZE = 42
"""Bytes: below, a reset could be told from packets of the smallest size (RFC 9000 10.3)."""
_RESET_VARIES = 8
_RESETS_AT_ONCE = 100.0
_RESETS_A_SECOND = 100.0


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


def derive_key(secret: bytes, purpose: str) -> bytes:
    """Return a key of 32 bytes for one purpose (HKDF, RFC 5869)."""
    return HKDF(SHA256(), 32, salt=None, info=b"quicferry " + purpose.encode()).derive(secret)


class AddressValidation:
    """Validates client addresses with Retry packets before a connection is made for them.

    A token holds, encrypted and authenticated: when it was made, for which client address, and both
    connection IDs. Hosts that share a secret take each other's. NEW_TOKEN is never sent, so all
    tokens of this key are of Retry packets (RFC 9000 8.1.1).

    Args:
        secret: What the key is derived from; None for a key that only this object has.
    """

    def __init__(self, secret: bytes | None = None) -> None:
        self._aead = AESGCM(derive_key(secret or os.urandom(32), "retry token"))

    def challenge(self, header: QuicHeader, addr: NetworkAddress) -> bytes:
        """Return the Retry packet for an Initial packet without a token."""
        assert header.version is not None, "an Initial packet has a version"
        source_cid = os.urandom(_RETRY_CID)
        made_at = int(time.time() * 1000).to_bytes(8, "big")
        nonce = os.urandom(_NONCE)
        content = made_at + source_cid + _packed(addr) + header.destination_cid
        token = nonce + self._aead.encrypt(nonce, content, None)
        return encode_quic_retry(
            version=header.version,
            source_cid=source_cid,
            destination_cid=header.source_cid,
            original_destination_cid=header.destination_cid,
            retry_token=token,
        )

    def original_destination(self, header: QuicHeader, addr: NetworkAddress) -> bytes | None:
        """Return the connection ID that the client had chosen before the Retry packet.

        Returns:
            None if the token is not of this key: it may be of another server, or of this one
            before it was started anew, and counts for nothing (RFC 9000 8.1.3).

        Raises:
            ValueError: If it is of this key and of no use: it is too old, or was for another client
                or connection ID. Who brings it takes no other one (RFC 9000 8.1.2).
        """
        nonce, sealed = header.token[:_NONCE], header.token[_NONCE:]
        try:
            content = self._aead.decrypt(nonce, sealed, None)
        except (InvalidTag, ValueError):
            return None
        age = time.time() - int.from_bytes(content[:8], "big") / 1000
        if not -_TOKEN_LIFETIME <= age <= _TOKEN_LIFETIME:  # clocks of hosts differ
            raise ValueError("the token is too old")
        bound = header.destination_cid + _packed(addr)
        if content[8 : 8 + len(bound)] != bound:
            raise ValueError("the token was for another client, or another connection ID")
        return content[8 + len(bound) :]


class StatelessReset:
    """Tells clients that a connection is gone which this server does not know (RFC 9000 10.3).

    The token of a connection ID follows from a secret that outlives the process, and from the
    address at which the ID was issued. So another host that shares the secret cannot end a
    connection that it does not have, and nobody can have it make the token (RFC 9000 10.3.2 and
    21.11).

    Args:
        secret: What the key is derived from.
        clock: Returns the time in seconds.
    """

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self._key = derive_key(secret, "stateless reset")
        self._clock = clock
        self._allowance = _RESETS_AT_ONCE
        self._allowed_at = clock()

    def token(self, address: NetworkAddress, connection_id: bytes) -> bytes:
        """Return the token of a connection ID that was issued at a local address."""
        bound = _packed(address)
        message = len(bound).to_bytes(1, "big") + bound + connection_id
        return hmac.digest(self._key, message, "sha256")[:_RESET_TOKEN]

    def answer(self, data: bytes, address: NetworkAddress, connection_id: bytes) -> bytes | None:
        """Return the datagram that answers one of a connection that nobody knows.

        It is smaller than what it answers, so that two servers cannot answer each other for ever
        (RFC 9000 10.3.3).

        Args:
            data: What has come, with a short header.
            address: The local address that it came to.
            connection_id: Its destination connection ID.

        Returns:
            None if it is too small to be answered, or too many were answered lately.
        """
        size = min(len(data) - 1, _RESET_SIZE + os.urandom(1)[0] % _RESET_VARIES)
        if size < _SMALLEST_RESET or not self._is_allowed():
            return None
        unpredictable = os.urandom(size - _RESET_TOKEN)
        first = unpredictable[0] & 0x3F | 0x40  # as in a packet with a short header
        return bytes([first]) + unpredictable[1:] + self.token(address, connection_id)

    def _is_allowed(self) -> bool:
        now = self._clock()
        gained = (now - self._allowed_at) * _RESETS_A_SECOND
        self._allowance = min(_RESETS_AT_ONCE, self._allowance + gained)
        self._allowed_at = now
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True


def _packed(address: NetworkAddress) -> bytes:
    """Return the IP address and the port of a socket's address."""
    return ip_address(address[0]).packed + int(address[1]).to_bytes(2, "big")
