"""What keeps a connection from living twice.

A connection that was carried to another host exists there as a *copy*, and the *source* keeps its
own until it is sure that the copy has taken over. Two packets with one key and packet number break
the encryption (RFC 9001 5.3), so they share the numbers out before the copy exists:

- the source is *frozen*: it sends nothing, reads nothing and has no timer;
- the copy is *thawed*, and as silent; once it is *provisional* it uses the `RESERVED_NUMBERS`
  numbers from the source's next one on, and then holds its packets back;
- a source that goes on after all skips exactly these;
- a copy that is told that the source never will is *open*: an ordinary connection.

For a connection that is frozen or thawed, time stands still: how long a handover takes expires no
timer of it.

How many can be reserved is limited by what the client can make sense of. aioquic writes the last 16
bits of a packet number, and a receiver takes them for the number nearest to the one that it expects
(RFC 9000 17.1), so a jump must stay below 2**15. 2**13 is half a second at the highest rate that
Python reaches, and leaves three quarters of the room for packets that were lost before the jump.
The next jump has to wait until a packet behind this one was acknowledged.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

RESERVED_NUMBERS = 1 << 13
"""How many packet numbers a copy may use before the source is gone for good."""


class SealState(enum.Enum):
    """Who a connection is, to the one that it was carried to or from."""

    OPEN = "open"
    FROZEN = "frozen"
    THAWED = "thawed"
    PROVISIONAL = "provisional"


# Asked several times for each packet, and a member is looked up slowly
_FROZEN, _THAWED = SealState.FROZEN, SealState.THAWED


@dataclass
class Seal:
    """The state of one connection.

    Attributes:
        state: Who it is.
        first_forbidden: The number that no packet may have any more; None where there is no limit.
        silent_since: When it was frozen or thawed, in seconds.
        resumed_at: The first packet number after the latest jump.
    """

    state: SealState = SealState.OPEN
    first_forbidden: int | None = None
    silent_since: float = 0.0
    resumed_at: int = 0

    @property
    def is_shut(self) -> bool:
        """Whether nothing comes in or out."""
        return self.state is _FROZEN or self.state is _THAWED

    def clock(self, now: float) -> float:
        """Return the time by which the connection lives."""
        return self.silent_since if self.is_shut else now

    def holds_back(self, packet_number: int) -> bool:
        """Return whether nothing but what was begun may be written with this packet number.

        The last number is for the packet that is under way when that is noticed.
        """
        return self.first_forbidden is not None and packet_number + 1 >= self.first_forbidden
