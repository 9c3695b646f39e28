"""Initial packets as strangers make them: valid ones of any frames, and noise that looks so."""

from __future__ import annotations

import os
from collections.abc import Iterator

from aioquic._crypto import CryptoError
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicFrameType,
    QuicPacketType,
    QuicProtocolVersion,
    pull_quic_header,
)

V1 = QuicProtocolVersion.VERSION_1
V2 = QuicProtocolVersion.VERSION_2
PING = b"\x01"


def first_flight(configuration: QuicConfiguration | None = None, token: bytes = b"") -> list[bytes]:
    """Return what a new client sends first: a ClientHello, in one datagram if it is not long."""
    configuration = configuration or QuicConfiguration(alpn_protocols=["h3"])
    configuration.token = token
    connection = QuicConnection(configuration=configuration)
    connection.connect(("127.0.0.1", 1), now=0.0)
    return [data for data, _ in connection.datagrams_to_send(now=0.0)]


def _client_hello() -> tuple[bytes, bytes]:
    [datagram] = first_flight()
    buf = Buffer(data=datagram)
    header = pull_quic_header(buf)
    assert header.version is not None
    crypto = CryptoPair()
    crypto.setup_initial(cid=header.destination_cid, is_client=False, version=header.version)
    _, payload, _ = crypto.decrypt_packet(datagram[: header.packet_length], buf.tell(), 0)
    frame = Buffer(data=payload)
    assert (frame.pull_uint_var(), frame.pull_uint_var()) == (6, 0)
    return frame.pull_bytes(frame.pull_uint_var()), header.source_cid


HELLO, SOURCE = _client_hello()
"""A ClientHello, and the connection ID that the client names in it as its own."""


def is_refusal(datagram: bytes, destination: bytes) -> bool:
    """Whether a server's datagram begins with a CONNECTION_CLOSE in an Initial packet.

    Args:
        datagram: The datagram.
        destination: The connection ID that the client had chosen.
    """
    buf = Buffer(data=datagram)
    header = pull_quic_header(buf, host_cid_length=8)
    if header.packet_type is not QuicPacketType.INITIAL or header.version is None:
        return False
    crypto = CryptoPair()
    crypto.setup_initial(cid=destination, is_client=True, version=header.version)
    try:
        _, payload, _ = crypto.decrypt_packet(datagram[: header.packet_length], buf.tell(), 0)
    except CryptoError:
        return False  # of another connection
    return bool(payload[0] == QuicFrameType.TRANSPORT_CLOSE)


def crypto_frame(offset: int, data: bytes) -> bytes:
    return b"\x06" + encode_uint_var(offset) + encode_uint_var(len(data)) + data


def initial(
    frames: bytes,
    *,
    destination: bytes,
    source: bytes = SOURCE,
    number: int = 0,
    version: int = V1,
    token: bytes = b"",
    size: int = 1200,
) -> bytes:
    """Return a valid Initial packet of a client, padded to a size."""
    kind = {V1: 0xC1, V2: 0xD1}[QuicProtocolVersion(version)]  # two bytes of packet number
    head = bytes([kind]) + version.to_bytes(4, "big") + bytes([len(destination)]) + destination
    head += bytes([len(source)]) + source + encode_uint_var(len(token)) + token
    payload = frames.ljust(size - len(head) - 2 - 2 - 16, b"\0")
    length = 2 + len(payload) + 16
    head += (0x4000 | length).to_bytes(2, "big") + number.to_bytes(2, "big")
    crypto = CryptoPair()
    crypto.setup_initial(cid=destination, is_client=True, version=version)
    packet = crypto.encrypt_packet(head, payload, number)
    assert isinstance(packet, bytes)
    return packet


def noise(size: int = 1200) -> bytes:
    """Return a datagram with the header of an Initial packet, and random bytes."""
    head = b"\xc3\0\0\0\1\x08" + os.urandom(8) + b"\x08" + os.urandom(8) + b"\0"
    return (
        head + (0x4000 | size - len(head) - 2).to_bytes(2, "big") + os.urandom(size - len(head) - 2)
    )


def pieces(data: bytes, *cuts: int) -> Iterator[bytes]:
    """Yield CRYPTO frames of the pieces between cuts."""
    for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        yield crypto_frame(start, data[start:end])
