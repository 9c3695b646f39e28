"""The migration protocols, and their negotiation in the handshake.

Transport parameter `server_migration_suite`: one QUIC varint, a bit mask. The client sends what it
supports, the server answers with the intersection, also when that is empty. Who has server
migration switched off sends nothing, and neither does a server whose client sent nothing.

A client also says, by a second parameter that is empty, that its server can take an announcement
back. That is this project's own; docs/reference/withdrawal.md describes it.
"""

from __future__ import annotations

import enum

from .errors import ConnectionErrorCode, PeerError
from .varint import decode_varint, encode_varint

SUITE_PARAMETER_ID = 0x64
"""The identifier of the transport parameter `server_migration_suite`."""

WITHDRAWAL_PARAMETER_ID = 0x3F58AFC4EBE3F2D6
"""The identifier of the transport parameter by which a client says that it knows withdrawals."""


class MigrationProtocol(enum.IntFlag):
    """A migration protocol, or a set of them as it is sent in the handshake."""

    EXPLICIT = 0x1
    POOL_OF_ADDRESSES = 0x2
    SYMMETRIC = 0x4
    SYNCHRONIZED_SYMMETRIC = 0x8


ALL_PROTOCOLS = MigrationProtocol(0xF)


def protocol_name(protocol: MigrationProtocol) -> str:
    """Return the name used on command lines, for example ``pool-of-addresses``."""
    return (protocol.name or "none").lower().replace("_", "-").replace("|", ",")


def protocol_from_name(name: str) -> MigrationProtocol:
    """Return the protocol called `name`, in the form of `protocol_name`.

    Raises:
        ValueError: If there is no protocol of that name.
    """
    try:
        return MigrationProtocol[name.upper().replace("-", "_")]
    except KeyError:
        names = ", ".join(protocol_name(protocol) for protocol in MigrationProtocol)
        raise ValueError(f"unknown migration protocol {name!r}; choose one of: {names}") from None


def encode_suite(suite: MigrationProtocol) -> bytes:
    """Return the value of the transport parameter."""
    return encode_varint(int(suite))


def answer_suite(offer: bytes, supported: MigrationProtocol) -> MigrationProtocol:
    """Return what a server that supports `supported` answers to a client's `offer`.

    Unknown bits of the offer are ignored, so that the suite can grow.

    Raises:
        PeerError: TRANSPORT_PARAMETER_ERROR if the offer is 0 or malformed.
    """
    mask = _decode(offer)
    if mask == 0:
        raise _parameter_error("a client must offer at least one protocol")
    return MigrationProtocol(mask & int(supported) & int(ALL_PROTOCOLS))


def accept_suite(answer: bytes, offered: MigrationProtocol) -> MigrationProtocol:
    """Return what was negotiated when a client offered `offered` and got `answer`.

    Raises:
        PeerError: TRANSPORT_PARAMETER_ERROR if the answer is malformed or has a bit that was not
            offered.
    """
    mask = _decode(answer)
    if mask & ~int(offered):
        raise _parameter_error("the server chose a protocol that was not offered")
    return MigrationProtocol(mask)


def accept_withdrawal(value: bytes | None) -> bool:
    """Return whether a client has said that it knows withdrawals.

    Args:
        value: The value of its transport parameter; None if it sent none.

    Raises:
        PeerError: TRANSPORT_PARAMETER_ERROR if it is not empty.
    """
    if value:
        raise PeerError(
            ConnectionErrorCode.TRANSPORT_PARAMETER_ERROR,
            "the parameter for withdrawals must be empty",
        )
    return value is not None


def _decode(value: bytes) -> int:
    try:
        return decode_varint(value)
    except ValueError as exc:
        raise _parameter_error(str(exc)) from None


def _parameter_error(problem: str) -> PeerError:
    return PeerError(
        ConnectionErrorCode.TRANSPORT_PARAMETER_ERROR, f"server_migration_suite: {problem}"
    )
