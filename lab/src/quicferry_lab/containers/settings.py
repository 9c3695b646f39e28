"""What a trial with containers is made of."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from quicferry.protocol import MigrationProtocol, Policy, protocol_name
from quicferry.relocation import Compression, Technique
from quicferry_lab.emulation import PathSpec
from quicferry_lab.ground import GIGABIT

EDGE = PathSpec(rtt_ms=18, rate_mbit=12)
"""The path between client and server, before and after: as much as two cores serve and check with
time to spare, so that their speed does not show."""


class Whereabouts(enum.Enum):
    """Where the clients are."""

    DIRECT = "direct"
    BEHIND_NAT = "behind-nat"
    """Behind a NAT, which lets nothing in from an address that nothing was sent to."""


@dataclass(frozen=True)
class Settings:
    """One trial.

    Attributes:
        technique: How the container is moved.
        engine: By which engine.
        protocol: The migration protocol of the clients.
        policy: How they look for the server.
        memory: What the application keeps beside the rest, in megabytes of random bytes.
        clients: How many there are; each has requests and downloads under way all the time.
        near: The path between clients and source.
        far: The path between clients and destination.
        between: The link between the two hosts.
        compression: Of what is moved.
        round_trip: Whether the server is moved back as well.
        clients_are: Where the clients are.
        clock_offset: Seconds by which the destination's clocks are ahead.
        before: Seconds of load before the relocation, and after it.
        seed: Of the clients' requests.
    """

    technique: Technique = Technique.COLD
    engine: str = "runc"
    protocol: MigrationProtocol = MigrationProtocol.EXPLICIT
    policy: Policy = Policy.EAGER
    memory: int = 0
    clients: int = 3
    near: PathSpec = EDGE
    far: PathSpec = EDGE
    between: PathSpec = GIGABIT
    compression: Compression = Compression.ZSTD
    round_trip: bool = False
    clients_are: Whereabouts = Whereabouts.DIRECT
    clock_offset: int | None = None
    before: float = 1.0
    seed: int = 1

    def __str__(self) -> str:
        return (
            f"{self.engine}, {self.technique.value}, {protocol_name(self.protocol)} "
            f"({self.policy.value}), {self.memory} MB more"
        )
