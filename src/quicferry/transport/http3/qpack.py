"""QPACK without a dynamic table, for the server's side.

A dynamic table is state that both sides share and that cannot be read out of pylsqpack. A server
that has none, in neither direction, can be carried (docs/decisions/0003-no-dynamic-qpack-table.md).
These two have what aioquic uses of pylsqpack's classes. They keep nothing between two calls but the
beginning of an instruction.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from aioquic.h3.connection import QpackDecoderStreamError, QpackEncoderStreamError
from aioquic.h3.events import Headers

MAX_INSTRUCTION = 11
"""Bytes: a prefix, and the rest of an integer of 62 bits (RFC 9204 4.1.1)."""

_SET_CAPACITY_0 = b"\x20"


class Encoder(Protocol):
    """What is used of `pylsqpack.Encoder`."""

    def encode(self, stream_id: int, headers: Headers) -> tuple[bytes, bytes]:
        """Encode header fields."""

    def feed_decoder(self, data: bytes) -> None:
        """Take in what comes on the peer's decoder stream."""


class Decoder(Protocol):
    """What is used of `pylsqpack.Decoder`."""

    def feed_header(self, stream_id: int, data: bytes) -> tuple[bytes, Headers]:
        """Decode header fields."""

    def cancel_stream(self, stream_id: int) -> bytes:
        """Forget a stream."""


class StaticEncoder:
    """Encodes with the static table only.

    Args:
        encoder: An encoder that was given no settings yet.
        unread: The beginning of an instruction on the client's decoder stream.

    Attributes:
        unread: Likewise, so far.
    """

    def __init__(self, encoder: Encoder, unread: bytes) -> None:
        self.unread = unread
        self._encoder = encoder

    def apply_settings(self, max_table_capacity: int, blocked_streams: int) -> bytes:
        """Make nothing of the table that the client offers; return nothing to send."""
        return b""

    def encode(self, stream_id: int, headers: Headers) -> tuple[bytes, bytes]:
        """Encode header fields; the first part, for the encoder stream, is empty."""
        return self._encoder.encode(stream_id, headers)

    def feed_decoder(self, data: bytes) -> None:
        """Take in what comes on the client's decoder stream: nothing but cancellations fits.

        Raises:
            QpackDecoderStreamError: If it is something else.
            pylsqpack.DecoderStreamError: Likewise.
        """
        data = self.unread + data
        end = _end_of_instructions(data)
        self.unread = data[end:]
        if len(self.unread) >= MAX_INSTRUCTION:
            raise QpackDecoderStreamError("an instruction has no end")
        self._encoder.feed_decoder(data[:end])


class StaticDecoder:
    """Decodes what refers to the static table only.

    Args:
        decoder: A decoder whose table has no room.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def feed_header(self, stream_id: int, data: bytes) -> tuple[bytes, Headers]:
        """Decode header fields; the first part, for the decoder stream, is empty.

        Raises:
            pylsqpack.DecompressionFailed: If they refer to a dynamic table, or cannot be decoded.
        """
        return self._decoder.feed_header(stream_id, data)

    def cancel_stream(self, stream_id: int) -> bytes:
        """Forget a stream; return nothing to send (RFC 9204 4.4.2)."""
        return self._decoder.cancel_stream(stream_id)

    def feed_encoder(self, data: bytes) -> list[int]:
        """Take in what comes on the client's encoder stream; return that nothing is unblocked.

        Nothing may come there (RFC 9204 3.2.3). To set the capacity to what it is does no harm.

        Raises:
            QpackEncoderStreamError: If it is something else.
        """
        if data.strip(_SET_CAPACITY_0):
            raise QpackEncoderStreamError("the server has no dynamic table")
        return []


def count_fields(section: bytes, most: int) -> int:
    """Return how many fields are in a field section that is still encoded (RFC 9204 4.5).

    Nothing is decoded, so it costs no more than a look at the bytes. Of what cannot be read the
    part before it is counted; the decoder will find out.

    Args:
        section: The section.
        most: Where to stop counting.
    """
    count = 0
    with suppress(IndexError, ValueError):
        _, place = _integer(section, 0, 0xFF)  # the prefix
        _, place = _integer(section, place, 0x7F)
        while place < len(section) and count < most:
            place = _end_of_field(section, place)
            count += 1
    return count


def _end_of_field(section: bytes, place: int) -> int:
    """Return where a field that begins at `place` ends."""
    first = section[place]
    if first & 0x80:  # indexed
        return _integer(section, place, 0x3F)[1]
    if first & 0xF0 == 0x10:  # indexed, after the base
        return _integer(section, place, 0x0F)[1]
    if first & 0x40:  # the name is indexed
        _, place = _integer(section, place, 0x0F)
    elif first & 0x20:  # the name is spelt out
        size, place = _integer(section, place, 0x07)
        place += size
    else:  # the name is indexed, after the base
        _, place = _integer(section, place, 0x07)
    size, place = _integer(section, place, 0x7F)  # the value
    return place + size


def _integer(data: bytes, place: int, prefix: int) -> tuple[int, int]:
    """Return an integer (RFC 7541 5.1) and where it ends.

    Raises:
        IndexError: If it has no end.
        ValueError: If it has more than 62 bits.
    """
    value = data[place] & prefix
    place += 1
    if value < prefix:
        return value, place
    for shift in range(0, 63, 7):
        byte = data[place]
        place += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("an integer of more than 62 bits")


def _end_of_instructions(data: bytes) -> int:
    """Return where the last complete instruction of a decoder stream ends (RFC 9204 4.4)."""
    complete = place = 0
    while place < len(data):
        prefix = 0x7F if data[place] & 0x80 else 0x3F
        place += 1
        if data[place - 1] & prefix == prefix:  # the integer goes on (RFC 7541 5.1)
            while place < len(data) and data[place] & 0x80:
                place += 1
            place += 1
        if place <= len(data):
            complete = place
    return complete
