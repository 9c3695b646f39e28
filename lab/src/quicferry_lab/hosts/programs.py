"""Runs a program to its end: bounded, and without a pipe that its descendants could hold open."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quicferry_lab.hosts.errors import LabError

_LONGEST_TOLD = 1500


@dataclass(frozen=True)
class Done:
    """How a program ended.

    Attributes:
        command: What was run.
        returncode: Its exit status; negative is the number of the signal that has killed it.
        stdout: What it has written to its standard output.
        stderr: What it has written to its standard error.
    """

    command: Sequence[str]
    returncode: int
    stdout: str
    stderr: str

    def check(self, where: str = "") -> Done:
        """Return this if the program has succeeded.

        Args:
            where: Where it was run, for the error.

        Raises:
            LabError: If it has not. The text has the end of what it wrote to its standard error.
        """
        if self.returncode == 0:
            return self
        told = (self.stderr.strip() or self.stdout.strip() or "it wrote nothing")[-_LONGEST_TOLD:]
        raise LabError(
            f"{shlex.join(self.command)}{where} failed with status {self.returncode}: {told}"
        )


def kill(process: Process) -> None:
    """Kill a process with all that it has started in its session, of which it is the leader.

    `Process.kill` asks first whether it has ended, and then asyncio finds no child to wait for.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


async def run(
    launcher: Sequence[str],
    command: Sequence[str],
    *,
    limit: float,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> Done:
    """Run a program to its end.

    What it writes goes to memory: a pipe could be held open by what the program leaves running.

    Args:
        launcher: What starts the program; not told in errors.
        command: The program and its arguments.
        limit: Seconds that it may take; then it is killed, with its session.
        env: Its environment; None for this process's.
        stdin: Its standard input.

    Raises:
        LabError: If it cannot be run or takes too long.
    """
    with contextlib.ExitStack() as stack:
        files = [
            stack.enter_context(os.fdopen(os.memfd_create(name), "w+b", buffering=0))
            for name in ("stdin", "stdout", "stderr")
        ]
        files[0].write(stdin)
        files[0].seek(0)
        try:
            process = await asyncio.create_subprocess_exec(
                *launcher,
                *command,
                stdin=files[0],
                stdout=files[1],
                stderr=files[2],
                env=env,
                start_new_session=True,
            )
        except OSError as exc:
            raise LabError(f"{(*launcher, *command)[0]} cannot be run: {exc.strerror}") from None
        try:
            async with asyncio.timeout(limit):
                await process.wait()
        except TimeoutError:
            raise LabError(f"{shlex.join(command)} was not done within {limit:g} s") from None
        finally:
            kill(process)
            await process.wait()
        assert process.returncode is not None
        out, err = (
            os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode(errors="replace")
            for file in files[1:]
        )
        return Done(tuple(command), process.returncode, out, err)
