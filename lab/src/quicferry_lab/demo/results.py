"""What a run of the demo found out, and its JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Self

from quicferry_lab.demo.settings import ClientPlan, Technique

AFTER_SWITCH = 0.5
"""Seconds after a network switch in which a gap may well have to do with it."""


@dataclass(frozen=True)
class Sample:
    """One request that was answered.

    Attributes:
        started: when it was sent, in seconds of the monotonic clock.
        seconds: from then until the last byte of the response.
        kind: "echo", "download" or "upload".
    """

    started: float
    seconds: float
    kind: str


@dataclass(frozen=True)
class Gap:
    """A time without response bytes, in seconds of the monotonic clock."""

    started: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.ended - self.started


@dataclass(frozen=True)
class Arrival:
    """The first response bytes after the client heard from another server address.

    Attributes:
        at: when, in seconds of the monotonic clock.
        server: the address, as text.
    """

    at: float
    server: str


@dataclass(frozen=True)
class ClientProgress:
    """How a client is doing, for the live display; see `ClientReport` for the fields."""

    id: int
    status: str
    server: str
    requests_ok: int
    requests_failed: int
    bytes_verified: int
    migrations: int
    longest_gap: float


@dataclass(frozen=True)
class ClientReport:
    """What a worker process reports about one client at the end.

    Attributes:
        id: of the client.
        status: "done", or why the client ended before the others.
        reconnects: how often it had to connect again, because the server had closed it when it
            moved.
        requests_ok: requests whose response was right.
        requests_failed: requests that failed, the large download included.
        bytes_verified: bytes of responses that were checked and found right.
        migrations: how many migrations the client completed.
        gaps: times without response bytes, those of a millisecond and more.
        samples: of the requests that were answered.
        arrivals: in order of time.
        errors: what went wrong, in words.
    """

    id: int
    status: str
    reconnects: int
    requests_ok: int
    requests_failed: int
    bytes_verified: int
    migrations: int
    gaps: tuple[Gap, ...]
    samples: tuple[Sample, ...]
    arrivals: tuple[Arrival, ...]
    errors: tuple[str, ...]

    def encode(self) -> dict[str, Any]:
        """Return this report as what JSON can carry."""
        return asdict(self)

    @classmethod
    def decode(cls, data: dict[str, Any]) -> Self:
        """Return the report that :meth:`encode` made ``data`` of."""
        return cls(
            **{
                **data,
                "gaps": tuple(Gap(**gap) for gap in data["gaps"]),
                "samples": tuple(Sample(**sample) for sample in data["samples"]),
                "arrivals": tuple(Arrival(**arrival) for arrival in data["arrivals"]),
                "errors": tuple(data["errors"]),
            }
        )

    @property
    def longest_gap(self) -> Gap:
        """The longest time without response bytes."""
        return max(self.gaps, key=lambda gap: gap.seconds, default=Gap(0.0, 0.0))


@dataclass(frozen=True)
class Relocation:
    """One relocation of the server; the instants are in seconds of the monotonic clock.

    Attributes:
        source: where the server was.
        destination: where it is.
        imminent_at: when it was told to prepare.
        ready_at: when it was ready.
        switched_at: when it was at the destination, and could be heard there.
        completed_at: when all clients had followed.
        phases: of a handover, the seconds that each of its phases took.
        memory: of a handover, what each agent has in RAM after it, in bytes.
    """

    source: str
    destination: str
    imminent_at: float
    ready_at: float
    switched_at: float
    completed_at: float
    phases: dict[str, float] | None = None
    memory: tuple[int, ...] = ()


@dataclass(frozen=True)
class DemoResult:
    """Everything that a run of the demo found out.

    Attributes:
        technique: how the server was moved.
        started: when all clients were connected, in seconds of the monotonic clock.
        relocations: those that took place, in order.
        planned_relocations: how many there should have been.
        clients: a plan and a report for each client.
    """

    technique: Technique
    started: float
    relocations: tuple[Relocation, ...]
    planned_relocations: int
    clients: tuple[tuple[ClientPlan, ClientReport], ...]

    @property
    def problems(self) -> list[str]:
        """What is not as it should be, in words; empty when the run was a success."""
        found = []
        if len(self.relocations) < self.planned_relocations:
            found.append(f"{len(self.relocations)} of {self.planned_relocations} relocations done")
        for plan, report in self.clients:
            found += [f"client {plan.id}: {error}" for error in report.errors]
            if report.requests_failed and not report.errors:
                found.append(f"client {plan.id}: {report.requests_failed} requests failed")
            if not report.requests_ok:
                found.append(f"client {plan.id}: no request was answered")
            if plan.has_extension and report.migrations < len(self.relocations):
                found.append(f"client {plan.id}: {report.migrations} migrations completed")
        return found

    @property
    def ok(self) -> bool:
        """Whether every relocation took place and no client lost anything."""
        return not self.problems

    def switch_to_first_response(self, report: ClientReport) -> float | None:
        """Return the longest time from a network switch to the first response after it.

        That is the first response bytes that a client gets once it has heard from the server at its
        new address. None for a client that never did.
        """
        waits = [
            min(
                (
                    arrival.at - relocation.switched_at
                    for arrival in report.arrivals
                    if arrival.server == relocation.destination
                    and arrival.at >= relocation.switched_at
                ),
                default=None,
            )
            for relocation in self.relocations
        ]
        known = [wait for wait in waits if wait is not None]
        return max(known) if known else None

    def gap_at_switch(self, report: ClientReport) -> float | None:
        """Return the longest gap at a network switch or up to half a second after one.

        None for a client that was not there any more.
        """
        if not (report.migrations or report.reconnects):
            return None
        switches = [relocation.switched_at for relocation in self.relocations]
        return max(
            (
                gap.seconds
                for gap in report.gaps
                for switch in switches
                if gap.started < switch + AFTER_SWITCH and gap.ended > switch
            ),
            default=0.0,
        )

    def encode(self) -> dict[str, Any]:
        """Return the result as ``quicferry demo --json`` prints it."""
        return {
            "ok": self.ok,
            "technique": self.technique.value,
            "relocations": [_encode_relocation(relocation) for relocation in self.relocations],
            "clients": [self._encode_client(plan, report) for plan, report in self.clients],
            "problems": self.problems,
        }

    def _encode_client(self, plan: ClientPlan, report: ClientReport) -> dict[str, Any]:
        first_response = self.switch_to_first_response(report)
        times = sorted(sample.seconds for sample in report.samples)
        return {
            "id": plan.id,
            "protocol": plan.protocol,
            "policy": plan.policy,
            "migrated": report.migrations > 0,
            "requests_ok": report.requests_ok,
            "requests_failed": report.requests_failed,
            "bytes_verified": report.bytes_verified,
            "longest_gap_ms": _ms(report.longest_gap.seconds),
            "switch_to_first_response_ms": _ms(first_response),
            "gap_at_switch_ms": _ms(self.gap_at_switch(report)),
            "longest_gap_at_ms": _ms(report.longest_gap.started - self.started),
            "migrations": report.migrations,
            "reconnects": report.reconnects,
            "service_time_median_ms": _ms(median(times) if times else None),
            "service_time_max_ms": _ms(times[-1] if times else None),
            "status": report.status,
        }


def _encode_relocation(relocation: Relocation) -> dict[str, Any]:
    encoded: dict[str, Any] = {
        "from": relocation.source,
        "to": relocation.destination,
        "imminent_to_ready_ms": _ms(relocation.ready_at - relocation.imminent_at),
        "switch_to_all_completed_ms": _ms(relocation.completed_at - relocation.switched_at),
    }
    if relocation.phases is not None:
        encoded["phases_ms"] = {name: _ms(seconds) for name, seconds in relocation.phases.items()}
    return encoded


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
