"""Thousands of connections that are closed on purpose would fill the captured log."""

from __future__ import annotations

import logging

logging.getLogger("quic").setLevel(logging.ERROR)
