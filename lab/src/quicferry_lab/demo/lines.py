"""JSON lines between a process and the one that has started it: the process's own side."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from quicferry_lab.demo.settings import LINE_LIMIT


def say(event: str, **fields: Any) -> None:
    """Write a line to the standard output.

    Args:
        event: What it is about.
        **fields: Whatever JSON can carry.
    """
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


async def open_input() -> asyncio.StreamReader:
    """Return the standard input, to read lines from."""
    reader = asyncio.StreamReader(limit=LINE_LIMIT)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader
