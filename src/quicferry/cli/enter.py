"""Enter, pressed by a person or found in what standard input is instead."""

from __future__ import annotations

import asyncio
import os
import sys
import termios
import threading
from contextlib import suppress

_CHUNK = 4096


class Enter:
    """Waits for lines of standard input, whatever that is: a terminal, a pipe, a file, nothing.

    A thread reads, since only terminals, pipes and sockets can be waited for otherwise. It reads no
    further than is asked for, and does not keep the process from ending.
    """

    def __init__(self) -> None:
        self._descriptor = None if sys.stdin is None else sys.stdin.fileno()
        self._lines = 0

    async def pressed(self) -> bool:
        """Wait for the end of a line; return False if the input has ended.

        At a terminal only what is pressed from now on counts.
        """
        if self._descriptor is None:
            return False
        if os.isatty(self._descriptor):
            self._lines = 0
            termios.tcflush(self._descriptor, termios.TCIFLUSH)
        while not self._lines:
            data = await _read(self._descriptor)
            if not data:
                self._descriptor = None
                return False
            self._lines = data.count(b"\n")
        self._lines -= 1
        return True


async def input_ended() -> None:
    """Wait for the end of standard input, whatever it is."""
    while sys.stdin is not None and await _read(sys.stdin.fileno()):
        pass


async def _read(descriptor: int) -> bytes:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()

    def tell(data: bytes) -> None:
        if not answer.done():
            answer.set_result(data)

    def read() -> None:
        try:
            data = os.read(descriptor, _CHUNK)
        except OSError:  # it cannot be read, a directory for example
            data = b""
        with suppress(RuntimeError):  # nobody waits for it any more
            loop.call_soon_threadsafe(tell, data)

    threading.Thread(target=read, daemon=True).start()
    return await answer
