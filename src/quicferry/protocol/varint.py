"""QUIC's variable-length integers (RFC 9000 16)."""

from __future__ import annotations

_MAX = (1 << 62) - 1


def encode_varint(value: int) -> bytes:
    """Return the shortest encoding of `value`.

    Raises:
        ValueError: If the value is negative or needs more than 62 bits.
    """
    if not 0 <= value <= _MAX:
        raise ValueError(f"{value} does not fit into a QUIC variable-length integer")
    for prefix, size in enumerate((1, 2, 4, 8)):
        if value < 1 << (8 * size - 2):
            return ((prefix << (8 * size - 2)) | value).to_bytes(size, "big")
    raise AssertionError("unreachable: every 62-bit value fits into 8 bytes")


def decode_varint(data: bytes) -> int:
    """Return the integer that `data` holds from its first to its last byte.

    Raises:
        ValueError: If `data` is not one whole variable-length integer.
    """
    if not data or len(data) != 1 << (data[0] >> 6):
        raise ValueError("not one whole variable-length integer")
    return int.from_bytes(data, "big") & ((1 << (8 * len(data) - 2)) - 1)
