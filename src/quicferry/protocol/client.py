"""The client's state machine at work on one connection.

Its rules and its table are in `quicferry.protocol.client_table`. Here each input is classified by
what the client knows, the table is asked, and what has to be done is returned as a list of actions
for the transport.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import events
from .address import Address, MigrationAddress, refusal
from .client_table import PROTOCOLS, TABLE, VALIDATING, VIOLATIONS, Do, Input, State
from .effort import Effort
from .errors import ConnectionErrorCode, PeerError
from .frames import (
    MigrationFrame,
    PoolMigrationAddressFrame,
    ServerMigratedFrame,
    ServerMigrationFrame,
)
from .options import MAX_POOL_SIZE, ClientMigration, Policy, Scheduler
from .schedulers import Schedule
from .suite import MigrationProtocol

__all__ = [
    "TABLE",
    "Action",
    "AskHome",
    "Challenge",
    "ClientMachine",
    "Commit",
    "Do",
    "Emit",
    "Forget",
    "Input",
    "Move",
    "Redirect",
    "ReturnHome",
    "SetProbeTimer",
    "State",
]

_CHALLENGING = (State.CHALLENGING, State.POOL_CHALLENGING)
_ANNOUNCING = MigrationProtocol.EXPLICIT | MigrationProtocol.SYNCHRONIZED_SYMMETRIC

# A probe by redirection is larger than a question.
_WEIGHT_OF_REDIRECTION = 1.5


@dataclass(frozen=True)
class Action:
    """The base of what the transport is told to do, in order."""


@dataclass(frozen=True)
class Redirect(Action):
    """Send everything to `address` from now on, and one probe at once.

    The path state of home is put aside; where `address` is home itself, it is restored.
    """

    address: Address


@dataclass(frozen=True)
class Challenge(Action):
    """Send a PATH_CHALLENGE to each address; everything else stays where it is."""

    addresses: tuple[Address, ...]


@dataclass(frozen=True)
class AskHome(Action):
    """Send a PING home, where nothing else is sent now; whoever is there acknowledges it.

    Not a PATH_CHALLENGE: a server that completes its migration at any acknowledged PATH_RESPONSE
    would take it for the end of one that has not begun.
    """


@dataclass(frozen=True)
class ReturnHome(Action):
    """Send everything to home again, with the path state that was put aside."""


@dataclass(frozen=True)
class Move(Action):
    """Send everything to `address`, from which the server was heard, and validate that path."""

    address: Address


@dataclass(frozen=True)
class Commit(Action):
    """The path in use is home now; forget the old one."""


@dataclass(frozen=True)
class Forget(Action):
    """Nothing but home and the pool is of interest any more: forget all other addresses."""


@dataclass(frozen=True)
class SetProbeTimer(Action):
    """Call `ClientMachine.probe_due` in `delay` seconds; None: no more."""

    delay: float | None


@dataclass(frozen=True)
class Emit(Action):
    """Tell the application."""

    event: events.MigrationEvent


class ClientMachine:
    """What one client connection knows and does about the migrations of its server.

    Args:
        options: The client's choices.
        negotiated: What was negotiated in the handshake, possibly nothing.
        home: The server's address.
        knows_withdrawals: Whether it has told its server that announcements can be withdrawn.
    """

    def __init__(
        self,
        options: ClientMigration,
        negotiated: MigrationProtocol,
        home: Address,
        *,
        knows_withdrawals: bool = False,
    ) -> None:
        self.state = State.IDLE
        self.home = home
        # What it may name does not grow by a move. And what it could reach it may come back to.
        self._first_home = home
        self._options = options
        self._negotiated = negotiated
        self._pool: list[Address] = []
        self._schedule = Schedule(options.scheduler, options.seed)
        self._announced: Address | None = None
        self._moved_to: Address | None = None
        self._has_migrated = False
        self._knows_withdrawals = knows_withdrawals
        self._is_withdrawn = False
        self._newest_packet = -1
        self._newest_state_packet = -1
        self._effort = Effort(options.probe_interval)
        self._turns = 0
        self._probing_reported: set[Address] = set()
        self._actions: list[Action] = []

    @property
    def server_address(self) -> Address:
        """Where the server is believed to be: home, or where it was last heard from."""
        return self._moved_to or self.home

    @property
    def pool(self) -> tuple[Address, ...]:
        """The addresses of the pool in the order of their arrival."""
        return tuple(self._pool)

    def expects(self, source: Address) -> bool:
        """Return whether a datagram from `source`, which is no path in use, may be looked at.

        Anything else is dropped unread (RFC 9000 9).
        """
        symmetric = MigrationProtocol.SYMMETRIC | MigrationProtocol.SYNCHRONIZED_SYMMETRIC
        return bool(self._negotiated & symmetric) or self.may_probe(source)

    def may_probe(self, address: Address) -> bool:
        """Return whether the server has named `address` as one where it may come up."""
        return address == self._announced or address in self._pool

    def may_move_to(self, source: Address) -> bool:
        """Return whether the server may turn up at `source` now, announced or not."""
        if self.may_probe(source):
            return True
        if self.state in (State.AWAITING, State.VALIDATING_SYNCHRONIZED):
            possible = True
        else:
            possible = self._symmetric_possible and self.state in (
                State.IDLE,
                State.VALIDATING_SYMMETRIC,
            )
        return possible and refusal(source, self._first_home) is None

    # Inputs

    def frame_received(
        self, frame: MigrationFrame, *, source: Address, packet_number: int, is_newest: bool
    ) -> list[Action]:
        """Handle a migration frame.

        Args:
            frame: The frame.
            source: Where its packet came from.
            packet_number: The number of its packet.
            is_newest: Whether that is the highest number received so far.

        Raises:
            PeerError: If the server broke the protocol.
        """
        if not self._negotiated:
            raise _violation(f"{frame.type.name}, but server migration was not negotiated")
        if isinstance(frame, PoolMigrationAddressFrame):
            self._return_if_from_home(source, is_newest)
            self._pool_address(frame)
            return self.take_actions()
        if packet_number < self._newest_state_packet:
            return []
        self._return_if_from_home(source, is_newest)
        if isinstance(frame, ServerMigrationFrame):
            self._server_migration(frame.address, is_newest)
        elif isinstance(frame, ServerMigratedFrame):
            self._server_migrated(source, is_newest)
        self._newest_state_packet = max(self._newest_state_packet, packet_number)
        return self.take_actions()

    def packet_received(self, source: Address, packet_number: int) -> list[Action]:
        """Handle a non-probing packet that is the highest-numbered one so far."""
        self._newest_packet = packet_number
        self._packet(source)
        return self.take_actions()

    def timeout(self) -> list[Action]:
        """Handle a probe timeout (RFC 9002 6.2), or the wish to look for the server now."""
        if self.state in _CHALLENGING:
            self._effort.look_closely(self._newest_packet)
        pool = [address for address in self._pool if address != self.home]
        if not pool:
            self._step(Input.TIMEOUT)
        elif self._options.scheduler is Scheduler.PARALLEL:
            self._step(Input.TIMEOUT_WITH_PARALLEL_POOL)
        else:
            self._step(Input.TIMEOUT_WITH_POOL)
        return self.take_actions()

    def probe_due(self) -> list[Action]:
        """Handle the probe timer set by `SetProbeTimer`."""
        self._effort.calm_down(self._newest_packet)
        exhausted = self._effort.is_exhausted
        self._step(Input.PROBES_EXHAUSTED if exhausted else Input.PROBE_DUE)
        return self.take_actions()

    @property
    def heeds_timeouts(self) -> bool:
        """Whether a probe timeout would make the client look for its server."""
        return self.state is State.ANNOUNCED or (self.state is State.IDLE and bool(self._pool))

    @property
    def is_settled(self) -> bool:
        """Whether no move is under way, and no other address is known where the server may be."""
        return self.state is State.IDLE and not self.heeds_timeouts

    def path_answered(
        self,
        address: Address,
        source: Address | None,
        packet_number: int,
        *,
        is_overheard: bool = False,
    ) -> list[Action]:
        """Handle a PATH_RESPONSE.

        Args:
            address: Where its PATH_CHALLENGE was sent.
            source: Where it came from.
            packet_number: The number of its packet.
            is_overheard: Whether that address was asked because of what was overheard from there.
        """
        self._newest_packet = max(self._newest_packet, packet_number)
        asks = is_overheard or self.state in (*_CHALLENGING, *VALIDATING)
        if address == self._moved_to:
            self._step(Input.VALIDATED)
        elif source == address and (asks or address == self.home):
            # Not only its address works: the server is there. It may have nothing else to say.
            # (An answer from elsewhere would show that it is there, wherever it was asked.)
            self._packet(address)
            if address == self._moved_to:
                self._step(Input.VALIDATED)
        return self.take_actions()

    def validation_failed(self) -> list[Action]:
        """Handle that the path in use could not be validated in time (RFC 9000 8.2.4)."""
        self._step(Input.VALIDATION_FAILED)
        return self.take_actions()

    # Classification

    def _return_if_from_home(self, source: Address, is_newest: bool) -> None:
        # A frame shows that its packet is not a probing one. What brings the connection back home
        # comes before the frame, so that a copied packet (RFC 9000 9.3.2) cannot make a violation
        # of a genuine frame; what moves it forward comes after.
        if is_newest and source == self.home and self._moved_to is not None:
            self._packet(source)

    def _packet(self, source: Address) -> None:
        if self._moved_to is not None and source == self._moved_to:
            return
        if source == self.home:
            self._step(Input.PACKET_FROM_HOME)
        elif self.may_probe(source):
            self._step(Input.PACKET_FROM_CANDIDATE, source)
        elif refusal(source, self._first_home) is None:
            self._step(
                Input.PACKET_FROM_ELSEWHERE_SYMMETRIC
                if self._symmetric_possible
                else Input.PACKET_FROM_ELSEWHERE,
                source,
            )

    def _server_migration(self, address: MigrationAddress | None, is_newest: bool) -> None:
        names_home = address is not None and address.for_family(self.home.family) == self.home
        if names_home and self._knows_withdrawals:
            self._require(_ANNOUNCING, "SERVER_MIGRATION (withdrawal)")
            self._step(Input.WITHDRAWAL)
            return
        is_overtaken = self.state is State.VALIDATING_SYMMETRIC and not is_newest
        if self._is_withdrawn or is_overtaken:
            # The server announces anew, so it is at home, whatever the packets from elsewhere say:
            # it does not move before that was acknowledged. They are copies, and came faster.
            self._step(Input.PACKET_FROM_HOME)
        if address is None:
            # Said twice it is a repetition, which servers that cannot withdraw send as well.
            self._require(MigrationProtocol.SYNCHRONIZED_SYMMETRIC, "SERVER_MIGRATION (unknown)")
            self._step(Input.SWITCH_ANNOUNCED)
            return
        self._require(MigrationProtocol.EXPLICIT, "SERVER_MIGRATION")
        target = self._in_family(address, "SERVER_MIGRATION")
        if target == self._announced:
            self._step(Input.ANNOUNCEMENT_REPEATED)
        elif target == self.server_address:
            self._step(Input.ANNOUNCEMENT_OF_HOME)
        elif self._options.policy is Policy.EAGER:
            self._step(Input.ANNOUNCEMENT_TO_EAGER, target)
        else:
            self._step(Input.ANNOUNCEMENT, target)

    def _pool_address(self, frame: PoolMigrationAddressFrame) -> None:
        if not self._negotiated & MigrationProtocol.POOL_OF_ADDRESSES:
            raise _violation("POOL_MIGRATION_ADDRESS, but Pool of Addresses was not negotiated")
        address = self._in_family(frame.address, "POOL_MIGRATION_ADDRESS")
        if address in self._pool:
            return
        if len(self._pool) >= MAX_POOL_SIZE:
            raise _violation("POOL_MIGRATION_ADDRESS: the pool has grown too large")
        late = Input.POOL_ADDRESS_LATE if self._has_migrated else Input.POOL_ADDRESS
        self._step(late, address)

    def _server_migrated(self, source: Address, is_newest: bool) -> None:
        if source == self.server_address or not is_newest:
            return
        if refusal(source, self._first_home) is None:
            before = self.state
            symmetric = self._symmetric_possible
            self._step(Input.MIGRATED_SYMMETRIC if symmetric else Input.MIGRATED, source)
            if self.state is not before:
                self._emit(events.ServerMigratedReceived())

    @property
    def _symmetric_possible(self) -> bool:
        return bool(self._negotiated & MigrationProtocol.SYMMETRIC) and not self._pool

    def _require(self, protocol: MigrationProtocol, frame: str) -> None:
        if not self._negotiated & protocol:
            raise _violation(f"{frame}, but {protocol.name} was not negotiated")
        if self._pool:
            raise _violation(f"{frame}, but the server has sent a pool of addresses")

    def _in_family(self, address: MigrationAddress, frame: str) -> Address:
        target = address.for_family(self.home.family)
        if target is None:
            raise _violation(f"{frame} has no IPv{self.home.family} address")
        problem = refusal(target, self._first_home)
        if problem is not None:
            raise _violation(f"{frame} names an address that is refused: {problem}")
        return target

    # Transitions

    def _step(self, received: Input, address: Address | None = None) -> None:
        step = TABLE[self.state, received]
        if Do.VIOLATION in step.actions:
            raise _violation(VIOLATIONS[received])
        if step.state is self.state and not step.actions:
            return  # as for nearly every packet
        left, self.state = self.state, step.state
        for action in step.actions:
            if action is Do.COMMIT:
                self._commit(PROTOCOLS[left])
            else:
                self._do(action, address)
        if self._is_withdrawn and left in VALIDATING and self.state not in VALIDATING:
            self._is_withdrawn = False
            self._step(Input.WITHDRAWAL)

    def _do(self, action: Do, address: Address | None) -> None:
        match action:
            case Do.REMEMBER:
                assert address is not None
                self._announced = address
                self._emit(events.ServerMigrationReceived(address))
            case Do.ANNOUNCE_SWITCH:
                self._emit(events.ServerMigrationReceived(None))
            case Do.FORGET:
                withdrawn, self._announced = self._announced, None
                self._probing_reported.clear()
                self._actions.append(Forget())
                self._emit(events.AnnouncementWithdrawn(withdrawn))
            case Do.KEEP_IN_MIND:
                self._is_withdrawn = True
            case Do.ADD_TO_POOL:
                assert address is not None
                self._pool.append(address)
                self._emit(events.PoolAddressReceived(address))
            case Do.CHALLENGE:
                assert self._announced is not None
                self._challenge([self._announced], MigrationProtocol.EXPLICIT)
            case Do.CHALLENGE_POOL:
                self._challenge(
                    [address for address in self._pool if address != self.home],
                    MigrationProtocol.POOL_OF_ADDRESSES,
                )
            case Do.REDIRECT:
                assert self._announced is not None
                self._redirect(self._announced, MigrationProtocol.EXPLICIT)
                # The timeout may have been mere loss, with a server at home that has nothing to
                # say: it would never be heard again, so every other probe asks home as well.
                self._turns += 1
                if self._turns % 2 == 0:
                    self._actions.append(AskHome())
            case Do.REDIRECT_TO_NEXT:
                target = self._schedule.next_address(self.home, self._pool)
                self._redirect(target, MigrationProtocol.POOL_OF_ADDRESSES)
            case Do.STOP_PROBING:
                self._stop_probing()
            case Do.RETURN_HOME:
                self._stop_probing()
                self._moved_to = None
                if self.state is State.IDLE:
                    self._probing_reported.clear()
                self._actions.append(ReturnHome())
            case Do.MOVE:
                assert address is not None
                self._stop_probing()
                self._moved_to = address
                self._actions.append(Move(address))
                if self.state in (State.VALIDATING_SYMMETRIC, State.VALIDATING_SYNCHRONIZED):
                    # Nobody announced this address, so home is asked too (RFC 9000 9.3.3).
                    self._actions.append(AskHome())
            case Do.COMMIT | Do.VIOLATION:
                raise AssertionError(f"unreachable: {action.name} is handled with its step")

    def _challenge(self, addresses: list[Address], protocol: MigrationProtocol) -> None:
        for address in addresses:
            self._report_probing(protocol, address)
        self._actions.append(Challenge(tuple(addresses)))
        self._set_probe_timer(len(addresses), (1 + len(addresses)) / 2)

    def _redirect(self, address: Address, protocol: MigrationProtocol) -> None:
        if address != self.home:
            self._report_probing(protocol, address)
        self._actions.append(Redirect(address))
        weight = 0.0 if address == self.home else _WEIGHT_OF_REDIRECTION
        self._set_probe_timer(weight, weight)

    def _report_probing(self, protocol: MigrationProtocol, address: Address) -> None:
        # Once for each address and migration
        if address not in self._probing_reported:
            self._probing_reported.add(address)
            self._emit(events.ProbingStarted(protocol, address))

    def _set_probe_timer(self, packets: float, steps: float) -> None:
        self._actions.append(SetProbeTimer(self._effort.spend(packets, steps)))

    def _stop_probing(self) -> None:
        self._effort.restart()
        self._turns = 0
        self._schedule.restart()
        self._actions.append(SetProbeTimer(None))

    def _commit(self, protocol: MigrationProtocol) -> None:
        assert self._moved_to is not None
        self.home = self._moved_to
        self._moved_to = None
        self._announced = None
        self._has_migrated = True
        # What led here is older than this: a late copy of it must not start again.
        self._newest_state_packet = self._newest_packet
        self._probing_reported.clear()
        self._actions.append(Commit())
        self._emit(events.MigrationCompleted(protocol, self.home))

    def _emit(self, event: events.MigrationEvent) -> None:
        self._actions.append(Emit(event))

    def take_actions(self) -> list[Action]:
        """Return actions not returned yet: what came before a `PeerError`."""
        actions, self._actions = self._actions, []
        return actions


def _violation(reason: str) -> PeerError:
    return PeerError(ConnectionErrorCode.PROTOCOL_VIOLATION, reason)
