"""Keeps Python's garbage collector from running while clients wait.

Thawing makes some hundred objects for each connection, all of which stay; looking through them
again and again for garbage takes nearly half of the time, and a full collection in a large process
takes longer than all the rest of a handover.
"""

from __future__ import annotations

import gc

_pauses = 0
_was_enabled = False


class CollectorPause:
    """A time without garbage collection; those of several handovers may overlap."""

    def __init__(self) -> None:
        self._is_on = False

    def begin(self) -> None:
        """Collect no garbage from now on."""
        global _pauses, _was_enabled
        if self._is_on:
            return
        self._is_on = True
        if _pauses == 0:
            _was_enabled = gc.isenabled()
            gc.disable()
        _pauses += 1

    def end(self) -> None:
        """Collect garbage again, if it was so before."""
        global _pauses
        if not self._is_on:
            return
        self._is_on = False
        _pauses -= 1
        if _pauses == 0 and _was_enabled:
            gc.enable()
