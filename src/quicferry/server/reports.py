"""What a server tells the orchestrator: how a migration goes, and what happens meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quicferry.protocol import Address, MigrationEvent, MigrationProtocol

from .synchronisation import Phase


@dataclass(frozen=True)
class PhaseChanged:
    """The server as a whole has come to another phase of its migration."""

    phase: Phase


@dataclass(frozen=True)
class RelocationEvent:
    """The base of what whoever moves the server has to tell; see `quicferry.relocation`."""


@dataclass(frozen=True)
class ServerEvent:
    """Something happened to a connection, or to the server as a whole.

    Attributes:
        connection_id: The stable id of the connection; None for the server as a whole.
        event: What happened.
    """

    connection_id: str | None
    event: MigrationEvent | PhaseChanged | RelocationEvent


@dataclass(frozen=True)
class Preparation:
    """How the connections have prepared for a migration.

    Attributes:
        is_ready: Whether the server can be moved without losing a connection that can migrate.
        seconds: From the announcement until it was ready, or the deadline had passed.
        protocols: The connections that migrate, by stable id, and by which protocol.
        unready: Those of them that are not ready.
        silent: Those of them whose clients have acknowledged nothing since the announcement. The
            server does not wait for them; they are closed at the switch if they are not ready then.
        unable: Those that will be closed at the switch, and the error that says why.
        failed: Those that were closed because their migration failed, and the error.
    """

    is_ready: bool
    seconds: float
    protocols: Mapping[str, MigrationProtocol]
    unready: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    unable: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Relocation:
    """A move of the server.

    Attributes:
        source: Where it was.
        destination: Where it is.
        switched_at: When it moved, on the clock of the event loop (`time.monotonic`).
        told: The stable ids of the connections that move along.
        closed: Those that were closed.
    """

    source: Address
    destination: Address
    switched_at: float
    told: tuple[str, ...]
    closed: tuple[str, ...]


@dataclass(frozen=True)
class Completion:
    """How far the connections have followed the server.

    Attributes:
        is_complete: Whether the server is done, and can be moved again.
        seconds: From the switch until it was, or until now.
        completed: The connections that have followed, and how many seconds after the switch.
        pending: Those that have not yet.
        lost: Those that have ended since the switch before they had followed.
        is_final: Whether it stays so: the server is done, or closed.
    """

    is_complete: bool
    seconds: float
    completed: Mapping[str, float]
    pending: tuple[str, ...]
    lost: tuple[str, ...]
    is_final: bool = False
