"""How long the two ends of a handover wait for each other, by a clock that does not stop.

The clock of the event loop stands still while a machine is suspended, and the other end's does not.
So the deadline is compared with CLOCK_BOOTTIME (clock_gettime(2)) whenever something happens; the
timer of the event loop only sees to it that something does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Lease:
    """Calls something once, when a time is over.

    Args:
        over: Called then; by the timer, or by `check` if that comes first.
    """

    def __init__(self, over: Callable[[], None]) -> None:
        self._over = over
        self._ends_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        """Begin to count, or begin again; the time is over in so many seconds."""
        self.stop()
        self._ends_at = _now() + seconds
        self._timer = asyncio.get_running_loop().call_later(seconds, self.check)

    def check(self) -> None:
        """Notice if the time is over."""
        if self._ends_at is None:
            return
        left = self._ends_at - _now()
        if left <= 0:
            self.stop()
            self._over()
        elif self._timer is not None and self._timer.when() <= asyncio.get_running_loop().time():
            self._timer = asyncio.get_running_loop().call_later(left, self.check)

    def stop(self) -> None:
        """Count no longer."""
        self._ends_at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
