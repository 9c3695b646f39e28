"""One run of an experiment, as plain parameters."""

from __future__ import annotations

import enum
import hashlib
import json
from dataclasses import dataclass

WITHOUT = "none"
"""The protocol or the technique of a run in which there is no such thing."""


class Backend(enum.Enum):
    """What a run takes place on."""

    SIM = "sim"
    """Real connections over a simulated network, in virtual time; a relocation is a silence."""
    NETNS = "netns"
    """Processes, sockets, emulated links between hosts; the server hands its connections over."""
    CONTAINERS = "containers"
    """The same with a server in a container, which is checkpointed and restored."""


class Script(enum.Enum):
    """What happens in a run, in order."""

    BASELINE = "baseline"
    """Requests, and no relocation."""
    FIRST_REQUEST = "first-request"
    """After so many requests the server is relocated; a quiet time later comes the next one."""
    UNDER_LOAD = "under-load"
    """The same, but the requests go on while the server is on its way."""
    NOTIFICATION = "notification"
    """Clients send requests, and the server is told to get ready; it is not moved."""
    OVER_TIME = "over-time"
    """Clients send requests for some time, in the middle of which the server is relocated."""
    FOLLOW = "follow"
    """The client moves again and again, and the server after it."""


class Workload(enum.Enum):
    """What the requests are."""

    FIXED = "fixed"
    """POST with 1 KB each way."""
    DISTRIBUTION = "distribution"
    """GET and POST, of sizes as they are seen on the web."""


class Peer(enum.Enum):
    """Whose server the clients talk to."""

    OURS = "ours"
    THESIS_SERVER = "thesis-server"
    """A double of the thesis's (`quicferry_lab.simulation.thesis`); only in the simulation."""


@dataclass(frozen=True)
class Run:
    """One run: everything that its outcome depends on, but for the machine.

    Every path is the same in both directions. Those from the clients are: *source*, to the host
    that has the server first, and *destination*, to the one that it goes to. In a run in which the
    server follows its client they are: *source*, from the client to a host that is far, and
    *destination*, to the one that is near.

    Attributes:
        experiment: Its experiment's number.
        whose: ``"thesis"`` for what the thesis has measured, ``"ours"`` for what was added.
        backend: What it takes place on.
        script: What happens in it.
        arm: The name of what is compared: a protocol with its policy.
        repetition: Which one it is, from 1.
        seed: Of everything random in it. Repetitions of different arms share their seeds.
        protocol: The only migration protocol that the clients offer, or ``"none"``.
        peer: Whose server it is.
        policy: How they look for the server.
        scheduler: In which order they look through a pool.
        pool_size: Addresses in the server's pool; the destination is one of them.
        technique: How the server is relocated, or ``"none"``.
        memory_mb: What the application keeps beside the rest.
        compression: Of what is moved.
        silence: How long the server is silent while it is relocated, in seconds, where that is an
            assumption and no finding: in the simulation. None elsewhere.
        clients: How many there are.
        workload: What their requests are.
        pause: Seconds between a response and the next request.
        source_rtt_ms: Round-trip time of that path.
        source_rate_mbit: Its rate.
        destination_rtt_ms: Round-trip time of that path.
        destination_rate_mbit: Its rate.
        loss_percent: Of packets on the paths from the clients, each way.
        requests: How many each client sends; None: until the time is over.
        imminent_after: The request of the first client after which the server has to get ready.
        relocate_after: The request after which it is relocated.
        quiet: Seconds between that and the next request.
        before: Seconds of requests before the server has to get ready, or is relocated.
        after: Seconds of requests after the relocation.
        interval: Seconds from one move of the client to the next.
        duration: Seconds that the run takes, if the client moves.
    """

    experiment: int
    whose: str
    backend: Backend
    script: Script
    arm: str
    repetition: int
    seed: int
    protocol: str = WITHOUT
    peer: Peer = Peer.OURS
    policy: str = "eager"
    scheduler: str = "parallel"
    pool_size: int = 0
    technique: str = WITHOUT
    memory_mb: int = 0
    compression: str = "zstd"
    silence: float | None = None
    clients: int = 1
    workload: Workload = Workload.FIXED
    pause: float = 0.0
    source_rtt_ms: float = 122.0
    source_rate_mbit: float = 13.0
    destination_rtt_ms: float = 18.0
    destination_rate_mbit: float = 100.0
    loss_percent: float = 0.0
    requests: int | None = None
    imminent_after: int | None = None
    relocate_after: int | None = None
    quiet: float = 0.0
    before: float = 0.0
    after: float = 0.0
    interval: float = 0.0
    duration: float = 0.0

    def row(self) -> dict[str, str | int | float | None]:
        """Return the parameters as a row of a table, with the run's key first."""
        return {"run": self.key, **_plain(self)}

    @property
    def key(self) -> str:
        """What tells this run from every other, in sixteen characters."""
        parameters = _plain(self)
        if self.peer is Peer.OURS:
            # So runs from before there was a choice are known by the keys that they have.
            del parameters["peer"]
        text = json.dumps(parameters, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        words = [f"experiment {self.experiment}", self.arm]
        if self.peer is not Peer.OURS:
            words.append(f"with {self.peer.value}")
        if self.technique != WITHOUT:
            words.append(f"{self.technique} +{self.memory_mb} MB")
        words.append(f"{self.source_rtt_ms:g} to {self.destination_rtt_ms:g} ms")
        if self.clients > 1:
            words.append(f"{self.clients} clients")
        if self.loss_percent:
            words.append(f"{self.loss_percent:g} % loss")
        return f"{', '.join(words)}, seed {self.seed} ({self.backend.value})"


def _plain(run: Run) -> dict[str, str | int | float | None]:
    return {
        name: value.value if isinstance(value, enum.Enum) else value
        for name, value in vars(run).items()
    }
