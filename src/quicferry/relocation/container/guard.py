"""Lets a container go on if whoever moves it is killed.

A `Guard` is a process of its own (`guarding`), which is told how far a relocation is, in a line of
JSON each time. When its input ends and it was not told that all is over, it does what the other
process would have done.
"""

from __future__ import annotations

import asyncio
import enum
import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Self


class Stage(enum.Enum):
    """How far a relocation is."""

    ANNOUNCED = "announced"
    """The server may have been told to prepare; it runs."""
    SUSPENDED = "suspended"
    """It may be silent, and its container stopped."""
    COMMITTING = "committing"
    """The destination may have it."""
    OVER = "over"


class Guard:
    """Watches over a relocation; an asynchronous context manager.

    Args:
        engine: The name of the container's engine.
        container: Its name.
        directory: Where its images are, which are wiped.
    """

    def __init__(self, engine: str, container: str, directory: Path) -> None:
        self._arguments = (engine, container, str(directory))
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            # -P: what is in the current directory is not to be run by root.
            *(
                sys.executable,
                "-P",
                "-m",
                "quicferry.relocation.container.guarding",
                *self._arguments,
            ),
            stdin=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self.tell(Stage.ANNOUNCED)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None, "it was started"
        assert self._process.stdin is not None, "it has a pipe"
        self.tell(Stage.OVER)
        self._process.stdin.close()
        await self._process.wait()

    def tell(self, stage: Stage, pages: tuple[str, int] | None = None) -> None:
        """Tell how far the relocation is.

        Args:
            stage: From now on.
            pages: Where memory is waiting to be fetched, if it is.
        """
        assert self._process is not None, "it was started"
        assert self._process.stdin is not None, "it has a pipe"
        if not self._process.stdin.is_closing():
            line = json.dumps({"stage": stage.value, "pages": pages})
            self._process.stdin.write(line.encode() + b"\n")
