"""What a connection tells its application about migrations. No event is raised twice."""

from __future__ import annotations

from dataclasses import dataclass

from .address import Address, MigrationAddress
from .errors import MigrationErrorCode
from .suite import MigrationProtocol


@dataclass(frozen=True)
class MigrationEvent:
    """The base of all events."""


# Both sides


@dataclass(frozen=True)
class ConnectionClosed(MigrationEvent):
    """The connection is gone.

    Attributes:
        error_code: The QUIC or application error code it was closed with.
        reason: The reason phrase, possibly empty; what is not printable in it is escaped.
    """

    error_code: int
    reason: str


@dataclass(frozen=True)
class MigrationCompleted(MigrationEvent):
    """The connection has survived the relocation, and its new path is validated.

    Attributes:
        protocol: The protocol that was used.
        address: The server's new address; None where a server does not know it.
    """

    protocol: MigrationProtocol
    address: Address | None


# Server


@dataclass(frozen=True)
class HandshakeFinished(MigrationEvent):
    """A client has connected.

    Attributes:
        client_address: Where the client is.
        connection_id: The stable id of the connection, the same for its whole life.
        protocols: What was negotiated; None where server migration is off for this connection.
    """

    client_address: Address | None
    connection_id: str
    protocols: MigrationProtocol | None


@dataclass(frozen=True)
class ClientMigrationDetected(MigrationEvent):
    """The client has changed its own address (RFC 9000 9)."""

    client_address: Address | None


@dataclass(frozen=True)
class PoolAddressAcknowledged(MigrationEvent):
    """The client knows this address of the pool."""

    address: MigrationAddress


@dataclass(frozen=True)
class ServerMigrationAcknowledged(MigrationEvent):
    """The client knows that the server will move; the address is None where it is unknown."""

    address: MigrationAddress | None


@dataclass(frozen=True)
class WithdrawalAcknowledged(MigrationEvent):
    """The client knows that the server stays; a new migration may be announced to it."""


@dataclass(frozen=True)
class ServerMigratedAcknowledged(MigrationEvent):
    """The client has received SERVER_MIGRATED."""


@dataclass(frozen=True)
class MigrationFailed(MigrationEvent):
    """The connection cannot migrate, and is closed."""

    error: MigrationErrorCode


@dataclass(frozen=True)
class MigrationReady(MigrationEvent):
    """The server may be moved as far as this connection is concerned."""

    protocol: MigrationProtocol


# Client


@dataclass(frozen=True)
class PoolAddressReceived(MigrationEvent):
    """The server may come up at this address."""

    address: Address


@dataclass(frozen=True)
class ServerMigrationReceived(MigrationEvent):
    """The server will move; the address is None where it is unknown."""

    address: Address | None


@dataclass(frozen=True)
class AnnouncementWithdrawn(MigrationEvent):
    """The server stays where it is.

    Attributes:
        address: Where it was to go; None where that was unknown.
    """

    address: Address | None


@dataclass(frozen=True)
class ServerMigratedReceived(MigrationEvent):
    """The server says that it has moved."""


@dataclass(frozen=True)
class ProbingStarted(MigrationEvent):
    """The client looks for its server at this address."""

    protocol: MigrationProtocol
    address: Address
