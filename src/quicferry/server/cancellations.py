"""How often a client gives up what it has asked for, and when that is all that it does."""

from __future__ import annotations

from collections.abc import Callable

MOST_CANCELLED = 200
"""By so many the requests that were cancelled may outnumber those that were answered."""

FORGIVEN = 10.0
"""Cancelled requests that are forgotten in a second: who reads on cancels, too."""


class Cancellations:
    """Counts the requests that a client has cancelled against those that were answered.

    Each makes work for the server and none for the client, which can repeat it at once
    (RFC 9114 10.5). A person who follows links cancels some, and in time.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._count = 0.0
        self._at = clock()

    def add(self) -> bool:
        """Count one that was cancelled; return whether there have been too many."""
        now = self._clock()
        self._count = max(0.0, self._count - FORGIVEN * (now - self._at)) + 1
        self._at = now
        return self._count > MOST_CANCELLED

    def subtract(self) -> None:
        """Count one that was answered."""
        self._count = max(0.0, self._count - 1)
