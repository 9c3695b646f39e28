"""The destination of a handover: may its copies of the connections live?

Theory of operation
-------------------
The other half of what is said at the head of `source`:

- The copies are silent until `Commit` comes: the source has decided then, and stays silent itself.
  From there on the destination *owns* the connections, whatever happens to the link or the source.
- It may only have *discarded* them as long as it has not come to that. That is as final: it is
  remembered by the id of the handover, and whoever asks, commits or offers again is told `NoCopy`.
  So it is for an id that it has never heard of. Whoever was told so may go on.
- A link that is lost means nothing once the copies are *held*: the source may have committed. It
  will come back and ask. Before that, it cannot have, and the copies are discarded.
- The source's *lease* ends at the latest `LEASE` after the first connection has arrived here, since
  it has begun before that. `LEASE_MARGIN` later, allowing for clocks of different speed, copies
  that are still held are discarded, and copies that live need no limit any more.
- Until then, a copy that lives uses at most `quicferry.transport.RESERVED_NUMBERS` packets, unless
  the source has said that it is gone (`Settled`).

The machine is sans-IO and has no clock. Each input returns what is to be done, in order: messages
to be sent on the link that the input came from, and members of `Do`. All messages may come again,
in any order. Messages for handovers that nobody is at work on are answered by the `History`.
"""

from __future__ import annotations

import enum

from quicferry.protocol.table import Table

from ..link.messages import (
    Abort,
    Accepted,
    AnyOffer,
    Ask,
    Carried,
    Carry,
    CarryImage,
    CarryState,
    Commit,
    Committed,
    ContainerOffer,
    Held,
    Message,
    NoCopy,
    Offer,
    Received,
    Refused,
    Settled,
    Switched,
    Thawed,
    shorten,
)
from .history import History
from .source import LEASE

LEASE_MARGIN = 1.0
"""Seconds that the destination waits on top of `LEASE`."""
HOLD = LEASE + LEASE_MARGIN
"""Seconds from `Do.START_LEASE` to `DestinationMachine.lease_over`."""


class State(enum.Enum):
    """Where the destination is in a handover."""

    OFFERED = "offered"
    """It checks whether it can take the server."""
    ACCEPTED = "accepted"
    RECEIVING = "receiving"
    """The connections arrive, and are thawed."""
    PREPARING = "preparing"
    """All have; the application gets its state, and the copies their new address."""
    HELD = "held"
    """The copies are at the new address, and silent."""
    OWNED = "owned"
    """They live; the source may not know it."""
    SETTLED = "settled"
    """The source never comes back."""
    DISCARDED = "discarded"
    """There are no copies, and there never will be."""


class Input(enum.Enum):
    """What can happen to the destination."""

    OFFER = enum.auto()
    ACCEPT = enum.auto()
    CARRY = enum.auto()
    CARRIED_ALL = enum.auto()
    CARRIED_IN_PART = enum.auto()
    THAWED = enum.auto()
    SWITCHED = enum.auto()
    COMMIT = enum.auto()
    ASK = enum.auto()
    SETTLED = enum.auto()
    ABORT = enum.auto()
    FAIL = enum.auto()
    LINK_LOST = enum.auto()
    LEASE_OVER = enum.auto()


class Do(enum.Enum):
    """What the destination does on a transition; what begins with SEND comes out as a message."""

    START_LEASE = enum.auto()
    """Hand in `lease_over` when `HOLD` seconds have passed."""
    TAKE = enum.auto()
    """Thaw the connection, or keep the state, that has just been received."""
    IMPORT = enum.auto()
    """Give the application its state, if any; hand in `thawed`."""
    SWITCH = enum.auto()
    """Put the copies at their new address; hand in `switched`."""
    ACTIVATE = enum.auto()
    """Let the copies live."""
    LIFT = enum.auto()
    """Lift the copies' limit on packet numbers."""
    DISCARD = enum.auto()
    """Forget the copies, and undo what was prepared for them."""
    SEND_ACCEPTED = enum.auto()
    SEND_REFUSED = enum.auto()
    SEND_RECEIVED = enum.auto()
    SEND_THAWED = enum.auto()
    SEND_SWITCHED = enum.auto()
    SEND_COMMITTED = enum.auto()
    SEND_HELD = enum.auto()
    SEND_NO_COPY = enum.auto()


_S, _I, _D = State, Input, Do
_EARLY = (_S.OFFERED, _S.ACCEPTED, _S.RECEIVING, _S.PREPARING)
_UNCOMMITTED = (*_EARLY, _S.HELD)
_OWNER = (_S.OWNED, _S.SETTLED)
_ENDED = (*_OWNER, _S.DISCARDED)
_CARRIED = (_I.CARRIED_ALL, _I.CARRIED_IN_PART)

TABLE: Table[State, Input, Do] = Table(
    State,
    Input,
    [
        ((_S.OFFERED,), (_I.ACCEPT,), _S.ACCEPTED, (_D.SEND_ACCEPTED,)),
        ((_S.ACCEPTED,), (_I.CARRY,), _S.RECEIVING, (_D.START_LEASE, _D.TAKE)),
        ((_S.RECEIVING,), (_I.CARRY,), None, (_D.TAKE,)),
        (
            (_S.ACCEPTED,),
            (_I.CARRIED_ALL,),
            _S.PREPARING,
            (_D.START_LEASE, _D.SEND_RECEIVED, _D.IMPORT),
        ),
        ((_S.RECEIVING,), (_I.CARRIED_ALL,), _S.PREPARING, (_D.SEND_RECEIVED, _D.IMPORT)),
        ((_S.PREPARING,), (_I.THAWED,), None, (_D.SEND_THAWED, _D.SWITCH)),
        ((_S.PREPARING,), (_I.SWITCHED,), _S.HELD, (_D.SEND_SWITCHED,)),
        ((_S.HELD,), (_I.COMMIT,), _S.OWNED, (_D.ACTIVATE, _D.SEND_COMMITTED)),
        ((_S.OWNED,), (_I.SETTLED, _I.LEASE_OVER), _S.SETTLED, (_D.LIFT,)),
        # Before the commitment everything may be forgotten, and then for good.
        (_UNCOMMITTED, (_I.FAIL,), _S.DISCARDED, (_D.DISCARD, _D.SEND_REFUSED)),
        (
            (_S.ACCEPTED, _S.RECEIVING),
            (_I.CARRIED_IN_PART,),
            _S.DISCARDED,
            (_D.DISCARD, _D.SEND_REFUSED),
        ),
        (_UNCOMMITTED, (_I.ABORT, _I.LEASE_OVER), _S.DISCARDED, (_D.DISCARD,)),
        (_EARLY, (_I.LINK_LOST,), _S.DISCARDED, (_D.DISCARD,)),
        # No source says this so early.
        (_EARLY, (_I.COMMIT, _I.ASK), _S.DISCARDED, (_D.DISCARD, _D.SEND_NO_COPY)),
        # It says what it is.
        ((_S.HELD,), (_I.ASK,), None, (_D.SEND_HELD,)),
        (_OWNER, (_I.OFFER, _I.COMMIT, _I.ASK), None, (_D.SEND_COMMITTED,)),
        ((_S.DISCARDED,), (_I.OFFER, _I.COMMIT, _I.ASK), None, (_D.SEND_NO_COPY,)),
        # What comes too early, too late or again.
        (_UNCOMMITTED, (_I.OFFER, _I.SETTLED), None, ()),
        ((*_EARLY[1:], _S.HELD, *_ENDED), (_I.ACCEPT,), None, ()),
        ((_S.OFFERED, _S.PREPARING, _S.HELD, *_ENDED), (_I.CARRY, *_CARRIED), None, ()),
        ((*_EARLY[:3], _S.HELD, *_ENDED), (_I.THAWED, _I.SWITCHED), None, ()),
        ((_S.HELD,), (_I.LINK_LOST,), None, ()),
        (_ENDED, (_I.ABORT, _I.FAIL, _I.LINK_LOST), None, ()),
        ((_S.SETTLED, _S.DISCARDED), (_I.SETTLED, _I.LEASE_OVER), None, ()),
    ],
)

_TOLD: dict[type[Message], Input] = {
    Offer: Input.OFFER,
    ContainerOffer: Input.OFFER,
    Commit: Input.COMMIT,
    Ask: Input.ASK,
    Settled: Input.SETTLED,
    Abort: Input.ABORT,
}


class DestinationMachine:
    """The destination's side of one handover, made for its `Offer`.

    Args:
        offer: The offer.
        history: Told how the handover has ended.

    Attributes:
        state: Where it is.
        reason: Why it was discarded; empty if it was not.
    """

    def __init__(self, offer: AnyOffer, history: History) -> None:
        self.handover = offer.handover
        self.state = State.OFFERED
        self.reason = ""
        self._address = offer.address
        self._history = history
        self._connections: set[str] = set()
        self._pieces = 0
        self._awaits_state = offer.has_state

    @property
    def may_abort(self) -> bool:
        """Whether `fail` still discards the copies."""
        return self.state in _UNCOMMITTED

    @property
    def awaits_freeze(self) -> bool:
        """Whether nothing is frozen yet that is to come here."""
        return self.state in (State.OFFERED, State.ACCEPTED)

    @property
    def owns(self) -> bool:
        """Whether the connections live here."""
        return self.state in _OWNER

    @property
    def holds(self) -> bool:
        """Whether the copies are there, silent or not."""
        return self.state is State.HELD or self.owns

    @property
    def has_ended(self) -> bool:
        """Whether nothing changes any more; the history answers in its place from then on."""
        return self.state in (State.SETTLED, State.DISCARDED)

    # Inputs of the server

    def accept(self, address: str) -> list[Do | Message]:
        """Take the server.

        Args:
            address: Where it will be: ``host:port``.
        """
        self._address = address
        return self._step(Input.ACCEPT)

    def thawed(self) -> list[Do | Message]:
        """Note that all copies exist, and the application has its state."""
        return self._step(Input.THAWED)

    def switched(self) -> list[Do | Message]:
        """Note that the copies are at their new address."""
        return self._step(Input.SWITCHED)

    def fail(self, reason: str) -> list[Do | Message]:
        """Discard the copies, if that is possible still; see `may_abort`.

        Args:
            reason: Why; the source gets to know.
        """
        return self._step(Input.FAIL, reason)

    def lease_over(self) -> list[Do | Message]:
        """Note that `HOLD` seconds have passed since `Do.START_LEASE`."""
        return self._step(Input.LEASE_OVER, "the source has not been heard of in time")

    # Inputs of the link to the source

    def receive(self, message: Message) -> list[Do | Message]:
        """Take a message of the source."""
        if message.handover != self.handover:
            return []
        match message:
            case Carry() if message.connection_id not in self._connections:
                if self.state in (State.ACCEPTED, State.RECEIVING):
                    self._connections.add(message.connection_id)
                return self._step(Input.CARRY)
            case CarryState() if self._awaits_state:
                self._awaits_state = self.state not in (State.ACCEPTED, State.RECEIVING)
                return self._step(Input.CARRY)
            case CarryImage() if message.number == self._pieces:
                self._pieces += self.state in (State.ACCEPTED, State.RECEIVING)
                return self._step(Input.CARRY)
            case Carried() if self._awaits_state or message.pieces != self._arrived:
                return self._step(Input.CARRIED_IN_PART, "not all that was sent has arrived")
            case Carried():
                return self._step(Input.CARRIED_ALL)
            case Abort():
                return self._step(Input.ABORT, f"the source gave up: {message.reason}")
        received = _TOLD.get(type(message))
        return [] if received is None else self._step(received, "the source asked too early")

    def link_lost(self) -> list[Do | Message]:
        """Note that the link on which the offer came is lost."""
        return self._step(Input.LINK_LOST, "the link to the source was lost")

    # Transitions

    @property
    def _arrived(self) -> int:
        return len(self._connections) + self._pieces

    def _step(self, received: Input, reason: str = "") -> list[Do | Message]:
        before, step = self.state, TABLE[self.state, received]
        self.state = step.state
        if self.state is not before:
            if self.state is State.DISCARDED:
                self.reason = shorten(reason)
                was_accepted = before is not State.OFFERED
                (self._history.discarded if was_accepted else self._history.denied)(self.handover)
            elif self.state is State.OWNED:
                self._history.committed(self.handover)
        return [self._do(do) for do in step.actions]

    def _do(self, do: Do) -> Do | Message:
        match do:
            case Do.SEND_ACCEPTED:
                return Accepted(self.handover, self._address)
            case Do.SEND_REFUSED:
                return Refused(self.handover, self.reason)
            case Do.SEND_RECEIVED:
                return Received(self.handover)
            case Do.SEND_THAWED:
                return Thawed(self.handover)
            case Do.SEND_SWITCHED:
                return Switched(self.handover)
            case Do.SEND_COMMITTED:
                return Committed(self.handover)
            case Do.SEND_HELD:
                return Held(self.handover)
            case Do.SEND_NO_COPY:
                return NoCopy(self.handover)
        return do
