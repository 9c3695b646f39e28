"""The transport parameters of server migration among the others (RFC 9000 18)."""

from __future__ import annotations

from collections.abc import Iterator

from aioquic.buffer import Buffer

from quicferry.protocol import ConnectionErrorCode, PeerError
from quicferry.protocol.suite import SUITE_PARAMETER_ID, WITHDRAWAL_PARAMETER_ID
from quicferry.protocol.varint import encode_varint

MAX_ACK_DELAY_ID = 0x0B
MAX_ACK_DELAY_MS = 5
"""What an endpoint that can migrate promises. aioquic waits for 1 ms, and promises 25: the probe
timeout of its peer, which finds out by it that a server is gone, is 20 ms longer than need be."""


def with_suite(parameters: bytes, suite: bytes) -> bytes:
    """Return encoded transport parameters with the suite, and with a shorter `max_ack_delay`."""
    changed = {MAX_ACK_DELAY_ID: encode_varint(MAX_ACK_DELAY_MS)}
    others = (
        _encode(identifier, changed.get(identifier, value))
        for identifier, value in _decode(parameters)
    )
    return b"".join(others) + _encode(SUITE_PARAMETER_ID, suite)


def with_withdrawal(parameters: bytes) -> bytes:
    """Return encoded transport parameters with the one for withdrawals."""
    return parameters + _encode(WITHDRAWAL_PARAMETER_ID, b"")


def find(parameters: bytes, wanted: int) -> bytes | None:
    """Return the value of a parameter among encoded, well-formed transport parameters.

    Args:
        parameters: All of them.
        wanted: Its identifier.

    Raises:
        PeerError: TRANSPORT_PARAMETER_ERROR if it is there twice (RFC 9000 7.4).
    """
    values = [value for identifier, value in _decode(parameters) if identifier == wanted]
    if len(values) > 1:
        raise PeerError(
            ConnectionErrorCode.TRANSPORT_PARAMETER_ERROR,
            f"the transport parameter {wanted:#x} is there twice",
        )
    return values[0] if values else None


def _encode(identifier: int, value: bytes) -> bytes:
    return encode_varint(identifier) + encode_varint(len(value)) + value


def _decode(parameters: bytes) -> Iterator[tuple[int, bytes]]:
    buffer = Buffer(data=parameters)
    while not buffer.eof():
        yield buffer.pull_uint_var(), buffer.pull_bytes(buffer.pull_uint_var())
