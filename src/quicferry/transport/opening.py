"""Whether a datagram can begin a connection, found out before anything is made for it.

The keys of Initial packets follow from the connection ID that the client has chosen (RFC 9001 5.2).
So a server can tell noise from what a client has made, and what a client has made from what begins
a handshake, with nothing but the datagram.
"""

from __future__ import annotations

import enum

from aioquic._crypto import CryptoError
from aioquic.buffer import Buffer, BufferReadError
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicFrameType,
    QuicHeader,
    QuicPacketType,
    pull_quic_header,
)

SHORTEST_CHOSEN_CID = 8
"""Bytes of the connection ID that a client has to choose for its server (RFC 9000 7.2)."""

LONGEST_CLIENT_HANDSHAKE = 16 * 1024
"""Bytes of CRYPTO frames that a client may send on one level. ClientHellos have two thousand."""

_CLIENT_HELLO = 1
# Packets of a datagram that are looked at. Clients send two at most: Initial and 0-RTT.
_MOST_COALESCED = 4


class Opening(enum.Enum):
    """What a datagram is to a server that does not know its destination connection ID."""

    NOTHING = "nothing"
    """It begins no connection: it is noise, damaged, or belongs to one that is gone."""
    LATER_PART = "later-part"
    """A part of a ClientHello whose first byte is in another datagram, which may have been
    overtaken."""
    BEGINNING = "beginning"
    """The ClientHello begins here."""


def read_opening(data: bytes, header: QuicHeader) -> Opening:
    """Return what a datagram is whose first packet is an Initial of an unknown connection.

    What is found to begin a connection is not free of errors: those are for the connection to find.

    Args:
        data: The datagram.
        header: That of its first packet; the version is a known one.
    """
    destination, version = header.destination_cid, header.version
    if len(data) < SMALLEST_MAX_DATAGRAM_SIZE or len(destination) < SHORTEST_CHOSEN_CID:
        return Opening.NOTHING  # RFC 9000 14.1 and 7.2
    assert version is not None, "an Initial packet has a version"
    crypto = CryptoPair()
    crypto.setup_initial(cid=destination, is_client=False, version=version)
    buf = Buffer(data=data)
    found = Opening.NOTHING
    for _ in range(_MOST_COALESCED):
        start = buf.tell()
        try:
            header = pull_quic_header(buf, host_cid_length=len(destination))
        except ValueError:
            break  # the end, or padding after the last packet
        encrypted, end = buf.tell() - start, start + header.packet_length
        if (header.packet_type, header.version) == (QuicPacketType.INITIAL, version):
            try:
                _, payload, _ = crypto.decrypt_packet(data[start:end], encrypted, 0)
            except CryptoError:
                pass
            else:
                part = _crypto_in(payload)
                if part is Opening.BEGINNING:
                    return part
                found = part if found is Opening.NOTHING else found
        buf.seek(end)
    return found


def _crypto_in(payload: bytes) -> Opening:
    """Return what the CRYPTO frames of an Initial packet are; they may be in any order."""
    buf = Buffer(data=payload)
    found = Opening.NOTHING
    try:
        while not buf.eof():
            match buf.pull_uint_var():
                case QuicFrameType.PADDING:
                    rest = payload[buf.tell() :]
                    buf.seek(len(payload) - len(rest.lstrip(b"\0")))
                case QuicFrameType.PING:
                    pass
                case QuicFrameType.CRYPTO:
                    offset, length = buf.pull_uint_var(), buf.pull_uint_var()
                    part = buf.pull_bytes(length)
                    if offset + length > LONGEST_CLIENT_HANDSHAKE:
                        return Opening.NOTHING
                    if offset:
                        found = Opening.LATER_PART if part else found
                    elif part:
                        is_hello = part[0] == _CLIENT_HELLO
                        return Opening.BEGINNING if is_hello else Opening.NOTHING
                case _:
                    break  # nothing else is in a packet that a client sends before it has heard
    except BufferReadError:
        pass
    return found
