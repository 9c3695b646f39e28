"""The demo's child processes: started, listened to, and never left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from quicferry.protocol import QuicferryError
from quicferry_lab.demo.settings import LINE_LIMIT

T = TypeVar("T")

PATIENCE = 3.0
"""Seconds that a child gets to end by itself, and then again to obey SIGTERM."""


class DemoError(QuicferryError):
    """The demo could not be carried out."""


class Child:
    """A child process that speaks JSON lines on its standard input and output.

    It has a session of its own, so a Ctrl-C in the terminal reaches the demo only, which then ends
    its children in order. Should the demo be killed, the end of their input ends them.

    Attributes:
        name: what it is called in errors.
        listening: of a server, what it said about where it listens.
    """

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.listening: dict[str, Any] = {}
        self._process = process
        self._last_words: deque[str] = deque(maxlen=20)
        self._stderr = asyncio.create_task(self._read_stderr())

    def say(self, **message: Any) -> None:
        """Write a line to the child."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield what the child says until it closes its output."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            yield json.loads(line)

    async def unexpected_end(self) -> DemoError:
        """Return an error that says how the child ended; for when it should still be there."""
        status = await self._process.wait()
        await self._stderr
        if status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
        else:
            how = f"ended with status {status}"
        words = self._last_words[-1] if self._last_words else "it said nothing on stderr"
        return DemoError(f"the {self.name} {how} before its time: {words}")

    def end_input(self) -> None:
        """Let the child come to its end by itself; what it says until then can be read."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def end(self) -> None:
        """End the child: by the end of its input, then by SIGTERM, then by SIGKILL."""
        self.end_input()
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._process.wait()
            if self._process.returncode is not None:
                break
            self._process.send_signal(number)
        await self._process.wait()
        await self._stderr

    def kill(self) -> None:
        """End it by force, with all that stands for it."""
        self._process.kill()

    async def stop(self) -> None:
        """End a child to whom the end of its input means nothing: by SIGTERM, then by SIGKILL."""
        if self._process.returncode is None:
            self._process.terminate()
        await self.end()

    @property
    def last_words(self) -> str:
        """What it has written to its standard error, in the last lines."""
        return "\n".join(self._last_words)

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            text = line.decode(errors="replace").rstrip()
            if text:
                self._last_words.append(text)


@asynccontextmanager
async def child(name: str, module: str, arguments: Sequence[str] = ()) -> AsyncIterator[Child]:
    """Run ``python -m module arguments`` for as long as the context lasts."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=LINE_LIMIT,
        start_new_session=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    started = Child(name, process)
    try:
        yield started
    finally:
        await asyncio.shield(started.end())


async def while_watched(
    play: Coroutine[Any, Any, T], watchers: Iterable[Coroutine[Any, Any, None]]
) -> T:
    """Return what `play` returns, unless a watcher fails first; then raise its error."""
    main = asyncio.create_task(play)
    tasks: set[asyncio.Task[Any]] = {main, *(asyncio.create_task(watch) for watch in watchers)}
    pending = tasks
    try:
        while not main.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {main}:
                task.result()
        return main.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
