from __future__ import annotations

from loopback import time_limit

__all__ = ["time_limit"]
