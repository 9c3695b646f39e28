"""Migration events as text for people, and as JSON for programs."""

from __future__ import annotations

from typing import Any

from quicferry.protocol import (
    AnnouncementWithdrawn,
    ConnectionClosed,
    HandshakeFinished,
    MigrationCompleted,
    MigrationEvent,
    MigrationProtocol,
    PoolAddressReceived,
    ProbingStarted,
    ServerMigratedReceived,
    ServerMigrationReceived,
    protocol_name,
)
from quicferry.server import ServerEvent
from quicferry.server.commands import describe_event as encode_server_event


def encode_event(event: MigrationEvent) -> dict[str, Any]:
    """Return a client's event as what JSON can carry, in the form of the management interface."""
    encoded = encode_server_event(ServerEvent(None, event))
    del encoded["connection"]
    return encoded


def describe_event(event: MigrationEvent) -> str:
    """Return an event in words."""
    match event:
        case PoolAddressReceived(address):
            return f"the server may move to {address}"
        case ServerMigrationReceived(None):
            return "the server is about to move"
        case ServerMigrationReceived(address):
            return f"the server is about to move to {address}"
        case AnnouncementWithdrawn():
            return "the server stays where it is"
        case ServerMigratedReceived():
            return "the server says that it has moved"
        case ProbingStarted(protocol, address):
            return f"looking for the server at {address} ({protocol_name(protocol)})"
        case MigrationCompleted(protocol, address):
            return f"the server has moved to {address} ({protocol_name(protocol)})"
        case HandshakeFinished(client, _, None):
            return f"{client} has connected, without server migration"
        case HandshakeFinished(client, _, MigrationProtocol() as protocols):
            return f"{client} has connected: {protocol_name(protocols)}"
        case ConnectionClosed(code, reason):
            return f"closed: {reason or hex(code)}"
    encoded = encode_server_event(ServerEvent(None, event))
    name = encoded.pop("event")
    details = ", ".join(f"{key} {value}" for key, value in encoded.items() if value is not None)
    return f"{name}: {details}" if details else str(name)
