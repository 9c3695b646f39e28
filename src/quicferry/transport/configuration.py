"""aioquic's configuration with one more field."""

from __future__ import annotations

from dataclasses import dataclass

from aioquic.quic.configuration import QuicConfiguration

from quicferry.protocol import ClientMigration, ServerMigration


@dataclass
class Configuration(QuicConfiguration):
    """A QUIC configuration; every field of aioquic's means the same here.

    Attributes:
        server_migration: The choices of this side about server migration. None switches it off,
            and the connection is plain RFC 9000 QUIC.
    """

    server_migration: ClientMigration | ServerMigration | None = None
