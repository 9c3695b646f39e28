"""What a run of the demo does, as values that can be sent to its worker processes."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from quicferry.protocol import Address, MigrationProtocol, Policy, Scheduler, protocol_name
from quicferry_lab.emulation import PathSpec

TRANSPARENT = PathSpec()
MIXED = "mixed"
WITHOUT_EXTENSION = "none"
PROTOCOL_NAMES = tuple(protocol_name(protocol) for protocol in MigrationProtocol)
LINE_LIMIT = 1 << 28
"""Bytes of the longest line between the demo and its processes: a report with every request."""
MAX_WORKERS = 4
TOTAL_RATE_MBIT = 12.0
"""What a small machine can serve and check with time to spare, so that its speed does not show."""
SMALLEST_RATE_MBIT = 0.5
CLIENTS_PER_WORKER = 8
"""How many clients a worker process carries before the next one is started."""


def default_rate(clients: int) -> float:
    """Return the capacity of each client's emulated path in Mbit/s, where none is asked for."""
    return max(TOTAL_RATE_MBIT / clients, SMALLEST_RATE_MBIT)


class Technique(enum.Enum):
    """How the server is moved."""

    HANDOVER = "handover"
    """Its connections are handed over to another process."""
    REBIND = "rebind"
    """The process binds another address."""


@dataclass(frozen=True)
class ClientPlan:
    """One client of the demo.

    Attributes:
        id: counts from 1.
        protocol: the name of the only protocol that it offers, or ``"none"``.
        policy: how it looks for the server; ``"none"`` without the extension.
        seed: of its requests.
    """

    id: int
    protocol: str
    policy: str
    seed: int

    @property
    def has_extension(self) -> bool:
        """Whether this client negotiates server migration."""
        return self.protocol != WITHOUT_EXTENSION


@dataclass(frozen=True)
class Settings:
    """What the options of ``quicferry demo`` say.

    Attributes:
        technique: how the server is moved.
        protocol: a protocol's name, or ``"mixed"``.
        policy: of all clients.
        scheduler: of all clients.
        clients: how many.
        duration: seconds of load, from the moment that all clients are connected.
        seed: of sizes, losses and jitter.
        round_trips: 0 to move once, N to move there and back N times.
        source: where the server starts.
        destination: where it moves.
        before: the emulated path to the source.
        after: the emulated path to the destination.
        qlog: directory for traces.
    """

    technique: Technique = Technique.HANDOVER
    protocol: str = MIXED
    policy: Policy = Policy.EAGER
    scheduler: Scheduler = Scheduler.PARALLEL
    clients: int = 5
    duration: float = 10.0
    seed: int = 1
    round_trips: int = 0
    source: str = "127.0.0.1"
    destination: str = "127.0.0.2"
    before: PathSpec = TRANSPARENT
    after: PathSpec = TRANSPARENT
    qlog: Path | None = None

    @property
    def relocations(self) -> int:
        """How many times the server moves."""
        return max(1, 2 * self.round_trips)

    def plans(self) -> list[ClientPlan]:
        """Return the clients; when mixed, every protocol in turn and the last one without.

        With fewer clients than that takes, they have the first of the protocols.
        """
        protocols = list(PROTOCOL_NAMES) if self.protocol == MIXED else [self.protocol]
        plans = [
            ClientPlan(
                id=number,
                protocol=protocols[(number - 1) % len(protocols)],
                policy=self.policy.value,
                seed=self.seed * 1_000_003 + number,
            )
            for number in range(1, self.clients + 1)
        ]
        if self.protocol == MIXED and self.clients > len(protocols):
            last = plans[-1]
            plans[-1] = ClientPlan(last.id, WITHOUT_EXTENSION, WITHOUT_EXTENSION, last.seed)
        return plans

    def pool(self, port: int) -> list[Address]:
        """Return what ``serve --pool`` is given: every address that the server will ever have."""
        hosts = (self.destination, self.source)
        return [Address.parse(f"{host}:{port}") for host in hosts]


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker process is told first.

    Attributes:
        server: the address to connect to.
        ca_file: the certificate that the server must present.
        clients: the clients that live in this worker.
        paths: the emulated path to each server address.
        scheduler: of clients with Pool of Addresses.
        qlog: directory for traces.
        last_server: the address where the server is in the end: the load goes on until a client has
            had a response from there; None if it need not.
    """

    server: str
    ca_file: str
    clients: tuple[ClientPlan, ...]
    paths: dict[str, PathSpec]
    scheduler: str
    qlog: str | None = None
    last_server: str | None = None

    def encode(self) -> dict[str, Any]:
        """Return these settings as what JSON can carry."""
        return asdict(self)

    @classmethod
    def decode(cls, data: dict[str, Any]) -> Self:
        """Return the settings that :meth:`encode` made ``data`` of."""
        return cls(
            server=data["server"],
            ca_file=data["ca_file"],
            clients=tuple(ClientPlan(**plan) for plan in data["clients"]),
            paths={address: PathSpec(**spec) for address, spec in data["paths"].items()},
            scheduler=data["scheduler"],
            qlog=data["qlog"],
            last_server=data["last_server"],
        )


def share_among_workers(plans: list[ClientPlan]) -> list[tuple[ClientPlan, ...]]:
    """Spread the clients evenly over as few worker processes as are reasonable."""
    workers = min(MAX_WORKERS, -(-len(plans) // CLIENTS_PER_WORKER))
    return [tuple(plans[index::workers]) for index in range(workers)]
