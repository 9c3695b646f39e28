"""How much slower than usual this machine is: an emulated one takes its time for everything."""

from __future__ import annotations

import os

VARIABLE = "QUICFERRY_LAB_PATIENCE"
"""Names by how much every time limit of a trial is longer; 1 if it is not set."""


def patient(seconds: float) -> float:
    """Return a time limit for this machine.

    Args:
        seconds: What is enough on a usual one.
    """
    return seconds * float(os.environ.get(VARIABLE, "1"))
