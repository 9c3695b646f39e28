"""The source of a handover: may the server still go on here, or has it gone?

Theory of operation
-------------------
Two servers must never both live with the same connections. The destination's copies are silent
until it is told `Commit`, so it is the source that decides, once, by sending it:

- Before that, whatever goes wrong ends in the same way: the source goes on (*back*), and the
  destination is told to forget its copies, or finds out by itself.
- From then on the source is *in doubt*. The message or its answer may be lost with the link, and
  the copies may live. So the source stays silent, connects again and asks, again and again:
  `Committed`: it is *gone*, for ever. `Held`: the message was lost, and is sent again. `NoCopy` or
  `Refused`: that is final, by the rules of the destination, and the source goes on.
- A *lease* bounds that. It begins before the first connection is frozen. When it is over, the
  source can never go on any more; what is still in doubt then is *given up*. For the same reason
  nothing is committed after it. The destination knows its length, begins to count later, and takes
  as long and a margin before it believes that the source is gone.

The source may go on although its copy has lived, where the copy has died: another instance of the
destination answers `NoCopy` for what it has never known. No packet number is used twice even then,
because within the lease the copy may use `quicferry.transport.RESERVED_NUMBERS` at most, unless it
was told `Settled`, which the source says only after it is gone.

An instance that dies must have stopped sending before another one answers in its place, and it
has to discard what it holds before it stops to listen.

The machine is sans-IO and has no clock. Each input returns what is to be done, in order: messages
to be sent, and members of `Do`. An input that comes late, again, or from a link that is gone
changes nothing. All messages may come again, in any order.
"""

from __future__ import annotations

import enum

from quicferry.protocol.table import Table

from ..errors import HandoverError
from ..link.messages import (
    Abort,
    Accepted,
    Ask,
    Commit,
    Committed,
    Held,
    Message,
    NoCopy,
    Refused,
    Settled,
    Switched,
    shorten,
)

LEASE = 20.0
"""Seconds from the first freeze within which the source may still go on."""


class State(enum.Enum):
    """Where the source is in a handover."""

    OFFERED = "offered"
    ACCEPTED = "accepted"
    """The destination is ready to receive; nothing is frozen yet."""
    FROZEN = "frozen"
    """The server is silent, and its connections are on their way."""
    SWITCHED = "switched"
    """The destination holds silent copies at the new address."""
    IN_DOUBT = "in-doubt"
    """The copies may live."""
    GONE = "gone"
    """The destination owns the connections."""
    BACK = "back"
    """The server goes on here, as if nothing had happened."""
    GIVEN_UP = "given-up"
    """The destination may own the connections, or nobody; this server does not."""


class Input(enum.Enum):
    """What can happen to the source."""

    ACCEPTED = enum.auto()
    REFUSED = enum.auto()
    SWITCHED = enum.auto()
    COMMITTED = enum.auto()
    HELD = enum.auto()
    NO_COPY = enum.auto()
    FREEZE = enum.auto()
    COMMIT = enum.auto()
    ABORT = enum.auto()
    LINK_LOST = enum.auto()
    LINK_BACK = enum.auto()
    LEASE_OVER = enum.auto()


class Do(enum.Enum):
    """What the source does on a transition; what begins with SEND comes out as a message."""

    START_LEASE = enum.auto()
    """Hand in `lease_over` when `LEASE` seconds have passed; then freeze and carry."""
    CALL_OFF = enum.auto()
    """Go on; nothing was frozen yet."""
    RESUME = enum.auto()
    """Let the frozen connections go on here."""
    DEPART = enum.auto()
    """Let the connections go; forward what comes for them."""
    DROP = enum.auto()
    """Give the frozen connections up, in silence."""
    RECONNECT = enum.auto()
    """Connect again, and again; hand in `link_back`. Until then, or the end of the lease."""
    SEND_COMMIT = enum.auto()
    SEND_ASK = enum.auto()
    SEND_SETTLED = enum.auto()
    SEND_ABORT = enum.auto()
    FAIL = enum.auto()


_S, _I, _D = State, Input, Do
_UNFROZEN = (_S.OFFERED, _S.ACCEPTED)
_SILENT = (_S.FROZEN, _S.SWITCHED)
_UNCOMMITTED = (*_UNFROZEN, *_SILENT)
_ENDED = (_S.GONE, _S.BACK, _S.GIVEN_UP)
_ANSWERS = (_I.ACCEPTED, _I.REFUSED, _I.SWITCHED, _I.COMMITTED, _I.HELD, _I.NO_COPY)

TABLE: Table[State, Input, Do] = Table(
    State,
    Input,
    [
        ((_S.OFFERED,), (_I.ACCEPTED,), _S.ACCEPTED, ()),
        ((_S.ACCEPTED,), (_I.FREEZE,), _S.FROZEN, (_D.START_LEASE,)),
        ((_S.FROZEN,), (_I.SWITCHED,), _S.SWITCHED, ()),
        ((_S.SWITCHED,), (_I.COMMIT,), _S.IN_DOUBT, (_D.SEND_COMMIT,)),
        ((_S.IN_DOUBT,), (_I.COMMITTED,), _S.GONE, (_D.DEPART, _D.SEND_SETTLED)),
        # Before the commitment it goes back, whatever fails.
        (_UNFROZEN, (_I.REFUSED, _I.NO_COPY, _I.LINK_LOST), _S.BACK, (_D.CALL_OFF,)),
        (_UNFROZEN, (_I.ABORT,), _S.BACK, (_D.CALL_OFF, _D.SEND_ABORT)),
        (_SILENT, (_I.REFUSED, _I.NO_COPY, _I.LINK_LOST), _S.BACK, (_D.RESUME,)),
        (_SILENT, (_I.ABORT, _I.LEASE_OVER), _S.BACK, (_D.RESUME, _D.SEND_ABORT)),
        ((_S.BACK,), (_I.LINK_BACK,), None, (_D.SEND_ABORT,)),
        # In doubt it asks.
        ((_S.IN_DOUBT,), (_I.HELD,), None, (_D.SEND_COMMIT,)),
        ((_S.IN_DOUBT,), (_I.REFUSED, _I.NO_COPY), _S.BACK, (_D.RESUME,)),
        ((_S.IN_DOUBT,), (_I.LINK_LOST,), None, (_D.RECONNECT,)),
        ((_S.IN_DOUBT,), (_I.LINK_BACK,), None, (_D.SEND_ASK,)),
        ((_S.IN_DOUBT,), (_I.LEASE_OVER,), _S.GIVEN_UP, (_D.DROP,)),
        # Until it hears so, the destination sends no more than a little.
        ((_S.GONE,), (_I.LINK_LOST,), None, (_D.RECONNECT,)),
        ((_S.GONE,), (_I.LINK_BACK,), None, (_D.SEND_SETTLED,)),
        # What comes too early, too late or again.
        ((_S.OFFERED,), (_I.SWITCHED, _I.COMMITTED, _I.HELD), None, ()),
        ((_S.ACCEPTED,), (_I.ACCEPTED, _I.SWITCHED, _I.COMMITTED, _I.HELD), None, ()),
        ((_S.FROZEN,), (_I.ACCEPTED, _I.COMMITTED, _I.HELD), None, ()),
        ((_S.SWITCHED,), (_I.ACCEPTED, _I.SWITCHED, _I.COMMITTED, _I.HELD), None, ()),
        ((_S.IN_DOUBT,), (_I.ACCEPTED, _I.SWITCHED, _I.ABORT), None, ()),
        (_ENDED, (*_ANSWERS, _I.ABORT, _I.LEASE_OVER), None, ()),
        (_UNFROZEN, (_I.LEASE_OVER,), None, ()),
        (_UNCOMMITTED, (_I.LINK_BACK,), None, ()),
        ((_S.BACK, _S.GIVEN_UP), (_I.LINK_LOST,), None, ()),
        ((_S.GIVEN_UP,), (_I.LINK_BACK,), None, ()),
        ((_S.OFFERED, *_SILENT, _S.IN_DOUBT, *_ENDED), (_I.FREEZE,), None, (_D.FAIL,)),
        ((*_UNFROZEN, _S.FROZEN, _S.IN_DOUBT, *_ENDED), (_I.COMMIT,), None, (_D.FAIL,)),
    ],
)

_ANSWERED: dict[type[Message], Input] = {
    Accepted: Input.ACCEPTED,
    Refused: Input.REFUSED,
    Switched: Input.SWITCHED,
    Committed: Input.COMMITTED,
    Held: Input.HELD,
    NoCopy: Input.NO_COPY,
}


class SourceMachine:
    """The source's side of one handover, whose `Offer` is sent first.

    Args:
        handover: The id of the handover.

    Attributes:
        state: Where it is.
        reason: Why it has ended as it has; empty before, and if the server has gone.
    """

    def __init__(self, handover: bytes) -> None:
        self.handover = handover
        self.state = State.OFFERED
        self.reason = ""

    @property
    def may_abort(self) -> bool:
        """Whether `abort` still brings the server back."""
        return self.state in _UNCOMMITTED

    @property
    def has_ended(self) -> bool:
        """Whether it is decided who has the connections."""
        return self.state in _ENDED

    # Inputs of the server and its operator

    def freeze(self) -> list[Do | Message]:
        """Fall silent. To be called before the first connection is frozen.

        Raises:
            HandoverError: If the destination has not accepted, or the handover has ended.
        """
        return self._step(Input.FREEZE)

    def commit(self) -> list[Do | Message]:
        """Give the connections to the destination. There is no way back from here.

        Raises:
            HandoverError: If the destination does not hold them all, or the handover has ended.
        """
        return self._step(Input.COMMIT)

    def abort(self, reason: str) -> list[Do | Message]:
        """Go back, if that is possible still; see `may_abort`.

        Args:
            reason: Why.
        """
        return self._step(Input.ABORT, reason)

    def lease_over(self) -> list[Do | Message]:
        """Note that `LEASE` seconds have passed since `freeze`."""
        return self._step(Input.LEASE_OVER, "the handover took too long")

    # Inputs of the link to the destination

    def receive(self, message: Message) -> list[Do | Message]:
        """Take a message of the destination; those that decide nothing are ignored."""
        received = _ANSWERED.get(type(message))
        if message.handover != self.handover or received is None:
            return []
        reason = "the destination has no copy of the connections"
        if isinstance(message, Refused):
            reason = f"the destination refused: {message.reason}"
        return self._step(received, reason)

    def link_lost(self, reason: str) -> list[Do | Message]:
        """Note that the link in use is lost.

        Args:
            reason: Why.
        """
        return self._step(Input.LINK_LOST, reason)

    def link_back(self) -> list[Do | Message]:
        """Note that there is a link to the destination again."""
        return self._step(Input.LINK_BACK)

    # Transitions

    def _step(self, received: Input, reason: str = "") -> list[Do | Message]:
        step = TABLE[self.state, received]
        if Do.FAIL in step.actions:
            raise HandoverError(self._why_not(received))
        if step.state is not self.state and step.state in (State.BACK, State.GIVEN_UP):
            self.reason = shorten(reason)
        self.state = step.state
        return [self._do(do) for do in step.actions]

    def _do(self, do: Do) -> Do | Message:
        match do:
            case Do.SEND_COMMIT:
                return Commit(self.handover)
            case Do.SEND_ASK:
                return Ask(self.handover)
            case Do.SEND_SETTLED:
                return Settled(self.handover)
            case Do.SEND_ABORT:
                return Abort(self.handover, self.reason)
        return do

    def _why_not(self, received: Input) -> str:
        if self.state in (State.BACK, State.GIVEN_UP):
            return f"the handover has ended: {self.reason}; begin another one"
        return f"{received.name.lower()} is not possible while the handover is {self.state.value}"
