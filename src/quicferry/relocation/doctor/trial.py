"""Moves a throw-away process as a server would be moved, within namespaces of its own.

`try_out` starts this module in a new network namespace, with process IDs and mounts of its own, so
that nothing can be reached from outside, and everything goes with its first process, whatever
happens: processes, sockets, and the file system in memory with the images. The process is restored
in yet another such place (`landing`), because its memory may still be fetched from the old one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from quicferry.relocation.container.engines import PageTls, Technique, criu
from quicferry.relocation.container.engines.program import run, start
from quicferry.relocation.container.images import ImageDirectory
from quicferry.relocation.errors import EngineError
from quicferry.server.certificate import host_certificate

from . import guest, landing

_LIMIT = 30.0
"""Seconds for one program."""
_TRIAL_LIMIT = 90.0
"""Seconds for one technique."""
_NAMESPACES = ("unshare", "--net", "--pid", "--mount-proc", "--fork", "--kill-child")
_PORT = 4433
_PAGE_PORT = 4435
_LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
_FIRST_PID = 10_000
"""Far from those of the first processes where it is restored: its ID must be free there."""
_BEFORE, _FINAL = "before", "final"
_PYTHON = (sys.executable, "-I", "-S")


@dataclass(frozen=True)
class Trial:
    """What became of a trial.

    Attributes:
        error: Why it failed; empty if it did not.
        seconds: What it took.
    """

    error: str
    seconds: float


async def try_out(techniques: Iterable[Technique]) -> dict[Technique, Trial]:
    """Move a throw-away process with each technique, one after the other; needs root.

    Raises:
        EngineError: If it was not possible to try.
    """
    names = [technique.value for technique in techniques]
    if not names:
        return {}
    with tempfile.TemporaryDirectory(prefix="quicferry-doctor-") as directory:
        said = await run(
            *("setpriv", "--pdeathsig", "KILL"),  # even if we are killed, it ends
            *(*_NAMESPACES, sys.executable, "-P", "-m", __name__, directory, *names),
            limit=_TRIAL_LIMIT * len(names),
        )
    results = [json.loads(line) for line in said.splitlines()]
    return {Technique(each["technique"]): Trial(each["error"], each["seconds"]) for each in results}


async def _main(directory: Path, techniques: list[Technique]) -> None:
    """Try the techniques in the namespaces that were made for it."""
    for technique in techniques:
        began = time.monotonic()
        error = ""
        try:
            async with (
                asyncio.timeout(_TRIAL_LIMIT - _LIMIT / 2),
                ImageDirectory(directory) as memory,
            ):
                await _Journey(memory).go(technique)
        except (EngineError, OSError) as exc:
            error = str(exc) or "it was not done in time"
        seconds = round(time.monotonic() - began, 3)
        print(json.dumps({"technique": technique.value, "error": error, "seconds": seconds}))


class _Journey:
    """The way of one throw-away process from here to its landing."""

    def __init__(self, memory: ImageDirectory) -> None:
        self._images = memory.images
        self._work = memory.path / "work"
        self._socket = memory.path / "guest.sock"
        self._work.mkdir(mode=0o700)

    async def go(self, technique: Technique) -> None:
        """Take it there, and see that it is the same.

        Raises:
            EngineError: If that fails.
            OSError: If it does not answer before.
        """
        process = await self._board()
        try:
            told = await asyncio.to_thread(landing.ask, _PORT)
            changed: list[str] = []
            if technique.copies_before:
                changed = ["--track-mem"]
                await self._dump("pre-dump", _BEFORE, process, *changed)
                told = await asyncio.to_thread(landing.ask, _PORT)  # which changes its memory
                changed += ["--prev-images-dir", f"../{_BEFORE}"]
            if technique.copies_after:
                answers = await self._move_lazily(process, changed)
            else:
                await self._dump("dump", _FINAL, process, *changed)
                answers = await self._land()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        compare(told, answers)

    async def _board(self) -> asyncio.subprocess.Process:
        """Start the process, with nothing open that it does not need, and wait for it."""
        ours, theirs = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(*_PYTHON, guest.__file__, str(self._socket), str(_PORT), str(theirs)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs],
                cwd="/",
                env={},
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        await _said(ours, "the throw-away process")
        return process

    async def _dump(
        self, action: str, images: str, process: asyncio.subprocess.Process, *options: str
    ) -> None:
        try:
            await run(*self._dump_arguments(action, images, process, *options), limit=_LIMIT)
        except EngineError as exc:
            raise criu.explain(exc, self._work / f"{action}.log") from None

    def _dump_arguments(
        self, action: str, images: str, process: asyncio.subprocess.Process, *options: str
    ) -> list[str]:
        (self._images / images).mkdir(mode=0o700)
        return [
            *("criu", action, f"--tree={process.pid}", "--manage-cgroups=ignore"),
            *("--images-dir", str(self._images / images), "--work-dir", str(self._work)),
            *("--log-file", f"{action}.log", "-v4", *options),
        ]

    async def _move_lazily(
        self, process: asyncio.subprocess.Process, changed: list[str]
    ) -> list[str]:
        tls = self._tls()
        options = [word for option in criu.tls_options(tls) for word in f"--{option}".split(" ")]
        ours, theirs = os.pipe()
        try:
            server = await start(
                *self._dump_arguments("dump", _FINAL, process, *changed, "--lazy-pages"),
                *("--address", landing.LOOPBACK, "--port", str(_PAGE_PORT), *options),
                *("--status-fd", str(theirs)),
                pass_fds=[theirs],
            )
        finally:
            os.close(theirs)
        try:
            await _said(ours, "CRIU's page server")
            client = await criu.PageClient.begin(
                self._images / _FINAL, self._work, tls, landing.LOOPBACK, _PAGE_PORT
            )
            try:
                answers = await self._land("--lazy-pages")
                await client.wait()
            finally:
                client.kill()
            await server.wait()
        except EngineError as exc:
            raise criu.explain(exc, self._work / "dump.log") from None
        finally:
            server.kill()
        return answers

    async def _land(self, *options: str) -> list[str]:
        """Restore the process, and return what it answers."""
        self._socket.unlink()
        restore = [
            *("criu", "restore", "--restore-detached", "--manage-cgroups=ignore"),
            *("--images-dir", str(self._images / _FINAL), "--work-dir", str(self._work)),
            *("--log-file", "restore.log", "-v4", *options),
        ]
        place = [*_NAMESPACES, *_PYTHON, landing.__file__, str(self._socket), f"--port={_PORT}"]
        try:
            said = await run(*place, *restore, limit=2 * _LIMIT)
        except EngineError as exc:
            raise criu.explain(exc, self._work / "restore.log") from None
        return said.splitlines()

    def _tls(self) -> PageTls:
        """Make what both ends prove themselves with."""
        tls = PageTls(self._work / "certificate.pem", self._work / "key.pem")
        for path, pem in zip(
            (tls.certificate, tls.key), host_certificate("quicferry"), strict=True
        ):
            path.touch(mode=0o600)
            path.write_bytes(pem)
        return tls


async def _said(pipe: int, who: str) -> None:
    """Wait until somebody has written to a pipe, and close it."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(pipe, readable.set)
    try:
        async with asyncio.timeout(_LIMIT):
            await readable.wait()
        if not os.read(pipe, 1):
            raise EngineError(f"{who} has ended before it was ready")
    except TimeoutError:
        raise EngineError(f"{who} was not ready within {_LIMIT:g} s") from None
    finally:
        loop.remove_reader(pipe)
        os.close(pipe)


def compare(told: str, answers: list[str]) -> None:
    """See that a process goes on where it was.

    Args:
        told: What it has answered last, before.
        answers: What it answers after.

    Raises:
        EngineError: If that is something else.
    """
    asked, memory = told.split()
    expected = [f"{int(asked) + again} {memory}" for again in (1, 2)]
    if answers != expected:
        raise EngineError("the process that was restored has other memory than before")


if __name__ == "__main__":
    landing.raise_loopback()
    _LAST_PID.write_text(str(_FIRST_PID))
    asyncio.run(_main(Path(sys.argv[1]), [Technique(name) for name in sys.argv[2:]]))
