"""In which order a client tries the addresses of a pool.

A *round* is fixed when it starts: addresses that arrive while it runs join the next one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from .address import Address
from .options import Scheduler

Round = Callable[[Address, Sequence[Address]], list[Address]]
"""From the current address and the pool to the addresses of one round, in order."""


def cyclic_round(current: Address, pool: Sequence[Address]) -> list[Address]:
    """Return the current address, then the pool in its order, skipping the current one."""
    return [current, *(address for address in pool if address != current)]


def random_round(seed: int) -> Round:
    """Return a scheduler that shuffles the cyclic round, the same way for the same seed."""
    # Not a secret: the order of probes is visible to anyone who sees them.
    generator = random.Random(seed)

    def shuffled(current: Address, pool: Sequence[Address]) -> list[Address]:
        addresses = cyclic_round(current, pool)
        generator.shuffle(addresses)
        return addresses

    return shuffled


class Schedule:
    """An endless sequence of addresses to try, made of rounds.

    Args:
        scheduler: How a round is ordered. PARALLEL has no order of its own; it is cyclic here.
        seed: For the random scheduler.
    """

    def __init__(self, scheduler: Scheduler, seed: int) -> None:
        self._round = random_round(seed) if scheduler is Scheduler.RANDOM else cyclic_round
        self._left: list[Address] = []

    def next_address(self, current: Address, pool: Sequence[Address]) -> Address:
        """Return the next address; `current` and `pool` count when a new round starts."""
        if not self._left:
            self._left = self._round(current, pool)
        return self._left.pop(0)

    def restart(self) -> None:
        """Forget the rest of the round."""
        self._left.clear()
