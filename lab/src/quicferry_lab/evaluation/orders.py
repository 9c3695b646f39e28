"""What a client process is told first, and what it tells of each client in the end."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Self

from quicferry_lab.evaluation.run import WITHOUT, Run, Script

_SPREAD = (Script.NOTIFICATION, Script.OVER_TIME)
"""In which clients begin as they like."""


@dataclass(frozen=True)
class Orders:
    """What the clients of one process do.

    Attributes:
        server: The address to connect to.
        ca_file: The certificate that the server must present.
        clients: Which clients live in this process, by number.
        seed: Of the run.
        workload: Of which kind their requests are.
        pause: Seconds between a response and the next request.
        spread: Seconds within which the clients begin, one after the other; 0 for all at once.
        requests: How many each sends; None: until they are stopped.
        protocol: The only migration protocol that they offer, or ``"none"``.
        policy: How they look for the server.
        scheduler: In which order they look through a pool.
    """

    server: str
    ca_file: str
    clients: tuple[int, ...]
    seed: int
    workload: str
    pause: float
    spread: float
    requests: int | None
    protocol: str
    policy: str
    scheduler: str

    @classmethod
    def of(cls, run: Run, clients: tuple[int, ...], *, server: str, ca_file: str) -> Self:
        """Return the orders for some of the clients of a run."""
        return cls(
            server=server,
            ca_file=ca_file,
            clients=clients,
            seed=run.seed,
            workload=run.workload.value,
            pause=run.pause,
            spread=max(run.pause, run.source_rtt_ms / 1000) if run.script in _SPREAD else 0.0,
            requests=run.requests,
            protocol=run.protocol,
            policy=run.policy,
            scheduler=run.scheduler,
        )

    @property
    def has_extension(self) -> bool:
        """Whether the clients negotiate server migration."""
        return self.protocol != WITHOUT

    def encode(self) -> dict[str, Any]:
        """Return these orders as what JSON can carry."""
        return asdict(self)

    @classmethod
    def decode(cls, data: dict[str, Any]) -> Self:
        """Return the orders that :meth:`encode` made `data` of."""
        return cls(**{**data, "clients": tuple(data["clients"])})


@dataclass(frozen=True)
class Answer:
    """One request of a client, answered or not, as its process tells of it.

    Attributes:
        client: Which client.
        number: Which of its requests.
        started: When it was sent, in seconds of the monotonic clock.
        seconds: Until its whole response was there and found right; None if that did not happen.
        method: GET or POST.
        upload: Bytes of its body.
        download: Bytes of the response's body.
        server: Where the last datagram of the response came from; empty if there was none.
        error: Why it failed; empty if it did not.
    """

    client: int
    number: int
    started: float
    seconds: float | None
    method: str
    upload: int
    download: int
    server: str
    error: str = ""


@dataclass(frozen=True)
class Found:
    """What a client has found in the end.

    Attributes:
        client: Which client.
        migrations: How many migrations it has completed.
        lost: How its connection was lost; empty if it was not.
    """

    client: int
    migrations: int
    lost: str = ""
