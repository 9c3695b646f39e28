"""Move a live QUIC server from one address to another without its clients noticing."""

from quicferry.client import HttpClient, connect
from quicferry.io import BindError, ConnectFailed, ConnectionLost, ConnectionProtocol
from quicferry.protocol import (
    ALL_PROTOCOLS,
    Address,
    ClientMigration,
    MigrationAddress,
    MigrationError,
    MigrationErrorCode,
    MigrationEvent,
    MigrationProtocol,
    Policy,
    QuicferryError,
    Scheduler,
    ServerMigration,
)
from quicferry.server import RelocationError, Server, Unready, serve
from quicferry.transport import Configuration

__version__ = "0.1.0"

__all__ = [
    "ALL_PROTOCOLS",
    "Address",
    "BindError",
    "ClientMigration",
    "Configuration",
    "ConnectFailed",
    "ConnectionLost",
    "ConnectionProtocol",
    "HttpClient",
    "MigrationAddress",
    "MigrationError",
    "MigrationErrorCode",
    "MigrationEvent",
    "MigrationProtocol",
    "Policy",
    "QuicferryError",
    "RelocationError",
    "Scheduler",
    "Server",
    "ServerMigration",
    "Unready",
    "__version__",
    "connect",
    "serve",
]
