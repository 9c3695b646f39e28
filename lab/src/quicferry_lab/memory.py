"""How much memory a process uses."""

from __future__ import annotations

import os
from pathlib import Path


def resident_memory(pid: int | None = None) -> int:
    """Return what a process has in RAM, in bytes.

    Args:
        pid: The process; None for this one.
    """
    statm = Path("/proc") / ("self" if pid is None else str(pid)) / "statm"
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
