"""What can go wrong, as one small tree of exceptions under `QuicferryError`."""

from __future__ import annotations

import enum

from .text import printable


class QuicferryError(Exception):
    """The root of all errors that quicferry raises; its text says what to do about it.

    A peer may have chosen a part of the text, so what is not printable in it is escaped.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), None)


class ConnectionErrorCode(enum.IntEnum):
    """The QUIC connection errors that the migration protocol closes with (RFC 9000 20.1)."""

    INTERNAL_ERROR = 0x1
    FRAME_ENCODING_ERROR = 0x7
    TRANSPORT_PARAMETER_ERROR = 0x8
    PROTOCOL_VIOLATION = 0xA


class PeerError(QuicferryError):
    """The peer broke the migration protocol; the connection has to be closed.

    Attributes:
        code: The connection error to close with.
        reason: A sentence for the CONNECTION_CLOSE frame.
    """

    def __init__(self, code: ConnectionErrorCode, reason: str) -> None:
        super().__init__(f"{code.name}: {reason}")
        self.code = code
        self.reason = reason


class MigrationErrorCode(enum.Enum):
    """Why a server could not start or finish the migration of a connection.

    The value says in a sentence what is wrong and what to do.
    """

    MIGRATION_DISABLED = (
        "server migration is off for this server; start it with a server_migration configuration"
    )
    HANDSHAKE_NOT_FINISHED = "the handshake is still under way; try again when it has finished"
    PROTOCOL_NOT_NEGOTIATED = (
        "the client did not agree to this protocol in the handshake; choose a negotiated one"
    )
    MIGRATION_ALREADY_IN_PROGRESS = (
        "a migration is already under way; wait for its completion, or abort it before the switch"
    )
    INVALID_ADDRESS = (
        "Explicit needs a unicast address of the family in use that is not the current one, and "
        "the other protocols take no address"
    )
    INVALID_STATE = (
        "the client still knows of another migration; use the protocol and address announced before"
    )
    EMPTY_POOL_MIGRATION_ADDRESSES = (
        "the pool has no address of the family in use; configure one before the handshake"
    )
    POOL_MIGRATION_ADDRESSES_NOT_ACKNOWLEDGED = (
        "the client has not acknowledged every address of the pool yet; try again in a round trip"
    )


class MigrationError(QuicferryError):
    """A migration that a server was asked for failed.

    Attributes:
        code: Which of the errors of the protocol it was.
    """

    def __init__(self, code: MigrationErrorCode, detail: str = "") -> None:
        super().__init__(f"{code.name}: {detail or code.value}")
        self.code = code
