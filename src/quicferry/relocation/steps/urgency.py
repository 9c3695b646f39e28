"""Lets what clients wait for go ahead of everything else on a host.

While a container is stopped, this process and the programs that it starts (the engine, CRIU) take
precedence by their niceness, where that is permitted. On a host that is left because it has too
much to do, dumping and fetching would take a multiple of the time otherwise. A restored container
has the niceness that it had before, because CRIU restores that too.
"""

from __future__ import annotations

import contextlib
import os

_FIRST = -20


class Urgency:
    """A time in which this process goes first."""

    def __init__(self) -> None:
        self._before: int | None = None

    def begin(self) -> None:
        """Go first from now on."""
        if self._before is None:
            with contextlib.suppress(PermissionError):
                before = os.getpriority(os.PRIO_PROCESS, 0)
                os.setpriority(os.PRIO_PROCESS, 0, _FIRST)
                self._before = before

    def end(self) -> None:
        """Be one of many again. Programs that are running keep what they have."""
        if self._before is not None:
            os.setpriority(os.PRIO_PROCESS, 0, self._before)
            self._before = None
