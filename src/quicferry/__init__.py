"""Move a live QUIC server from one address to another without its clients noticing."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

_ELSEWHERE = {
    "client": {"HttpClient", "connect"},
    "io": {"BindError", "ConnectFailed", "ConnectionLost", "ConnectionProtocol"},
    "server": {"RelocationError", "Server", "Unready", "serve"},
    "transport": {"Configuration"},
}
"""The packages of what is not in `quicferry.protocol`."""

if not TYPE_CHECKING:  # a program that knows every name misses none

    def __getattr__(name: str) -> object:
        """Import what is used: neither a client nor ``--version`` needs a server."""
        if name in ("protocol", *_ELSEWHERE):
            return import_module(f"{__name__}.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        package = next((home for home, names in _ELSEWHERE.items() if name in names), "protocol")
        return getattr(import_module(f"{__name__}.{package}"), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
