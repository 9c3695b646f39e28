"""The server's side of the migration of one connection.

Its rules and its table are in `quicferry.protocol.server_table`. Here each input is classified by
what the server has said and heard, and the table's answer is carried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

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
from .server_table import TABLE, Do, Input, State
from .suite import MigrationProtocol

__all__ = [
    "TABLE",
    "Action",
    "Cancel",
    "Complete",
    "Do",
    "Emit",
    "Input",
    "Send",
    "SendMigrated",
    "ServerMachine",
    "ServerProgress",
    "State",
    "SwitchPath",
]

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
class Cancel(Action):
    """Do not send this frame, if it waits to be sent."""

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


@dataclass(frozen=True)
class ServerProgress:
    """What a machine knows at a moment, for another one that goes on.

    Attributes:
        state: Where it is in a migration.
        protocol: Of the migration under way; None when there is none.
        family: 4 or 6, the address family in use.
        pool: What the client was sent as the pool.
        pool_unacknowledged: What of it the client may not have.
        announcement: What the client was announced. Frames are told from it by identity.
        is_announcement_acknowledged: Whether the client has that.
        withdrawal: What the client is told to forget an announcement by, until it has that.
        has_connection_ids: Whether both sides have a connection ID for a new path.
        switched_to: The address of the network switch, where it is known.
        is_migrated_acknowledged: Whether the client has SERVER_MIGRATED.
    """

    state: State
    protocol: MigrationProtocol | None
    family: int
    pool: tuple[MigrationAddress, ...]
    pool_unacknowledged: frozenset[MigrationAddress]
    announcement: ServerMigrationFrame | None
    is_announcement_acknowledged: bool
    withdrawal: ServerMigrationFrame | None
    has_connection_ids: bool
    switched_to: Address | None
    is_migrated_acknowledged: bool


class ServerMachine:
    """What one server connection knows and does about its migrations.

    Args:
        options: The server's choices.
        negotiated: What was negotiated with this client; None where it has migration switched off.
        family: 4 or 6, the address family in use.
        can_withdraw: Whether the client knows withdrawals.
    """

    def __init__(
        self,
        options: ServerMigration,
        negotiated: MigrationProtocol | None,
        family: int,
        *,
        can_withdraw: bool = False,
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
        self._can_withdraw = can_withdraw
        self._withdrawal: ServerMigrationFrame | None = None
        self._has_connection_ids = False
        self._switched_to: Address | None = None
        self._migrated_acknowledged = False
        self._actions: list[Action] = []

    @property
    def announcement(self) -> ServerMigrationFrame | None:
        """What the client was told about the next migration, and may believe."""
        return None if self.state is State.QUEUED else self._announcement

    # To go on elsewhere

    def export(self) -> ServerProgress:
        """Return what the machine knows; nothing changes."""
        return ServerProgress(
            state=self.state,
            protocol=self.protocol,
            family=self._family,
            pool=tuple(self._pool),
            pool_unacknowledged=frozenset(self._pool_unacknowledged),
            announcement=self._announcement,
            is_announcement_acknowledged=self._announcement_acknowledged,
            withdrawal=self._withdrawal,
            has_connection_ids=self._has_connection_ids,
            switched_to=self._switched_to,
            is_migrated_acknowledged=self._migrated_acknowledged,
        )

    def resume(self, progress: ServerProgress) -> None:
        """Go on, on a new machine, from what another one has exported."""
        self.state = progress.state
        self.protocol = progress.protocol
        self._family = progress.family
        self._pool = list(progress.pool)
        self._pool_unacknowledged = set(progress.pool_unacknowledged)
        self._announcement = progress.announcement
        self._announcement_acknowledged = progress.is_announcement_acknowledged
        self._withdrawal = progress.withdrawal
        self._has_connection_ids = progress.has_connection_ids
        self._switched_to = progress.switched_to
        self._migrated_acknowledged = progress.is_migrated_acknowledged

    # Inputs

    def handshake_finished(self, current: Address | None = None) -> list[Action]:
        """Start the connection's life: send the pool, where there is one and it was negotiated.

        Addresses that the client would refuse are left out: it would close the connection.

        Args:
            current: Where the server is, where that is known.
        """
        if self._negotiated & MigrationProtocol.POOL_OF_ADDRESSES:
            for address in self._options.pool:
                target = address.for_family(self._family)
                if target is not None and refusal(target, current or target) is None:
                    self._pool.append(address)
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
        if self.state not in (State.IDLE, State.WITHDRAWING):
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

    def abort(self, current: Address | None) -> list[Action]:
        """Give up a migration that has not been switched, and withdraw what was announced.

        Args:
            current: Where the server is and stays; None where that is unknown. Then nothing can be
                withdrawn.

        Raises:
            MigrationError: MIGRATION_ALREADY_IN_PROGRESS after the switch.
        """
        announced = self._announcement
        if announced is not None and not self._announcement_acknowledged:
            self._actions.append(Cancel(announced))
        may_believe = announced is not None and self.state in (State.PREPARING, State.READY)
        if self._can_withdraw and may_believe and _is_specific(current):
            self._withdrawal = ServerMigrationFrame(MigrationAddress.of(current))
            self._step(Input.ABORT_TO_WITHDRAW)
        else:
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
        elif frame is self._withdrawal:
            self._withdrawal = None
            self._actions.append(Cancel(frame))  # it may wait to be sent once more
            self._step(Input.WITHDRAWAL_ACKNOWLEDGED)
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
        elif frame is self._withdrawal:
            self._step(Input.WITHDRAWAL_LOST)
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
            case Do.WITHDRAW:
                assert self._withdrawal is not None
                self._actions.append(Send(self._withdrawal))
            case Do.REPORT_WITHDRAWN:
                self._emit(events.WithdrawalAcknowledged())
            case Do.DROP_PLAN:
                self._forget_plan()
            case Do.SWITCH:
                self._migrated_acknowledged = False
                self._actions.append(SwitchPath())
            case Do.SEND_MIGRATED:
                self._actions.append(SendMigrated())
            case Do.COMPLETE:
                assert self.protocol is not None
                self._actions.append(Complete())
                self._emit(events.MigrationCompleted(self.protocol, self._switched_to))
                self._forget_plan()
            case Do.FAIL_IN_PROGRESS:
                raise MigrationError(MigrationErrorCode.MIGRATION_ALREADY_IN_PROGRESS)
            case Do.FAIL_INVALID_STATE:
                raise MigrationError(
                    MigrationErrorCode.INVALID_STATE,
                    "the connection is not ready for a network switch; announce it by an imminent "
                    "migration first, and wait until it is ready",
                )

    def _forget_plan(self) -> None:
        self.protocol = None
        self._announcement = None
        self._announcement_acknowledged = False

    def _emit(self, event: events.MigrationEvent) -> None:
        self._actions.append(Emit(event))

    def _take_actions(self) -> list[Action]:
        actions, self._actions = self._actions, []
        return actions


def _is_specific(address: Address | None) -> TypeGuard[Address]:
    return address is not None and not address.host.is_unspecified


def _announcement(
    protocol: MigrationProtocol, address: MigrationAddress | None
) -> ServerMigrationFrame | None:
    return ServerMigrationFrame(address) if protocol & _ANNOUNCED else None
