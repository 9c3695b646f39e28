"""Runs the programs of a container engine: bounded, silent, and with errors that say why."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from quicferry.relocation.errors import EngineError

_LINES_TOLD = 3
_LONGEST_TOLD = 600
_UMASK = 0o077
"""What an engine writes holds keys."""


@dataclass
class Program:
    """A program that runs in a session of its own; made by `start`.

    What it writes goes to memory, not to a pipe: what an engine leaves running may hold it open.

    Attributes:
        process: Its process.
    """

    process: asyncio.subprocess.Process
    _named: str
    _out: BinaryIO = field(repr=False)
    _err: BinaryIO = field(repr=False)

    async def wait(self) -> str:
        """Wait for its end, and return what it has written to its standard output.

        Raises:
            EngineError: If it fails. The text has the end of what it has written to its standard
                error.
        """
        status = await self.process.wait()
        out, err = _content(self._out), _content(self._err)
        if status:
            raise EngineError(f"{self._named} failed: {_told(err) or f'exit status {status}'}")
        return out

    def kill(self) -> None:
        """Kill it if it has not ended, with all that it has started in its session."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


async def run(
    *arguments: str,
    limit: float,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> str:
    """Run a program to its end, and return what it has written to its standard output.

    Args:
        *arguments: The program and its arguments.
        limit: Seconds that it may take; then it is killed, with all that it has started.
        env: Its environment; None for this process's.
        pass_fds: File descriptors that it inherits.

    Raises:
        EngineError: If it cannot be run, fails, or takes too long. The text has the end of what it
            has written to its standard error.
    """
    program = await start(*arguments, env=env, pass_fds=pass_fds)
    try:
        async with asyncio.timeout(limit):
            return await program.wait()
    except TimeoutError:
        raise EngineError(f"{_name(arguments)} was not done within {limit:g} s") from None
    finally:
        program.kill()


async def start(
    *arguments: str,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
) -> Program:
    """Start a program.

    Raises:
        EngineError: If it cannot be run.
    """
    with _memory("stdout") as out, _memory("stderr") as err:
        try:
            process = await asyncio.create_subprocess_exec(
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env=env,
                pass_fds=pass_fds,
                start_new_session=True,
                umask=_UMASK,
            )
        except FileNotFoundError:
            raise EngineError(
                f"there is no program {arguments[0]}; install it (`quicferry doctor` says how)"
            ) from None
        except OSError as exc:
            raise EngineError(f"{arguments[0]} cannot be run: {exc.strerror or exc}") from None
        return Program(process, _name(arguments), _copy(out), _copy(err))


@contextlib.contextmanager
def _memory(name: str) -> Iterator[BinaryIO]:
    with os.fdopen(os.memfd_create(name), "r+b", buffering=0) as file:
        yield file


def _copy(file: BinaryIO) -> BinaryIO:
    return os.fdopen(os.dup(file.fileno()), "rb", buffering=0)


def _content(file: BinaryIO) -> str:
    with file:
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")


def _told(err: str) -> str:
    """Return what a program that has failed had to say, in a line."""
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    return " | ".join(lines[-_LINES_TOLD:])[-_LONGEST_TOLD:]


def _name(arguments: Sequence[str]) -> str:
    """Return the program and what it was to do, without options and their values."""
    return " ".join(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
