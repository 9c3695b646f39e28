"""A relocation of a container step by step, so that something can go wrong in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from quicferry_lab.containers import Site
from quicferry_lab.demo.settings import LINE_LIMIT

LIMIT = 60.0


class Steps:
    """`quicferry migrate --step` under way.

    Attributes:
        process: Its process.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def until(self, step: str) -> None:
        """Let it go on until it is about to begin with a step."""
        async with asyncio.timeout(LIMIT):
            while (event := await self._next()) is not None:
                if event.get("event") == "StepWaits":
                    if event["step"] == step:
                        return
                    self.go_on()
        raise AssertionError(f"it has ended before {step}: {await self._said()}")

    def go_on(self) -> None:
        """Let it begin with the next step."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    async def report(self) -> dict[str, Any]:
        """Let it go on to its end, and return the report."""
        self.go_on()
        async with asyncio.timeout(LIMIT):
            while (event := await self._next()) is not None:
                if event.get("event") == "StepWaits":
                    self.go_on()
                if "outcome" in event:
                    return event
        raise AssertionError(f"there is no report: {await self._said()}")

    async def _next(self) -> dict[str, Any] | None:
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        return json.loads(line) if line else None

    async def _said(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()


@asynccontextmanager
async def steps(site: Site, *options: str) -> AsyncIterator[Steps]:
    """Begin to move the server from the source to the destination."""
    process = await site.source.start(
        site.migrate_command(site.destination, "--step", *options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        longest_line=LINE_LIMIT,
    )
    try:
        yield Steps(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
