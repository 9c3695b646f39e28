"""The server's side of the migration of one connection, as a state machine.

Theory of operation
-------------------
A migration has three moments: *imminent* (the server will be moved), *network switch* (it has been
moved), and the completion, when the client has validated the new path. Between the first two the
connection prepares:

- **Explicit** and **Synchronized Symmetric** tell the client by SERVER_MIGRATION, and are ready
  when that is acknowledged.
- **Pool of Addresses** has told the client everything right after the handshake, and
  **Symmetric** has nothing to tell: both are ready at once.

(Either way both sides need a connection ID for the new address, RFC 9000 9.5. They have one from
the first round trip after the handshake on.)

After the switch the symmetric protocols make themselves heard from the new address; the others
wait for the client to come. The server is complete when its PATH_RESPONSE is acknowledged.

There is no frame that takes an announcement back. A migration that is aborted leaves the client
with what it was told, so the next one has to use the same protocol and address (INVALID_STATE).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from . import events
from .address import Address, MigrationAddress, refusal
from .errors import MigrationError, MigrationErrorCode
from .frames import (
    MigrationFrame,
    PoolMigrationAddressFrame,
    ServerMigratedFrame,
    ServerMigrationFrame,
)
from .options import ServerMigration
from .suite import MigrationProtocol
from .table import Table


class State(enum.Enum):
    """Where the server is in a migration."""

    IDLE = enum.auto()
    PREPARING = enum.auto()
    READY = enum.auto()
    SWITCHED = enum.auto()


class Input(enum.Enum):
    """What can happen to the server, as it is classified."""

    # imminent migration, with something to tell the client or without
    IMMINENT_TO_ANNOUNCE = enum.auto()
    IMMINENT_IN_SILENCE = enum.auto()
    # the client knows what it has to know, and there are connection IDs for a new path
    PREPARED = enum.auto()
    # SERVER_MIGRATION has arrived, or was lost
    ANNOUNCEMENT_ACKNOWLEDGED = enum.auto()
    ANNOUNCEMENT_LOST = enum.auto()
    # network switch, of a protocol whose client waits to hear from us, or of another
    SWITCH_SYMMETRIC = enum.auto()
    SWITCH_OTHER = enum.auto()
    # PATH_RESPONSE has arrived at the client
    RESPONSE_ACKNOWLEDGED = enum.auto()
    ABORT = enum.auto()


class Do(enum.Enum):
    """What the server does on a transition."""

    ANNOUNCE = enum.auto()
    REPORT_ANNOUNCED = enum.auto()
    REPORT_READY = enum.auto()
    SWITCH = enum.auto()
    SEND_MIGRATED = enum.auto()
    COMPLETE = enum.auto()
    FAIL_IN_PROGRESS = enum.auto()
    FAIL_INVALID_STATE = enum.auto()


_S, _I, _D = State, Input, Do
_IMMINENT = (_I.IMMINENT_TO_ANNOUNCE, _I.IMMINENT_IN_SILENCE)
_SWITCHES = (_I.SWITCH_SYMMETRIC, _I.SWITCH_OTHER)

TABLE: Table[State, Input, Do] = Table(
    State,
    Input,
    [
        ((_S.IDLE,), (_I.IMMINENT_TO_ANNOUNCE,), _S.PREPARING, (_D.ANNOUNCE,)),
        ((_S.IDLE,), (_I.IMMINENT_IN_SILENCE,), _S.PREPARING, ()),
        # After an abort: the announcement may still arrive, but is not sent again.
        ((_S.IDLE,), (_I.ANNOUNCEMENT_ACKNOWLEDGED,), None, (_D.REPORT_ANNOUNCED,)),
        ((_S.IDLE,), (_I.ANNOUNCEMENT_LOST,), None, ()),
        ((_S.IDLE,), _SWITCHES, None, (_D.FAIL_INVALID_STATE,)),
        ((_S.IDLE,), (_I.RESPONSE_ACKNOWLEDGED, _I.ABORT), None, ()),
        ((_S.PREPARING,), (_I.ANNOUNCEMENT_ACKNOWLEDGED,), None, (_D.REPORT_ANNOUNCED,)),
        ((_S.PREPARING,), (_I.PREPARED,), _S.READY, (_D.REPORT_READY,)),
        ((_S.IDLE, _S.READY, _S.SWITCHED), (_I.PREPARED,), None, ()),
        ((_S.PREPARING,), (_I.ANNOUNCEMENT_LOST,), None, (_D.ANNOUNCE,)),
        ((_S.PREPARING,), _SWITCHES, None, (_D.FAIL_INVALID_STATE,)),
        ((_S.READY,), (_I.ANNOUNCEMENT_ACKNOWLEDGED, _I.ANNOUNCEMENT_LOST), None, ()),
        ((_S.READY,), (_I.SWITCH_SYMMETRIC,), _S.SWITCHED, (_D.SWITCH, _D.SEND_MIGRATED)),
        ((_S.READY,), (_I.SWITCH_OTHER,), _S.SWITCHED, (_D.SWITCH,)),
        ((_S.PREPARING, _S.READY), (_I.ABORT,), _S.IDLE, ()),
        ((_S.PREPARING, _S.READY), (_I.RESPONSE_ACKNOWLEDGED,), None, ()),
        ((_S.SWITCHED,), (_I.RESPONSE_ACKNOWLEDGED,), _S.IDLE, (_D.COMPLETE,)),
        ((_S.SWITCHED,), (_I.ANNOUNCEMENT_ACKNOWLEDGED, _I.ANNOUNCEMENT_LOST), None, ()),
        ((_S.SWITCHED,), (*_SWITCHES, _I.ABORT), None, (_D.FAIL_IN_PROGRESS,)),
        ((_S.PREPARING, _S.READY, _S.SWITCHED), _IMMINENT, None, (_D.FAIL_IN_PROGRESS,)),
    ],
)

_SYMMETRIC = MigrationProtocol.SYMMETRIC | MigrationProtocol.SYNCHRONIZED_SYMMETRIC
_ANNOUNCED = MigrationProtocol.EXPLICIT | MigrationProtocol.SYNCHRONIZED_SYMMETRIC


@dataclass(frozen=True)
class Action:
    """The base of what the transport is told to do, in order."""


@dataclass(frozen=True)
class Send(Action):
    """Send this frame, and tell whether it was acknowledged or lost."""

    frame: MigrationFrame


@dataclass(frozen=True)
class SendMigrated(Action):
    """Send what is pending from the new address, or SERVER_MIGRATED where nothing is."""


@dataclass(frozen=True)
class SwitchPath(Action):
    """The path has changed: start its state afresh, with an unused connection ID."""


@dataclass(frozen=True)
class Complete(Action):
    """The new path works: the usual timers apply again."""


@dataclass(frozen=True)
class Emit(Action):
    """Tell the application."""

    event: events.MigrationEvent


class ServerMachine:
    """What one server connection knows and does about its migrations.

    Args:
        options: The server's choices.
        negotiated: What was negotiated with this client; None where it has migration switched off.
        family: 4 or 6, the address family in use.
    """

    def __init__(
        self,
        options: ServerMigration,
        negotiated: MigrationProtocol | None,
        family: int,
    ) -> None:
        self.state = State.IDLE
        self.protocol: MigrationProtocol | None = None
        self._options = options
        self._negotiated = negotiated or MigrationProtocol(0)
        self._family = family
        self._pool: list[MigrationAddress] = []
        self._pool_unacknowledged: set[MigrationAddress] = set()
        self._announcement: ServerMigrationFrame | None = None
        self._announcement_acknowledged = False
        self._has_connection_ids = False
        self._switched_to: Address | None = None
        self._migrated_acknowledged = False
        self._actions: list[Action] = []

    # Inputs

    def handshake_finished(self) -> list[Action]:
        """Start the connection's life: send the pool, where there is one and it was negotiated."""
        if self._negotiated & MigrationProtocol.POOL_OF_ADDRESSES:
            self._pool = [
                address for address in self._options.pool if address.for_family(self._family)
            ]
            self._pool_unacknowledged = set(self._pool)
            self._actions += [Send(PoolMigrationAddressFrame(address)) for address in self._pool]
        return self._take_actions()

    def obstacle(
        self,
        protocol: MigrationProtocol,
        address: MigrationAddress | None,
        current: Address | None,
    ) -> MigrationErrorCode | None:
        """Return why `imminent` would fail now, or None. Nothing changes.

        Args:
            protocol: The protocol to use.
            address: The destination, for Explicit only.
            current: Where the server is, where that is known.
        """
        error = MigrationErrorCode
        if protocol not in tuple(MigrationProtocol) or not self._negotiated & protocol:
            return error.PROTOCOL_NOT_NEGOTIATED
        if self.state is not State.IDLE:
            return error.MIGRATION_ALREADY_IN_PROGRESS
        if not self._address_fits(protocol, address, current):
            return error.INVALID_ADDRESS
        if protocol is MigrationProtocol.POOL_OF_ADDRESSES:
            if not self._pool:
                return error.EMPTY_POOL_MIGRATION_ADDRESSES
            if self._pool_unacknowledged:
                return error.POOL_MIGRATION_ADDRESSES_NOT_ACKNOWLEDGED
        elif self._pool:
            return error.INVALID_STATE
        if self._announcement not in (None, _announcement(protocol, address)):
            return error.INVALID_STATE
        return None

    def imminent(
        self,
        protocol: MigrationProtocol,
        address: MigrationAddress | None,
        current: Address | None,
    ) -> list[Action]:
        """Prepare for a migration; the arguments are those of `obstacle`.

        Raises:
            MigrationError: If it is not possible now.
        """
        problem = self.obstacle(protocol, address, current)
        if problem is not None:
            raise MigrationError(problem)
        self.protocol = protocol
        if not protocol & _ANNOUNCED or self._announcement_acknowledged:
            self._step(Input.IMMINENT_IN_SILENCE)
        else:
            self._announcement = _announcement(protocol, address)
            self._step(Input.IMMINENT_TO_ANNOUNCE)
        self._check_prepared()
        return self._take_actions()

    def connection_ids_available(self, *, for_both: bool) -> list[Action]:
        """Take note whether both sides have an unused connection ID for a new path."""
        self._has_connection_ids = for_both
        self._check_prepared()
        return self._take_actions()

    def abort(self) -> list[Action]:
        """Give up a migration that has not been switched.

        Raises:
            MigrationError: MIGRATION_ALREADY_IN_PROGRESS after the switch.
        """
        self._step(Input.ABORT)
        return self._take_actions()

    def network_switch(self, address: Address | None) -> list[Action]:
        """Go on at a new address.

        Raises:
            MigrationError: INVALID_STATE if the connection is not ready,
                MIGRATION_ALREADY_IN_PROGRESS if it has been switched and is not complete.
        """
        symmetric = self.protocol is not None and bool(self.protocol & _SYMMETRIC)
        self._switched_to = address
        self._step(Input.SWITCH_SYMMETRIC if symmetric else Input.SWITCH_OTHER)
        return self._take_actions()

    def frame_acknowledged(self, frame: MigrationFrame) -> list[Action]:
        """Handle the acknowledgement of a frame; one for state that is gone is ignored."""
        if isinstance(frame, PoolMigrationAddressFrame):
            if frame.address in self._pool_unacknowledged:
                self._pool_unacknowledged.remove(frame.address)
                self._emit(events.PoolAddressAcknowledged(frame.address))
        elif isinstance(frame, ServerMigratedFrame):
            if self.state is State.SWITCHED and not self._migrated_acknowledged:
                self._migrated_acknowledged = True
                self._emit(events.ServerMigratedAcknowledged())
        elif frame is self._announcement and not self._announcement_acknowledged:
            # The same, not an equal one: that may be of a former migration.
            self._announcement_acknowledged = True
            self._step(Input.ANNOUNCEMENT_ACKNOWLEDGED)
            self._check_prepared()
        return self._take_actions()

    def frame_lost(self, frame: MigrationFrame) -> list[Action]:
        """Handle the loss of a frame: it is sent again as long as it matters.

        SERVER_MIGRATED is not: the client learns the same from any packet.
        """
        if isinstance(frame, PoolMigrationAddressFrame):
            if frame.address in self._pool_unacknowledged:
                self._actions.append(Send(frame))
        elif frame is self._announcement and not self._announcement_acknowledged:
            self._step(Input.ANNOUNCEMENT_LOST)
        return self._take_actions()

    def path_response_acknowledged(self) -> list[Action]:
        """Handle the acknowledgement of a PATH_RESPONSE."""
        self._step(Input.RESPONSE_ACKNOWLEDGED)
        return self._take_actions()

    # Transitions

    def _address_fits(
        self,
        protocol: MigrationProtocol,
        address: MigrationAddress | None,
        current: Address | None,
    ) -> bool:
        if protocol is not MigrationProtocol.EXPLICIT:
            return address is None
        target = address.for_family(self._family) if address is not None else None
        if target is None or target == current:
            return False
        return refusal(target, current or target) is None

    def _check_prepared(self) -> None:
        if self._has_connection_ids and (
            self._announcement is None or self._announcement_acknowledged
        ):
            self._step(Input.PREPARED)

    def _step(self, received: Input) -> None:
        step = TABLE[self.state, received]
        self.state = step.state
        for action in step.actions:
            self._do(action)

    def _do(self, action: Do) -> None:
        match action:
            case Do.ANNOUNCE:
                if self._announcement is not None:
                    self._actions.append(Send(self._announcement))
            case Do.REPORT_ANNOUNCED:
                if self._announcement is not None:
                    self._emit(events.ServerMigrationAcknowledged(self._announcement.address))
            case Do.REPORT_READY:
                assert self.protocol is not None
                self._emit(events.MigrationReady(self.protocol))
            case Do.SWITCH:
                self._migrated_acknowledged = False
                self._actions.append(SwitchPath())
            case Do.SEND_MIGRATED:
                self._actions.append(SendMigrated())
            case Do.COMPLETE:
                assert self.protocol is not None
                self._announcement = None
                self._announcement_acknowledged = False
                self._actions.append(Complete())
                self._emit(events.MigrationCompleted(self.protocol, self._switched_to))
                self.protocol = None
            case Do.FAIL_IN_PROGRESS:
                raise MigrationError(MigrationErrorCode.MIGRATION_ALREADY_IN_PROGRESS)
            case Do.FAIL_INVALID_STATE:
                raise MigrationError(
                    MigrationErrorCode.INVALID_STATE,
                    "the connection is not ready for a network switch; announce it by an imminent "
                    "migration first, and wait until it is ready",
                )

    def _emit(self, event: events.MigrationEvent) -> None:
        self._actions.append(Emit(event))

    def _take_actions(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions


def _announcement(
    protocol: MigrationProtocol, address: MigrationAddress | None
) -> ServerMigrationFrame | None:
    return ServerMigrationFrame(address) if protocol & _ANNOUNCED else None
