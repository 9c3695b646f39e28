"""Many connections migrate as one: when is the server ready, and when is it done?

Theory of operation
-------------------
The orchestrator sees one server; behind it are many connections, each with a migration protocol
and a state machine of its own. This machine joins them:

- *Imminent*: each connection that can migrate is told to prepare. From here on new handshakes are
  refused, and those under way are closed, so that the set of connections only shrinks.
- The server is *ready* when every connection that prepares is ready or closed. A connection whose
  pool is not acknowledged yet begins to prepare when it is.
- A *deadline* bounds that. After it the orchestrator decides: abort, and every connection goes on
  as if nothing had happened; or go without those that are not ready.
- At the *switch* the connections that cannot migrate, were not named, or are not ready are closed,
  from the old address, and all others are told. Handshakes are accepted again.
- The server is done, and can migrate again, when each of those has *completed* or closed. New
  connections have no part in it.

It is sans-IO: each input returns the `Action` objects to carry out, in order.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from quicferry.protocol import MigrationAddress, MigrationErrorCode, MigrationProtocol
from quicferry.protocol.table import Table

from .errors import RelocationError, RelocationErrorCode


class Phase(enum.Enum):
    """Where the server is in a migration."""

    SERVING = "serving"
    PREPARING = "preparing"
    OVERDUE = "overdue"
    """The deadline has passed, and not all are ready."""
    READY = "ready"
    SWITCHED = "switched"


class Input(enum.Enum):
    """What can happen to the server."""

    IMMINENT = enum.auto()
    ALL_READY = enum.auto()
    DEADLINE = enum.auto()
    ABORT = enum.auto()
    SWITCH = enum.auto()
    ALL_COMPLETED = enum.auto()


class Do(enum.Enum):
    """What the server does on a transition."""

    PREPARE = enum.auto()
    RESUME = enum.auto()
    LEAVE_BEHIND = enum.auto()
    TELL = enum.auto()
    FORGET = enum.auto()
    FAIL_IN_PROGRESS = enum.auto()
    FAIL_NOT_PREPARED = enum.auto()
    FAIL_NOT_READY = enum.auto()
    FAIL_SWITCHED = enum.auto()


_P, _I, _D = Phase, Input, Do
_BEFORE_SWITCH = (_P.PREPARING, _P.OVERDUE, _P.READY)

TABLE: Table[Phase, Input, Do] = Table(
    Phase,
    Input,
    [
        ((_P.SERVING,), (_I.IMMINENT,), _P.PREPARING, (_D.PREPARE,)),
        ((_P.SERVING,), (_I.ABORT, _I.SWITCH), None, (_D.FAIL_NOT_PREPARED,)),
        ((_P.SERVING,), (_I.ALL_READY, _I.DEADLINE, _I.ALL_COMPLETED), None, ()),
        ((_P.PREPARING,), (_I.ALL_READY,), _P.READY, ()),
        ((_P.PREPARING,), (_I.DEADLINE,), _P.OVERDUE, ()),
        ((_P.PREPARING,), (_I.SWITCH,), None, (_D.FAIL_NOT_READY,)),
        ((_P.OVERDUE,), (_I.ALL_READY,), _P.READY, ()),
        ((_P.READY,), (_I.ALL_READY,), None, ()),
        ((_P.OVERDUE, _P.READY), (_I.DEADLINE,), None, ()),
        ((_P.OVERDUE, _P.READY), (_I.SWITCH,), _P.SWITCHED, (_D.LEAVE_BEHIND, _D.TELL)),
        (_BEFORE_SWITCH, (_I.ABORT,), _P.SERVING, (_D.RESUME, _D.FORGET)),
        (_BEFORE_SWITCH, (_I.IMMINENT,), None, (_D.FAIL_IN_PROGRESS,)),
        (_BEFORE_SWITCH, (_I.ALL_COMPLETED,), None, ()),
        ((_P.SWITCHED,), (_I.ALL_COMPLETED,), _P.SERVING, ()),
        ((_P.SWITCHED,), (_I.IMMINENT,), None, (_D.FAIL_IN_PROGRESS,)),
        ((_P.SWITCHED,), (_I.ABORT, _I.SWITCH), None, (_D.FAIL_SWITCHED,)),
        ((_P.SWITCHED,), (_I.ALL_READY, _I.DEADLINE), None, ()),
    ],
)


class Progress(enum.Enum):
    """How far one connection is in a migration of the server."""

    WAITING = "waiting"
    """Its pool is not acknowledged yet."""
    PREPARING = "preparing"
    READY = "ready"
    UNABLE = "unable"
    """It cannot migrate, or was not named: it is served until the switch."""
    SWITCHED = "switched"
    COMPLETED = "completed"
    LEFT_BEHIND = "left-behind"
    """It was closed at the switch."""
    FAILED = "failed"
    """Its migration failed, and it is closed."""
    CLOSED = "closed"
    """It ended for another reason."""


_UNREADY = (Progress.WAITING, Progress.PREPARING)


@dataclass(frozen=True)
class Assignment:
    """How one connection migrates."""

    protocol: MigrationProtocol
    address: MigrationAddress | None = None


@dataclass(frozen=True)
class Plan:
    """What becomes of each connection, by its stable id.

    Attributes:
        assignments: Those that migrate, and how.
        waiting: Those of them that cannot prepare before their pool is acknowledged.
        unable: Those that will be closed at the switch, and why.
    """

    assignments: Mapping[str, Assignment]
    waiting: frozenset[str] = frozenset()
    unable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Action:
    """The base of what is to be done with one connection."""

    connection_id: str


@dataclass(frozen=True)
class Prepare(Action):
    """Announce the migration to this connection."""

    assignment: Assignment


@dataclass(frozen=True)
class Resume(Action):
    """Go on as if no migration had been announced."""


@dataclass(frozen=True)
class Close(Action):
    """Close this connection, from the old address."""


@dataclass(frozen=True)
class Tell(Action):
    """Tell this connection that the server is at its new address."""

    assignment: Assignment


class Synchronisation:
    """The migration of a server, seen across its connections.

    Attributes:
        phase: Where the server is.
        plan: The plan of the current migration, or else of the last one.
        progress: How far each connection of that migration is.
        failures: Why those failed that did.
    """

    def __init__(self) -> None:
        self.phase = Phase.SERVING
        self.plan = Plan({})
        self.progress: dict[str, Progress] = {}
        self._count: Counter[Progress] = Counter()
        self.failures: dict[str, MigrationErrorCode] = {}

    @property
    def accepts_handshakes(self) -> bool:
        """Whether new clients may connect."""
        return self.phase in (Phase.SERVING, Phase.SWITCHED)

    def those(self, *progress: Progress) -> tuple[str, ...]:
        """Return the ids of the connections that are that far."""
        return tuple(name for name, far in self.progress.items() if far in progress)

    @property
    def unready(self) -> tuple[str, ...]:
        """The connections that are not ready yet."""
        return self.those(*_UNREADY)

    # Inputs of the orchestrator

    def imminent(self, plan: Plan) -> list[Action]:
        """Prepare for a migration by `plan`.

        Raises:
            RelocationError: MIGRATION_ALREADY_IN_PROGRESS.
        """
        self._check(Input.IMMINENT)
        self.plan = plan
        self.failures = {}
        self.progress = {
            **dict.fromkeys(plan.assignments, Progress.PREPARING),
            **dict.fromkeys(plan.waiting, Progress.WAITING),
            **dict.fromkeys(plan.unable, Progress.UNABLE),
        }
        self._count = Counter(self.progress.values())
        return self._step(Input.IMMINENT)

    def deadline_passed(self) -> list[Action]:
        """Stop waiting for those that are not ready."""
        return self._step(Input.DEADLINE)

    def abort(self) -> list[Action]:
        """Give up the migration.

        Raises:
            RelocationError: If none has been announced, or the server has already moved.
        """
        return self._step(Input.ABORT)

    def check_switch(self) -> None:
        """Check that `switch` is possible; nothing changes.

        Raises:
            RelocationError: As `switch`.
        """
        self._check(Input.SWITCH)

    def switch(self) -> list[Action]:
        """Go to the new address, without those that are not ready.

        Raises:
            RelocationError: If no migration has been announced, the deadline has not passed and
                not all are ready, or the server has already moved.
        """
        return self._step(Input.SWITCH)

    # Inputs of connections; those of connections that have no part in the migration are ignored

    def pool_acknowledged(self, connection_id: str) -> list[Action]:
        """Let a connection prepare that waited for the acknowledgement of its pool."""
        if self.progress.get(connection_id) is not Progress.WAITING or self.accepts_handshakes:
            return []
        self._advance_to(Progress.PREPARING, (connection_id,))
        return [Prepare(connection_id, self.plan.assignments[connection_id])]

    def ready(self, connection_id: str) -> list[Action]:
        """Note that a connection is ready."""
        return self._advance(connection_id, (Progress.PREPARING,), Progress.READY)

    def completed(self, connection_id: str) -> list[Action]:
        """Note that a connection has migrated."""
        return self._advance(connection_id, (Progress.SWITCHED,), Progress.COMPLETED)

    def failed(self, connection_id: str, error: MigrationErrorCode) -> list[Action]:
        """Note that a connection could not migrate, and is closed."""
        if connection_id in self.progress:
            self.failures[connection_id] = error
        return self._advance(connection_id, tuple(Progress), Progress.FAILED)

    def closed(self, connection_id: str) -> list[Action]:
        """Note that a connection has ended."""
        alive = (*_UNREADY, Progress.READY, Progress.UNABLE, Progress.SWITCHED)
        return self._advance(connection_id, alive, Progress.CLOSED)

    # Transitions

    def _advance(
        self, connection_id: str, before: tuple[Progress, ...], after: Progress
    ) -> list[Action]:
        if self.phase is Phase.SERVING or self.progress.get(connection_id) not in before:
            return []
        self._advance_to(after, (connection_id,))
        return self._settle()

    def _advance_to(self, progress: Progress, names: tuple[str, ...]) -> None:
        for name in names:
            self._count[self.progress[name]] -= 1
            self._count[progress] += 1
            self.progress[name] = progress

    def _settle(self) -> list[Action]:
        """Draw the conclusion when the last connection has done its part."""
        if self.phase is Phase.SWITCHED:
            if not self._count[Progress.SWITCHED]:
                return self._step(Input.ALL_COMPLETED)
        elif not any(self._count[each] for each in _UNREADY):
            return self._step(Input.ALL_READY)
        return []

    def _check(self, received: Input) -> None:
        for action in TABLE[self.phase, received].actions:
            match action:
                case Do.FAIL_IN_PROGRESS:
                    raise RelocationError(MigrationErrorCode.MIGRATION_ALREADY_IN_PROGRESS)
                case Do.FAIL_NOT_PREPARED:
                    raise RelocationError(RelocationErrorCode.NOT_PREPARED)
                case Do.FAIL_NOT_READY:
                    raise RelocationError(RelocationErrorCode.NOT_READY)
                case Do.FAIL_SWITCHED:
                    raise RelocationError(RelocationErrorCode.ALREADY_SWITCHED)

    def _step(self, received: Input) -> list[Action]:
        self._check(received)
        step = TABLE[self.phase, received]
        moved = step.state is not self.phase
        self.phase = step.state
        actions: list[Action] = []
        for do in step.actions:
            actions += self._do(do)
        return actions + self._settle() if moved else actions

    def _do(self, do: Do) -> list[Action]:
        match do:
            case Do.PREPARE:
                preparing = self.those(Progress.PREPARING)
                return [Prepare(name, self.plan.assignments[name]) for name in preparing]
            case Do.RESUME:
                return [Resume(name) for name in self.those(Progress.PREPARING, Progress.READY)]
            case Do.LEAVE_BEHIND:
                left = self.those(*_UNREADY, Progress.UNABLE)
                self._advance_to(Progress.LEFT_BEHIND, left)
                return [Close(name) for name in left]
            case Do.TELL:
                told = self.those(Progress.READY)
                self._advance_to(Progress.SWITCHED, told)
                return [Tell(name, self.plan.assignments[name]) for name in told]
            case Do.FORGET:
                self.plan, self.progress, self._count = Plan({}), {}, Counter()
        return []
