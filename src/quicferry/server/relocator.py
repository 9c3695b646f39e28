"""Moves a server by the technique *rebind*: what was planned, done to connections and sockets.

`planning` says whether a request makes sense, `Synchronisation` what has to be done next; this is
where it is done, and where time comes in. A *handover* begins here as well, up to ready, and ends
here: `departure` and `arrival` do what lies between.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

from quicferry.io import (
    BindError,
    ConnectionLost,
    ConnectionProtocol,
    ConnectionRouter,
    Forward,
    Handshakes,
)
from quicferry.protocol import (
    Address,
    MigrationCompleted,
    MigrationError,
    MigrationErrorCode,
    MigrationEvent,
    MigrationFailed,
    MigrationProtocol,
    MigrationReady,
    PoolAddressAcknowledged,
    ServerMigration,
)

from .errors import ConfigurationError, RelocationError, RelocationErrorCode
from .planning import (
    Choice,
    Destination,
    Situation,
    Unready,
    announced_to,
    check_destination,
    plan_for_all,
    plan_for_named,
)
from .reports import Completion, PhaseChanged, Preparation, Relocation, ServerEvent
from .silence import Silence
from .synchronisation import (
    Action,
    Assignment,
    Close,
    Phase,
    Plan,
    Prepare,
    Progress,
    Release,
    Resume,
    Synchronisation,
    Tell,
)

logger = logging.getLogger("quicferry.server")

MIGRATED = "server migrated"
"""The reason given to connections that are closed because the server goes without them."""

DEFAULT_DEADLINE = 5.0
"""Seconds within which every connection should be ready."""


_LOST = (Progress.CLOSED, Progress.FAILED)


class _Migration:
    """The times of one migration, and who waits for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.announced_at = loop.time()
        self.prepared: asyncio.Future[Preparation] = loop.create_future()
        self.deadline: asyncio.TimerHandle | None = None
        self.silence = Silence()
        self.silence_over: asyncio.TimerHandle | None = None
        self.switched_at: float | None = None
        self.completed: dict[str, float] = {}
        self.done_at: float | None = None
        self.lost: tuple[str, ...] = ()
        self.done = asyncio.Event()

    def wait_no_longer(self) -> None:
        """Stop the timers of the preparation."""
        for timer in (self.deadline, self.silence_over):
            if timer is not None:
                timer.cancel()


class Relocator:
    """Moves the connections of a router to other addresses.

    Args:
        router: The connections and sockets of the server.
        options: The server's choices about server migration; None where that is off.
        publish: Called with everything that happens.
    """

    def __init__(
        self,
        router: ConnectionRouter,
        options: ServerMigration | None,
        publish: Callable[[ServerEvent], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._router = router
        self._options = options
        self._publish = publish
        self._published = Phase.SERVING
        self._migration: _Migration | None = None
        self._may_not_begin = False
        self._is_closed = False
        self.sync = Synchronisation()
        router.on_open = self._adopt

    def connections(self) -> dict[str, ConnectionProtocol]:
        """Return the connections that are open, by stable id."""
        return {
            protocol.connection.stable_id: protocol
            for protocol in self._router.protocols
            if protocol.is_connected and protocol.closed_by is None
        }

    def silent(self) -> list[ConnectionProtocol]:
        """Return the connections whose clients the server does not wait for."""
        open_now = self.connections()
        return [open_now[name] for name in self.sync.those(Progress.SILENT)]

    # Commands

    async def imminent(
        self,
        protocol: MigrationProtocol | None,
        address: Destination,
        connections: Mapping[str, Choice] | None,
        *,
        deadline: float,
        unready: Unready,
        destination: Address | None,
        bind: Address | None,
    ) -> Preparation:
        """Announce a migration; see `Server.imminent`."""
        if not deadline > 0:
            raise ConfigurationError("the deadline must be a positive number of seconds")
        lagging = await self._lagging(unready, deadline)
        situation = self._situation(without=lagging)
        if connections is None:
            plan = plan_for_all(situation, protocol, address, unready)
        elif protocol is not None or address is not None:
            raise ConfigurationError(
                "give one protocol and address for all connections, or one for each of the named"
            )
        else:
            plan = plan_for_named(situation, connections, unready)
        if not lagging:
            self.sync.check_imminent()
        # What can be known is looked at before any client is told.
        for expected in (destination, bind):
            if expected is not None:
                self._check_destination(plan, expected)
        if bind is not None:
            self._check_bind(bind)
        for name in lagging:
            self.connections()[name].close(reason_phrase=MIGRATED)
        return await asyncio.shield(self._begin(plan, deadline).prepared)

    async def switch(self, address: Address, unready: Unready) -> Relocation:
        """Go to another address; see `Server.switch`."""
        if self._migration is not None and self.sync.phase is Phase.PREPARING:
            await asyncio.shield(self._migration.prepared)
        self.sync.check_switch()
        self.check_destination(address)
        if self.sync.unready and unready is Unready.ABORT:
            error = RelocationError(
                RelocationErrorCode.NOT_READY,
                f"connections are not ready: {', '.join(self.sync.unready)}; the migration is "
                "aborted, and every connection goes on where it is",
            )
            self._abort(error)
            raise error
        return self._move(address)

    def abort(self) -> None:
        """Give the migration up; see `Server.abort`."""
        self._abort(RelocationError(RelocationErrorCode.ABORTED))

    def still_announced(self) -> dict[str, str]:
        """Return where clients expect the server without reason; see `Server.still_announced`."""
        return {
            name: expected
            for name, protocol in self.connections().items()
            if protocol.connection.migration_state == "idle"
            and (expected := announced_to(protocol.connection)) is not None
        }

    # Steps of a handover

    def check_destination(self, address: Address) -> None:
        """Check that clients will find the server at `address`, of another host.

        Raises:
            RelocationError: INVALID_ADDRESS if they will not.
        """
        self._check_destination(self.sync.plan, address)

    def freeze(self) -> dict[str, ConnectionProtocol]:
        """Begin with the handover of the connections that are ready, and return them.

        Raises:
            RelocationError: If the server has not prepared.
        """
        names = self.sync.freeze()
        self._note_phase()
        open_now = self.connections()
        return {name: open_now[name] for name in names}

    def resume(self) -> None:
        """Go on as if no migration had been announced; the connections live again."""
        self._carry_out(self.sync.resume())

    def depart(self, forward: Forward, reason: str) -> tuple[str, ...]:
        """Let the connections go, and return the ids of those that cannot come along.

        Args:
            forward: Takes what still arrives for the others.
            reason: What those are told who use them here.
        """
        actions = self.sync.depart()
        self._carry_out([action for action in actions if isinstance(action, Close)])
        released = [action for action in actions if isinstance(action, Release)]
        open_now = self.connections()
        staying = {
            name: protocol
            for name, protocol in open_now.items()
            if not self._router.is_movable(protocol)
        }
        for action in released:
            if (protocol := open_now.get(action.connection_id)) is not None:
                protocol.depart(forward, reason)
        for protocol in staying.values():
            protocol.close(reason_phrase=MIGRATED)
        closed = [action.connection_id for action in actions if isinstance(action, Close)]
        return (*closed, *staying)

    def reappear(self) -> tuple[str, ...]:
        """Own the frozen connections, which were switched, because the process has been moved.

        Returns:
            The ids of those that could not come along.
        """
        migration = self._migration
        assert migration is not None, "there is a phase other than serving"
        migration.switched_at = self._loop.time()
        actions = self.sync.reappear()
        self._note_phase()
        return tuple(action.connection_id for action in actions if isinstance(action, Close))

    def expect(self) -> None:
        """Wait for connections of another server; no clients are accepted meanwhile.

        Raises:
            RelocationError: If the server has begun with something else.
        """
        self.sync.expect()
        self._note_phase()

    def arrive(self, names: Iterable[str]) -> None:
        """Own connections that another server has handed over, and that were switched."""
        migration = self._migration = _Migration(self._loop)
        migration.switched_at = migration.announced_at
        self._carry_out(self.sync.arrive(names))

    async def wait_completed(self, within: float | None) -> Completion:
        """Wait until all connections have followed; see `Server.wait_completed`."""
        migration = self._migration
        if migration is None or migration.switched_at is None:
            raise RelocationError(RelocationErrorCode.NOT_PREPARED, "the server has not been moved")
        try:
            async with asyncio.timeout(within):
                await migration.done.wait()
        except TimeoutError:
            pass
        is_done = migration.done_at is not None
        return Completion(
            is_complete=is_done,
            seconds=(migration.done_at or self._loop.time()) - migration.switched_at,
            completed=dict(migration.completed),
            # What the state machine says may be about the next move already.
            pending=() if is_done else self.sync.those(Progress.SWITCHED),
            lost=migration.lost if is_done else self.sync.those(*_LOST),
            is_final=migration.done.is_set(),
        )

    def begin_nothing(self) -> None:
        """Refuse to prepare another migration, because the server is being closed."""
        self._may_not_begin = True

    def close(self) -> None:
        """Let nobody wait for a migration any longer; the connections will be closed."""
        self._is_closed = True
        migration = self._migration
        if migration is None:
            return
        migration.wait_no_longer()
        migration.done.set()
        if not migration.prepared.done():
            migration.prepared.set_exception(
                RelocationError(RelocationErrorCode.ABORTED, "the server is closed")
            )
            migration.prepared.exception()  # it may be that nobody waits

    # Steps

    async def _lagging(self, unready: Unready, deadline: float) -> tuple[str, ...]:
        """Return who is left behind because it has not followed the last move.

        Raises:
            RelocationError: MIGRATION_ALREADY_IN_PROGRESS if nobody may be; it names them.
        """
        if self.sync.phase is Phase.SWITCHED and unready is Unready.LEAVE:
            await self.wait_completed(deadline)
        if self.sync.phase is not Phase.SWITCHED:
            return ()
        lagging = self.sync.those(Progress.SWITCHED)
        if unready is Unready.ABORT:
            raise RelocationError(
                MigrationErrorCode.MIGRATION_ALREADY_IN_PROGRESS,
                f"connections have not followed the last move yet: {', '.join(lagging)}; wait for "
                "them, or go without them (--unready leave)",
            )
        return lagging

    def _situation(self, without: Collection[str] = ()) -> Situation:
        return Situation(
            migration=self._options,
            current=self._router.endpoint.address,
            connections={
                name: protocol.connection
                for name, protocol in self.connections().items()
                if self._router.is_movable(protocol) and name not in without
            },
            handshaking=[
                protocol.connection.stable_id
                for protocol in self._router.protocols
                if not protocol.is_connected and self._router.is_movable(protocol)
            ],
        )

    def _check_destination(self, plan: Plan, address: Address) -> None:
        pool = self._options.pool if self._options is not None else ()
        check_destination(plan, self._router.endpoint.address, pool, address)

    def _check_bind(self, address: Address) -> None:
        try:
            self._router.endpoint.check(address)
        except BindError as exc:
            raise self._cannot_bind(exc) from exc

    def _cannot_bind(self, error: BindError) -> RelocationError:
        current = self._router.endpoint.address
        detail = f"{error}; the server goes on at {current}"
        return RelocationError(RelocationErrorCode.CANNOT_BIND, detail)

    def _begin(self, plan: Plan, deadline: float) -> _Migration:
        if self._may_not_begin:
            raise RelocationError(RelocationErrorCode.ABORTED, "the server is being closed")
        actions = self.sync.imminent(plan)
        migration = self._migration = _Migration(self._loop)
        migration.deadline = self._loop.call_later(deadline, self._deadline_passed, migration)
        self._note_phase()
        for protocol in list(self._router.protocols):
            is_open = not protocol.is_connected and protocol.closed_by is None
            if is_open and self._router.is_movable(protocol):
                protocol.refuse("the server is about to move; connect again in a moment")
        # Of those that wait for their pool nothing is asked yet, but they may be silent as well.
        open_now = self.connections()
        numbers = {name: open_now[name].connection.next_packet_number for name in plan.assignments}
        self._carry_out(actions)
        for name in self.sync.unready:
            protocol = open_now[name]
            if protocol.connection.next_packet_number == numbers[name]:
                protocol.ask_for_life()
            migration.silence.watch(
                name,
                protocol.connection,
                numbers[name],
                now=migration.announced_at,
                deadline=deadline,
            )
        self._watch_silence(migration)
        return migration

    def _watch_silence(self, migration: _Migration) -> None:
        due = migration.silence.due
        if due is not None and self.sync.phase is Phase.PREPARING:
            call = partial(self._silence_over, migration, due)
            migration.silence_over = self._loop.call_at(due, call)

    def _silence_over(self, migration: _Migration, now: float) -> None:
        self._leave_silent(migration, now)
        self._watch_silence(migration)

    def _leave_silent(self, migration: _Migration, now: float) -> None:
        for name in migration.silence.look(now):
            self._carry_out(self.sync.silent(name))

    def _deadline_passed(self, migration: _Migration) -> None:
        self._leave_silent(migration, math.inf)
        self._carry_out(self.sync.deadline_passed())

    def _abort(self, error: RelocationError) -> None:
        actions = self.sync.abort()
        migration = self._migration
        if migration is not None and not migration.prepared.done():
            migration.prepared.set_exception(error)
            migration.prepared.exception()  # it may be that nobody waits
        self._carry_out(actions)

    def _move(self, address: Address) -> Relocation:
        endpoint = self._router.endpoint
        try:
            socket = endpoint.bind(address)
        except BindError as exc:
            raise self._cannot_bind(exc) from exc
        # From here on nothing can fail any more
        source = endpoint.address
        migration = self._migration
        assert migration is not None, "there is a phase other than serving"
        migration.switched_at = self._loop.time()
        actions = self.sync.switch()
        closed = [action for action in actions if isinstance(action, Close)]
        told = [action for action in actions if isinstance(action, Tell)]
        self._carry_out(closed)
        endpoint.switch_to(socket)
        self._carry_out(told)
        return Relocation(
            source,
            address,
            migration.switched_at,
            tuple(action.connection_id for action in told),
            tuple(action.connection_id for action in closed),
        )

    # What happens on connections

    def _adopt(self, protocol: ConnectionProtocol) -> None:
        protocol.on_migration_event(partial(self._happened, protocol))
        protocol.on_lost(partial(self._lost, protocol.connection.stable_id))

    def _happened(self, protocol: ConnectionProtocol, event: MigrationEvent) -> None:
        name = protocol.connection.stable_id
        self._publish(ServerEvent(name, event))
        match event:
            case MigrationReady():
                self._carry_out(self.sync.ready(name))
            case MigrationCompleted():
                migration = self._migration
                if migration is not None and migration.switched_at is not None:
                    migration.completed[name] = self._loop.time() - migration.switched_at
                self._carry_out(self.sync.completed(name))
            case MigrationFailed(error=error):
                self._carry_out(self.sync.failed(name, error))
            case PoolAddressAcknowledged():
                if protocol.connection.migration_obstacle(MigrationProtocol.POOL_OF_ADDRESSES):
                    return
                self._carry_out(self.sync.pool_acknowledged(name))

    def _lost(self, name: str, lost: ConnectionLost) -> None:
        if not self._is_closed:
            self._carry_out(self.sync.closed(name))

    # Actions

    def _carry_out(self, actions: Sequence[Action]) -> None:
        open_now = self.connections() if actions else {}
        for action in actions:
            protocol = open_now.get(action.connection_id)
            if protocol is None or protocol.closed_by is not None:
                continue
            try:
                self._do(action, protocol)
            except MigrationError as exc:
                # It has closed itself, and its event says why.
                logger.warning("connection %s: %s", action.connection_id, exc)
            protocol.settle()
        self._note_phase()

    def _do(self, action: Action, protocol: ConnectionProtocol) -> None:
        connection, now = protocol.connection, self._loop.time()
        match action:
            case Prepare(assignment=assignment):
                connection.imminent_migration(assignment.protocol, assignment.address, now=now)
            case Resume():
                connection.abort_migration(now=now)
            case Close():
                protocol.close(reason_phrase=MIGRATED)
            case Tell(assignment=assignment):
                host = self._host_of(protocol, assignment)
                connection.network_switch(self._router.move(protocol, host), now=now)

    def _host_of(self, protocol: ConnectionProtocol, assignment: Assignment) -> str:
        """Return where a connection finds the server if that listens at all addresses."""
        if assignment.address is not None:
            announced = assignment.address.for_family(self._router.endpoint.address.family)
            if announced is not None:
                return str(announced.host)
        return str(self._router.berth(protocol).local[0])

    def _note_phase(self) -> None:
        """Draw the conclusions from a change of the phase."""
        phase, migration = self.sync.phase, self._migration
        if phase is self._published:
            return
        self._published = phase
        if self._may_not_begin or phase is Phase.DEPARTED:
            self._router.handshakes = Handshakes.REFUSED_EVERYWHERE
        elif self.sync.accepts_handshakes:
            self._router.handshakes = Handshakes.ACCEPTED
        else:
            self._router.handshakes = Handshakes.REFUSED
        if migration is not None and phase is not Phase.PREPARING:
            migration.wait_no_longer()
            if phase in (Phase.READY, Phase.OVERDUE) and not migration.prepared.done():
                migration.prepared.set_result(self._preparation(migration))
            if phase is Phase.SERVING and migration.switched_at is not None:
                migration.done_at = self._loop.time()
                migration.lost = self.sync.those(*_LOST)
                migration.done.set()
        self._publish(ServerEvent(None, PhaseChanged(phase)))

    def _preparation(self, migration: _Migration) -> Preparation:
        plan = self.sync.plan
        return Preparation(
            is_ready=self.sync.phase is Phase.READY,
            seconds=self._loop.time() - migration.announced_at,
            protocols={name: each.protocol for name, each in plan.assignments.items()},
            unready=self.sync.unready,
            silent=self.sync.those(Progress.SILENT),
            unable=dict(plan.unable),
            failed={name: error.name for name, error in self.sync.failures.items()},
        )
