"""Traces as they stand in their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_trace(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the first record of a JSON text sequence, and the others."""
    content = path.read_bytes()
    assert content.startswith(b"\x1e")
    assert content.endswith(b"\n")
    first, *events = (json.loads(record) for record in content[1:].split(b"\x1e"))
    return first, events


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["name"] for event in events]
