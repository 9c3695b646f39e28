"""What a client and a server can choose."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from .address import MigrationAddress
from .suite import ALL_PROTOCOLS, MigrationProtocol

DEFAULT_PROBE_INTERVAL = 0.02
"""Seconds between two probes while a server is being looked for."""

DEFAULT_SWITCH_TIMEOUT = 0.04
"""The longest probe timeout of a server right after a network switch, in seconds."""

MAX_POOL_SIZE = 32
"""What a client looks through. It has connection IDs for seven addresses at a time, of 8 (RFC 9000
9.5), and tries more of them in turn."""


class Policy(enum.Enum):
    """When a client looks for its server at an announced address (Explicit)."""

    REACTIVE = "reactive"
    """At the first probe timeout after the announcement."""
    PROACTIVE = "proactive"
    """As reactive, and at once when the application asks for it."""
    EAGER = "eager"
    """From the announcement on, by PATH_CHALLENGE frames, while data stays on the old path."""


class Scheduler(enum.Enum):
    """In which order a client tries the addresses of a pool."""

    CYCLIC = "cyclic"
    """The current address, then the pool in its order."""
    RANDOM = "random"
    """The same addresses, each round in a new, seeded random order."""
    PARALLEL = "parallel"
    """All at once, by PATH_CHALLENGE frames, while data stays on the old path."""


@dataclass(frozen=True)
class ClientMigration:
    """A client's side of server migration.

    Attributes:
        protocols: What it offers in the handshake; at least one.
        policy: When it looks for its server at an announced address.
        scheduler: In which order it tries the addresses of a pool.
        seed: For the random scheduler.
        probe_interval: Seconds between two probes while it looks for its server.
    """

    protocols: MigrationProtocol = ALL_PROTOCOLS
    policy: Policy = Policy.EAGER
    scheduler: Scheduler = Scheduler.PARALLEL
    seed: int = 0
    probe_interval: float = DEFAULT_PROBE_INTERVAL

    def __post_init__(self) -> None:
        if not self.protocols:
            raise ValueError("a client offers at least one protocol; to offer none, use None")
        _check_interval(self.probe_interval)


@dataclass(frozen=True)
class ServerMigration:
    """A server's side of server migration.

    Attributes:
        protocols: What it supports.
        pool: Where it may come up; sent to each client that supports Pool of Addresses, and then
            the only protocol used with that client.
        probe_interval: Upper bound in seconds for the probe timeout right after a network switch,
            as long as the round-trip time of the new path is unknown.
    """

    protocols: MigrationProtocol = ALL_PROTOCOLS
    pool: tuple[MigrationAddress, ...] = ()
    probe_interval: float = DEFAULT_SWITCH_TIMEOUT

    def __post_init__(self) -> None:
        if len(set(self.pool)) != len(self.pool) or MigrationAddress() in self.pool:
            raise ValueError("the addresses of a pool must be known, and each different")
        if len(self.pool) > MAX_POOL_SIZE:
            raise ValueError(f"a pool holds at most {MAX_POOL_SIZE} addresses")
        _check_interval(self.probe_interval)


def _check_interval(interval: float) -> None:
    if not 0.001 <= interval <= 10:
        raise ValueError("the probe interval must be between 0.001 and 10 seconds")
