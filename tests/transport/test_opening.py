"""What begins a connection is told from what does not, with nothing but the datagram."""

from __future__ import annotations

import random

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import pull_quic_header
from initials import HELLO, PING, V2, crypto_frame, first_flight, initial, noise, pieces

from quicferry.transport import Opening, read_opening

CID = b"8 bytes."
ACK = b"\x02\0\0\0\0"
CLOSE = b"\x1c\0\0\0"


def read(datagram: bytes) -> Opening:
    return read_opening(datagram, pull_quic_header(Buffer(data=datagram), host_cid_length=8))


@pytest.mark.parametrize("version", [1, V2])
def test_a_client_of_any_version(version: int) -> None:
    configuration = QuicConfiguration(original_version=version)
    assert [read(each) for each in first_flight(configuration)] == [Opening.BEGINNING]


def test_a_clienthello_in_two_datagrams() -> None:
    long = [f"{number:0200}" for number in range(8)]
    parts = [read(each) for each in first_flight(QuicConfiguration(alpn_protocols=long))]
    assert parts == [Opening.BEGINNING, Opening.LATER_PART]


@pytest.mark.parametrize("seed", range(10))
def test_frames_in_any_order(seed: int) -> None:
    """As Chromium sends them: cut up, shuffled, with PING and PADDING between."""
    draw = random.Random(seed)
    cuts = sorted(draw.sample(range(1, len(HELLO)), 8))
    frames = [*pieces(HELLO, *cuts), PING, PING, bytes(draw.randrange(1, 30))]
    draw.shuffle(frames)
    assert read(initial(b"".join(frames), destination=CID)) is Opening.BEGINNING


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (crypto_frame(0, HELLO[:1]), Opening.BEGINNING),
        (crypto_frame(100, HELLO[100:]) + crypto_frame(0, HELLO[:50]), Opening.BEGINNING),
        (crypto_frame(0, HELLO) + ACK, Opening.BEGINNING),  # its error is the connection's
        (crypto_frame(100, HELLO[100:]), Opening.LATER_PART),
        (crypto_frame(100, HELLO[100:]) + PING, Opening.LATER_PART),
        (crypto_frame(16000, bytes(384)), Opening.LATER_PART),
        (crypto_frame(16000, bytes(385)), Opening.NOTHING),
        (crypto_frame((1 << 62) - 1, b"x"), Opening.NOTHING),
        (crypto_frame(100, b""), Opening.NOTHING),
        (crypto_frame(0, b""), Opening.NOTHING),
        (crypto_frame(0, b"\x02" + HELLO[1:]), Opening.NOTHING),
        (ACK + crypto_frame(0, HELLO), Opening.NOTHING),
        (CLOSE, Opening.NOTHING),
        (PING, Opening.NOTHING),
        (b"", Opening.NOTHING),
        (b"\x08\0x", Opening.NOTHING),
        (b"\x06\0\x47\xff", Opening.NOTHING),
        (b"\xff", Opening.NOTHING),
    ],
)
def test_frames(frames: bytes, expected: Opening) -> None:
    assert read(initial(frames, destination=CID)) is expected


def test_packets_in_one_datagram() -> None:
    later = initial(crypto_frame(9, HELLO[9:]), destination=CID, size=600)
    beginning = initial(crypto_frame(0, HELLO[:9]), destination=CID, number=1, size=600)
    other = initial(crypto_frame(0, HELLO), destination=b"another.", size=600)
    damaged = beginning[:-1] + bytes([beginning[-1] ^ 1])
    assert read(later + beginning) is Opening.BEGINNING
    assert read(beginning + later) is Opening.BEGINNING
    assert read(damaged + beginning) is Opening.BEGINNING
    assert read(later + damaged) is Opening.LATER_PART
    assert read(later + bytes(600)) is Opening.LATER_PART
    assert read(later + other) is Opening.LATER_PART  # RFC 9000 12.2
    assert read(damaged * 2) is Opening.NOTHING


@pytest.mark.parametrize("length", range(21))
def test_connection_ids_have_eight_bytes(length: int) -> None:
    """RFC 9000 7.2."""
    expected = Opening.NOTHING if length < 8 else Opening.BEGINNING
    assert read(initial(crypto_frame(0, HELLO), destination=bytes(length))) is expected


def test_a_small_datagram() -> None:
    """RFC 9000 14.1."""
    hello = crypto_frame(0, HELLO)
    assert read(initial(hello, destination=CID, size=1199)) is Opening.NOTHING
    assert read(initial(hello, destination=CID, size=1200)) is Opening.BEGINNING


def test_a_packet_that_was_changed_anywhere() -> None:
    datagram = initial(crypto_frame(0, HELLO), destination=CID)
    for position in range(len(datagram)):
        changed = bytearray(datagram)
        changed[position] ^= 0x10
        try:
            header = pull_quic_header(Buffer(data=bytes(changed)), host_cid_length=8)
        except ValueError:
            continue
        if header.version in (1, V2):
            assert read_opening(bytes(changed), header) is Opening.NOTHING


def test_noise() -> None:
    assert {read(noise(size)) for size in (1200, 1252, 1500, 9000) for _ in range(50)} == {
        Opening.NOTHING
    }
    for size in range(40):  # a packet that is too short to be one
        head = b"\xc3\0\0\0\1\x08" + CID + b"\0\0" + bytes([size])
        assert read(head + noise()) is Opening.NOTHING
