"""What a relocation is made of, and what is known of it afterwards.

Every technique takes the same steps in the same order, and gives the same report.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quicferry.protocol import Address
from quicferry.server import RelocationEvent


class Step(enum.Enum):
    """A step of a relocation."""

    OFFER = "offer"
    """The destination checks whether it can take the server, and binds the new address."""
    PRE_COPY = "pre-copy"
    """Memory of the container goes to the destination while the server goes on."""
    IMMINENT = "imminent"
    """Every connection prepares for its migration, until the server is ready."""
    DRAIN = "drain"
    """Requests that are running come to their end; new ones wait."""
    FREEZE = "freeze"
    """The server falls silent; from here on its clients wait."""
    TRANSFER = "transfer"
    """Its state goes to the destination."""
    THAW = "thaw"
    """The destination makes a server of that state, which is silent."""
    SWITCH = "switch"
    """Its connections are put at the new address."""
    COMMIT = "commit"
    """The destination comes to own them, and they live again."""
    FOLLOW = "follow"
    """The clients follow by their migration protocols."""


class Outcome(enum.Enum):
    """How a relocation has ended."""

    COMMITTED = "committed"
    """The destination owns the connections."""
    ROLLED_BACK = "rolled-back"
    """The source does, as if nothing had happened."""
    GIVEN_UP = "given-up"
    """The destination may or may not; it could not be asked in time, and the source does not."""


@dataclass(frozen=True)
class StepWaits(RelocationEvent):
    """A step of a relocation waits until it is allowed to begin.

    Attributes:
        step: Which one.
    """

    step: Step


@dataclass(frozen=True)
class StepBegun(RelocationEvent):
    """A step of a relocation begins.

    Attributes:
        step: Which one.
    """

    step: Step


@dataclass(frozen=True)
class StepEnded(RelocationEvent):
    """A step of a relocation was done.

    Attributes:
        step: Which one.
        seconds: How long it took.
    """

    step: Step
    seconds: float


@dataclass(frozen=True)
class DestinationStarts(RelocationEvent):
    """The destination starts the application.

    Attributes:
        seconds: How long that may take.
    """

    seconds: float


@dataclass(frozen=True)
class Transferred(RelocationEvent):
    """So much of a container has been sent.

    Attributes:
        bytes: Of its images.
        sent: Bytes that these were on their way, compressed.
        total: Bytes of memory that the container uses, which is about what will be sent.
    """

    bytes: int
    sent: int
    total: int


@dataclass(frozen=True)
class RelocationReport:
    """What became of a relocation.

    Attributes:
        technique: How the server was moved, for example ``handover``.
        outcome: Who has the connections now.
        source: Where the server was.
        destination: Where it was to go.
        steps: Those that were done, and how many seconds each took. Of a step that failed it is
            the time until then.
        failed_step: The step at which it failed; None if it did not.
        reason: Why it failed; empty if it did not.
        connections: The stable ids of the connections that were moved.
        closed: Those that were closed, because they could not come along.
        silent: Those whose clients had acknowledged nothing since the announcement. They were not
            waited for; if they did not get ready later, they are among the closed ones.
        rejected: Requests that were reset, in words.
        announced: Where clients still expect the server, by the stable ids of their connections,
            although it has not moved: those that cannot be told.
        started_at: When it began, on the monotonic clock of the source's host (`time.monotonic`).
        owned_at: When the source knew that the destination owns the connections, by that clock;
            None if it never did.
        silence: Seconds from the freeze until the connections lived again; 0 without a freeze.
        size: Bytes of state that were sent to the destination.
        followed: Whether every client is known to have followed.
        pending: The connections whose clients had not followed when the time was up.
        lost: The connections that ended before their clients had followed.
    """

    technique: str
    outcome: Outcome
    source: Address
    destination: Address
    steps: dict[Step, float]
    failed_step: Step | None = None
    reason: str = ""
    connections: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    announced: dict[str, str] = field(default_factory=dict)
    started_at: float = 0.0
    owned_at: float | None = None
    silence: float = 0.0
    size: int = 0
    followed: bool = False
    pending: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    def encode(self) -> dict[str, Any]:
        """Return this report in values that JSON can express."""
        return {
            "technique": self.technique,
            "outcome": self.outcome.value,
            "source": str(self.source),
            "destination": str(self.destination),
            "phases": {step.value: seconds for step, seconds in self.steps.items()},
            "failed_phase": None if self.failed_step is None else self.failed_step.value,
            "reason": self.reason,
            "connections": list(self.connections),
            "closed": list(self.closed),
            "silent": list(self.silent),
            "rejected": list(self.rejected),
            "announced": dict(self.announced),
            "started_at": self.started_at,
            "owned_at": self.owned_at,
            "silence": self.silence,
            "bytes": self.size,
            "followed": self.followed,
            "pending": list(self.pending),
            "lost": list(self.lost),
        }


@dataclass
class Stopwatch:
    """Measures the steps of a relocation, one after the other.

    Attributes:
        tell: Called at the beginning and at the end of each step.
        steps: The seconds that each has taken.
        current: The step that is under way.
        latest: The step that was begun last.
    """

    tell: Callable[[RelocationEvent], None]
    steps: dict[Step, float] = field(default_factory=dict)
    current: Step | None = None
    latest: Step | None = None
    _since: float = 0.0

    def begin(self, step: Step) -> None:
        """End the step that is under way, and begin with this one."""
        self.end()
        self.current = self.latest = step
        self._since = time.monotonic()
        self.tell(StepBegun(step))

    def end(self) -> None:
        """End the step that is under way, if any."""
        if self.current is not None:
            seconds = time.monotonic() - self._since
            self.steps[self.current] = seconds
            step, self.current = self.current, None
            self.tell(StepEnded(step, seconds))
