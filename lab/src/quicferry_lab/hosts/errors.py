"""What can go wrong in the laboratory."""

from __future__ import annotations

from quicferry.protocol import QuicferryError


class LabError(QuicferryError):
    """The laboratory could not be set up, or something in it failed."""
