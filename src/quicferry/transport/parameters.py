"""The transport parameter `server_migration_suite` among the others (RFC 9000 18)."""

from __future__ import annotations

from aioquic.buffer import Buffer

from quicferry.protocol import ConnectionErrorCode, PeerError
from quicferry.protocol.suite import SUITE_PARAMETER_ID
from quicferry.protocol.varint import encode_varint


def with_suite(parameters: bytes, suite: bytes) -> bytes:
    """Return the encoded transport parameters with the suite appended."""
    return parameters + encode_varint(SUITE_PARAMETER_ID) + encode_varint(len(suite)) + suite


def find_suite(parameters: bytes) -> bytes | None:
    """Return the value of the suite among encoded, well-formed transport parameters.

    Raises:
        PeerError: TRANSPORT_PARAMETER_ERROR if it is there twice (RFC 9000 7.4).
    """
    found: bytes | None = None
    buffer = Buffer(data=parameters)
    while not buffer.eof():
        identifier = buffer.pull_uint_var()
        value = buffer.pull_bytes(buffer.pull_uint_var())
        if identifier == SUITE_PARAMETER_ID:
            if found is not None:
                raise PeerError(
                    ConnectionErrorCode.TRANSPORT_PARAMETER_ERROR,
                    "server_migration_suite is there twice",
                )
            found = value
    return found
