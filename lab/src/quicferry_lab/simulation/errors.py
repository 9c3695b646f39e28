"""What can go wrong in a simulation."""

from __future__ import annotations

from quicferry.protocol.errors import QuicferryError


class SimulationError(QuicferryError):
    """The simulated world did not come to the state that was waited for, or was misused."""


class InvariantError(SimulationError):
    """Something that must hold in every run does not."""
