"""Many connections migrate as one: when is the server ready, and when is it done?

Theory of operation
-------------------
The orchestrator sees one server; behind it are many connections, each with a migration protocol
and a state machine of its own. This machine joins them:

- *Imminent*: each connection that can migrate is told to prepare. From here on new handshakes are
  refused, and those under way are closed, so that the set of connections only shrinks.
- The server is *ready* when every connection that prepares is ready or closed. A connection whose
  pool is not acknowledged yet begins to prepare when it is.
- A client that acknowledges nothing does not hold it up: its connection is *silent*, and is left
  behind unless it gets ready before the switch.
- A *deadline* bounds that. After it the orchestrator decides: abort, and every connection goes on
  as if nothing had happened; or go without those that are not ready.
- At the *switch* the connections that cannot migrate, were not named, or are not ready are closed,
  from the old address, and all others are told. Handshakes are accepted again.
- The server is done, and can migrate again, when each of those has *completed* or closed. New
  connections have no part in it.

In a hand-over the connections leave this server, so its two ends see a half each. The source is
*frozen* instead of switched; then its connections have *departed*, and nothing but the end comes
after that, or they are *thawed* in place, because the hand-over failed. The destination is
*arriving* until it owns the connections; from there on it is like a server that has switched.
Where the whole process is moved, both ends are one: the server is frozen, and *reappears* on
another host as one that has switched.

It is sans-IO: each input returns the `Action` objects to carry out, in order.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable, Mapping
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
    FROZEN = "frozen"
    """The connections are being handed over to another server."""
    DEPARTED = "departed"
    """They were; this server has nothing left to do."""
    ARRIVING = "arriving"
    """Connections are being handed over to this server."""


class Input(enum.Enum):
    """What can happen to the server."""

    IMMINENT = enum.auto()
    ALL_READY = enum.auto()
    DEADLINE = enum.auto()
    ABORT = enum.auto()
    SWITCH = enum.auto()
    ALL_COMPLETED = enum.auto()
    FREEZE = enum.auto()
    RESUME = enum.auto()
    DEPART = enum.auto()
    EXPECT = enum.auto()
    ARRIVE = enum.auto()
    REAPPEAR = enum.auto()


class Do(enum.Enum):
    """What the server does on a transition."""

    PREPARE = enum.auto()
    RESUME = enum.auto()
    LEAVE_BEHIND = enum.auto()
    TELL = enum.auto()
    RELEASE = enum.auto()
    FORGET = enum.auto()
    FAIL_IN_PROGRESS = enum.auto()
    FAIL_NOT_PREPARED = enum.auto()
    FAIL_NOT_READY = enum.auto()
    FAIL_SWITCHED = enum.auto()
    FAIL_HANDOVER = enum.auto()


_P, _I, _D = Phase, Input, Do
_BEFORE_SWITCH = (_P.PREPARING, _P.OVERDUE, _P.READY)
_HANDOVER = (_P.FROZEN, _P.DEPARTED, _P.ARRIVING)
_NO_HANDOVER = (*_BEFORE_SWITCH, _P.SWITCHED, _P.DEPARTED)
_COMMANDS = (_I.IMMINENT, _I.ABORT, _I.SWITCH, _I.FREEZE)
_STEPS = (_I.RESUME, _I.DEPART, _I.EXPECT, _I.ARRIVE, _I.REAPPEAR)

TABLE: Table[Phase, Input, Do] = Table(
    Phase,
    Input,
    [
        ((_P.SERVING,), (_I.IMMINENT,), _P.PREPARING, (_D.PREPARE,)),
        ((_P.SERVING,), (_I.ABORT, _I.SWITCH, _I.FREEZE), None, (_D.FAIL_NOT_PREPARED,)),
        ((_P.SERVING,), (_I.EXPECT,), _P.ARRIVING, ()),
        ((_P.SERVING,), (_I.ALL_READY, _I.DEADLINE, _I.ALL_COMPLETED), None, ()),
        ((_P.PREPARING,), (_I.ALL_READY,), _P.READY, ()),
        ((_P.PREPARING,), (_I.DEADLINE,), _P.OVERDUE, ()),
        ((_P.PREPARING,), (_I.SWITCH, _I.FREEZE), None, (_D.FAIL_NOT_READY,)),
        ((_P.OVERDUE,), (_I.ALL_READY,), _P.READY, ()),
        ((_P.READY,), (_I.ALL_READY,), None, ()),
        ((_P.OVERDUE, _P.READY), (_I.DEADLINE,), None, ()),
        ((_P.OVERDUE, _P.READY), (_I.SWITCH,), _P.SWITCHED, (_D.LEAVE_BEHIND, _D.TELL)),
        ((_P.OVERDUE, _P.READY), (_I.FREEZE,), _P.FROZEN, ()),
        (_BEFORE_SWITCH, (_I.ABORT,), _P.SERVING, (_D.RESUME, _D.FORGET)),
        (_BEFORE_SWITCH, (_I.IMMINENT,), None, (_D.FAIL_IN_PROGRESS,)),
        (_BEFORE_SWITCH, (_I.ALL_COMPLETED,), None, ()),
        ((_P.SWITCHED,), (_I.ALL_COMPLETED,), _P.SERVING, ()),
        ((_P.SWITCHED,), (_I.IMMINENT,), None, (_D.FAIL_IN_PROGRESS,)),
        ((_P.SWITCHED,), (_I.ABORT, _I.SWITCH, _I.FREEZE), None, (_D.FAIL_SWITCHED,)),
        ((_P.SWITCHED,), (_I.ALL_READY, _I.DEADLINE), None, ()),
        ((_P.FROZEN,), (_I.RESUME,), _P.SERVING, (_D.RESUME, _D.FORGET)),
        ((_P.FROZEN,), (_I.DEPART,), _P.DEPARTED, (_D.LEAVE_BEHIND, _D.RELEASE)),
        ((_P.FROZEN,), (_I.REAPPEAR,), _P.SWITCHED, (_D.LEAVE_BEHIND, _D.TELL)),
        ((_P.ARRIVING,), (_I.ARRIVE,), _P.SWITCHED, ()),
        (_HANDOVER, _COMMANDS, None, (_D.FAIL_HANDOVER,)),
        (_HANDOVER, (_I.ALL_READY, _I.DEADLINE, _I.ALL_COMPLETED), None, ()),
        ((_P.FROZEN,), (_I.EXPECT, _I.ARRIVE), None, (_D.FAIL_HANDOVER,)),
        (
            (_P.ARRIVING,),
            (_I.RESUME, _I.DEPART, _I.EXPECT, _I.REAPPEAR),
            None,
            (_D.FAIL_HANDOVER,),
        ),
        (
            (_P.SERVING,),
            (_I.RESUME, _I.DEPART, _I.ARRIVE, _I.REAPPEAR),
            None,
            (_D.FAIL_HANDOVER,),
        ),
        (_NO_HANDOVER, _STEPS, None, (_D.FAIL_HANDOVER,)),
    ],
)


class Progress(enum.Enum):
    """How far one connection is in a migration of the server."""

    WAITING = "waiting"
    """Its pool is not acknowledged yet."""
    PREPARING = "preparing"
    READY = "ready"
    SILENT = "silent"
    """Its client has acknowledged nothing since the announcement. It may get ready yet."""
    UNABLE = "unable"
    """It cannot migrate, or was not named: it is served until the switch."""
    SWITCHED = "switched"
    DEPARTED = "departed"
    """It was handed over to another server."""
    COMPLETED = "completed"
    LEFT_BEHIND = "left-behind"
    """It was closed at the switch."""
    FAILED = "failed"
    """Its migration failed, and it is closed."""
    CLOSED = "closed"
    """It ended for another reason."""


_UNREADY = (Progress.WAITING, Progress.PREPARING)
_STAYING = (Progress.SILENT, Progress.UNABLE)


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
class Release(Action):
    """Let this connection go to the server that has adopted it."""


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

    @property
    def is_prepared(self) -> bool:
        """Whether a migration was announced, and nothing has come of it yet."""
        return self.phase in _BEFORE_SWITCH

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

    def check_imminent(self) -> None:
        """Check that `imminent` is possible; nothing changes.

        Raises:
            RelocationError: As `imminent`.
        """
        self._check(Input.IMMINENT)

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

    # Inputs of a hand-over

    def freeze(self) -> tuple[str, ...]:
        """Stop here; return the connections that are ready to be handed over.

        Raises:
            RelocationError: As `switch`.
        """
        self._step(Input.FREEZE)
        return self.those(Progress.READY)

    def resume(self) -> list[Action]:
        """Go on here as if no migration had been announced, after the hand-over has failed."""
        return self._step(Input.RESUME)

    def depart(self) -> list[Action]:
        """Let the connections go, now that another server has adopted them."""
        return self._step(Input.DEPART)

    def reappear(self) -> list[Action]:
        """Own the connections that were frozen, because the process runs on another host now."""
        return self._step(Input.REAPPEAR)

    def expect(self) -> None:
        """Wait for connections of another server.

        Raises:
            RelocationError: If this server is not one that has just begun.
        """
        self._step(Input.EXPECT)

    def arrive(self, names: Iterable[str]) -> list[Action]:
        """Own these connections, which were told that the server has switched.

        Raises:
            RelocationError: If this server does not expect any.
        """
        self._check(Input.ARRIVE)
        self.progress = dict.fromkeys(names, Progress.SWITCHED)
        self._count = Counter(self.progress.values())
        return self._step(Input.ARRIVE)

    # Inputs of connections; those of connections that have no part in the migration are ignored

    def pool_acknowledged(self, connection_id: str) -> list[Action]:
        """Let a connection prepare that waited for the acknowledgement of its pool."""
        progress = self.progress.get(connection_id)
        has_waited = progress is Progress.SILENT and connection_id in self.plan.waiting
        if not self.is_prepared or not (progress is Progress.WAITING or has_waited):
            return []
        if progress is Progress.WAITING:
            self._advance_to(Progress.PREPARING, (connection_id,))
        return [Prepare(connection_id, self.plan.assignments[connection_id])]

    def ready(self, connection_id: str) -> list[Action]:
        """Note that a connection is ready; where that comes too late, it stays behind."""
        if not self.is_prepared:
            return []
        before = (Progress.PREPARING, Progress.SILENT)
        return self._advance(connection_id, before, Progress.READY)

    def silent(self, connection_id: str) -> list[Action]:
        """Note that nobody waits for a connection any longer, since its client is silent."""
        return self._advance(connection_id, _UNREADY, Progress.SILENT)

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
        alive = (*_UNREADY, *_STAYING, Progress.READY, Progress.SWITCHED)
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
                case Do.FAIL_HANDOVER:
                    raise RelocationError(RelocationErrorCode.BEING_HANDED_OVER)

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
                told = self.those(Progress.PREPARING, Progress.SILENT, Progress.READY)
                return [Resume(name) for name in told]
            case Do.LEAVE_BEHIND:
                left = self.those(*_UNREADY, *_STAYING)
                self._advance_to(Progress.LEFT_BEHIND, left)
                return [Close(name) for name in left]
            case Do.RELEASE:
                released = self.those(Progress.READY)
                self._advance_to(Progress.DEPARTED, released)
                return [Release(name) for name in released]
            case Do.TELL:
                told = self.those(Progress.READY)
                self._advance_to(Progress.SWITCHED, told)
                return [Tell(name, self.plan.assignments[name]) for name in told]
            case Do.FORGET:
                self.plan, self.progress, self._count = Plan({}), {}, Counter()
        return []
