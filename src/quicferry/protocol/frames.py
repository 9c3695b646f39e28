"""The three frames of the extension. Only servers send them, and only in 1-RTT packets."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

from .address import MIGRATION_ADDRESS_SIZE, MigrationAddress
from .errors import ConnectionErrorCode, PeerError


class FrameType(enum.IntEnum):
    """The frame types, each one byte long as a QUIC varint."""

    SERVER_MIGRATION = 0x32
    SERVER_MIGRATED = 0x33
    POOL_MIGRATION_ADDRESS = 0x34


@dataclass(frozen=True)
class ServerMigrationFrame:
    """SERVER_MIGRATION: the server will be at `address`; None where that is unknown."""

    address: MigrationAddress | None
    type: ClassVar[FrameType] = FrameType.SERVER_MIGRATION


@dataclass(frozen=True)
class ServerMigratedFrame:
    """SERVER_MIGRATED: the server is now at the address that this comes from."""

    type: ClassVar[FrameType] = FrameType.SERVER_MIGRATED


@dataclass(frozen=True)
class PoolMigrationAddressFrame:
    """POOL_MIGRATION_ADDRESS: one of the addresses where the server may come up."""

    address: MigrationAddress
    type: ClassVar[FrameType] = FrameType.POOL_MIGRATION_ADDRESS


MigrationFrame = ServerMigrationFrame | ServerMigratedFrame | PoolMigrationAddressFrame

BODY_SIZES = {
    FrameType.SERVER_MIGRATION: MIGRATION_ADDRESS_SIZE,
    FrameType.SERVER_MIGRATED: 0,
    FrameType.POOL_MIGRATION_ADDRESS: MIGRATION_ADDRESS_SIZE,
}
"""The size in bytes of what follows each frame type."""


def encode_body(frame: MigrationFrame) -> bytes:
    """Return what follows the frame type."""
    if isinstance(frame, ServerMigratedFrame):
        return b""
    return (frame.address or MigrationAddress()).encode()


def decode_frame(frame_type: int, body: bytes) -> MigrationFrame:
    """Return the frame of a type and its body.

    Raises:
        PeerError: FRAME_ENCODING_ERROR if the body is too short, too long or has no meaning.
    """
    kind = FrameType(frame_type)
    if len(body) != BODY_SIZES[kind]:
        raise PeerError(ConnectionErrorCode.FRAME_ENCODING_ERROR, f"{kind.name}: wrong length")
    if kind is FrameType.SERVER_MIGRATED:
        return ServerMigratedFrame()
    address = MigrationAddress.decode(body)
    if kind is FrameType.SERVER_MIGRATION:
        return ServerMigrationFrame(address if address != MigrationAddress() else None)
    return PoolMigrationAddressFrame(address)
