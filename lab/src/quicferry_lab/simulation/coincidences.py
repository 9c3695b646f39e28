"""What happens in the very moment of something else: the client's change of address, and losses.

Drawn at random, two things that take a fraction of a round trip hardly ever meet. So their moments
are drawn around those where a migration takes another turn, no further away than a round trip; and
nine of ten scenarios go to and fro between two places, mostly by the symmetric protocols.

How often that is was counted in scenarios without their being played, 8,000 of these and 32,000
without coincidences. Counted are scenarios in which the client's address changes within half a
round trip of the freeze in a symmetric move back to a former place: 0.187 to 0.0014, 130 times as
often as by chance; of the network switch: 0.173 to 0.0017, 102 times; in the move as a whole: 0.345
to 0.0021, 167 times. Without the way back it is 10 to 13 times, as chance does that in 3 % already.
A loss of the very datagram that matters does not come about by chance in so many scenarios; here
two thirds of the moves back have one. `tests/simulation/test_soak.py` counts again.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass

from .network import Datagram, SimulatedAddress


class Moment(enum.Enum):
    """What a loss or a change of the client's address follows."""

    ANNOUNCEMENT = "announcement"
    READINESS = "readiness"
    SWITCH = "switch"
    CLIENT_CHANGE = "client-change"


@dataclass(frozen=True)
class Loss:
    """Datagrams of one side that are lost, counted from a moment on.

    Args:
        after: That moment.
        by_client: Whether the client has sent them, or the server.
        skipped: How many get through first.
        count: How many are lost then.
    """

    after: Moment
    by_client: bool
    skipped: int
    count: int


class Losses:
    """A network's filter that carries losses out.

    Args:
        losses: What is lost.
    """

    def __init__(self, losses: tuple[Loss, ...]) -> None:
        self._losses = losses
        self._passed: dict[Loss, int] = {}

    def now(self, moment: Moment) -> None:
        """A moment has come: count from here."""
        self._passed.update({loss: 0 for loss in self._losses if loss.after is moment})

    def allows(self, datagram: Datagram, server: SimulatedAddress) -> bool:
        """Return whether a datagram gets through, and count it.

        Args:
            datagram: The datagram.
            server: The server's address; everything else is the client's.
        """
        lost = False
        for loss, passed in self._passed.items():
            if loss.by_client is (datagram.source != server):
                self._passed[loss] = passed + 1
                lost |= loss.skipped <= passed < loss.skipped + loss.count
        return not lost


def draw_losses(rng: random.Random) -> tuple[Loss, ...]:
    """Draw what is lost in a move: mostly single datagrams, and the first ones."""
    return tuple(
        Loss(
            after=rng.choice(list(Moment)),
            by_client=rng.random() < 0.5,
            skipped=rng.choice((0, 0, 0, 1, 1, 2, 3, 5)),
            count=rng.choice((1, 1, 1, 2, 3)),
        )
        for _ in range(rng.choice((0, 0, 1, 1, 2)))
    )


def draw_pause(rng: random.Random, round_trip: float) -> float:
    """Draw how long the server is frozen: long enough for some packets to miss it."""
    return rng.choice((0.0, 0.25, 0.5, 1.0, 1.5, 3.0)) * round_trip


def draw_close_to(rng: random.Random, moments: tuple[float, ...], round_trip: float) -> float:
    """Draw a time close to one of these moments."""
    return rng.choice(moments) + rng.uniform(-1.5, 1.0) * round_trip
