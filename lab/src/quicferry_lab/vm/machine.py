"""A virtual machine that runs programs for the laboratory."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import IO, Self

from quicferry_lab.hosts import Done, LabError
from quicferry_lab.vm import agent
from quicferry_lab.vm.disk import write_disk
from quicferry_lab.vm.image import EMULATOR, PLACE, Image, find

MEMORY = 4096
"""Megabytes; they are taken from this machine when they are used."""

_PROCESSORS = 1
"""With two, the kernel now and then panics when it changes its code (static keys) in emulation."""
_CLOCK = "shift=0"
"""An instruction takes a nanosecond; what is idle waits in this machine's time."""
_BOOT_LIMIT = 180.0
"""Seconds; it takes ten, and more on a busy machine."""
_GRACE = 20.0
"""Seconds that the virtual machine may be late with saying that a program was late."""
_END_LIMIT = 10.0
_TOLD = 1500

Output = Callable[[bytes], object]
"""Is given what a program writes, as it is written."""


class VirtualMachine:
    """A virtual machine that runs; an asynchronous context manager.

    It has no network, its root file system is for reading only, and what is written elsewhere is in
    its memory. It ends with the context, and also if this process is killed.

    Args:
        folders: Directories of this machine; each appears under /mnt there, by its name, for
            reading only, as it is when the virtual machine starts.
        image: What it boots; None for the one that was made.
        counts: Whether its clock counts what its processor does, so that times in it do not depend
            on what else this machine does. It is slower then.

    Attributes:
        environment: What is added to the environment of every program.

    Raises:
        LabError: If none was made.
    """

    def __init__(
        self,
        folders: Mapping[str, Path] | None = None,
        *,
        image: Image | None = None,
        counts: bool = False,
    ) -> None:
        self._folders = dict(folders or {})
        self._counts = counts
        self._image = image or find()
        self.environment: dict[str, str] = {}
        self._stack = ExitStack()
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        try:
            await self._boot()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def pid(self) -> int:
        """The process that emulates it."""
        assert self._process is not None
        return self._process.pid

    async def run(
        self,
        command: Sequence[str],
        *,
        limit: float = 60.0,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> Done:
        """Run a program in it to its end.

        Args:
            command: The program and its arguments.
            limit: Seconds that it may take; then it is killed, with its session.
            env: Is added to its environment.
            stdin: What it reads from its standard input.

        Raises:
            LabError: If it fails, or takes too long. The text has what it wrote to its standard
                error.
        """
        done = await self.attempt(command, limit=limit, env=env, stdin=stdin)
        return done.check(" in the virtual machine")

    async def attempt(
        self,
        command: Sequence[str],
        *,
        limit: float = 60.0,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> Done:
        """Run a program in it to its end, whatever its exit status is.

        The arguments are those of `run`.

        Raises:
            LabError: If it takes too long.
        """
        out, err = bytearray(), bytearray()
        status = await self.follow(
            command, out.extend, err.extend, limit=limit, env=env, stdin=stdin
        )
        texts = (bytes(each).decode(errors="replace") for each in (out, err))
        return Done(tuple(command), status, *texts)

    async def follow(
        self,
        command: Sequence[str],
        out: Output,
        err: Output,
        *,
        limit: float = 60.0,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        directory: str = "/",
    ) -> int:
        """Run a program in it to its end, and pass on what it writes.

        Programs are run one after another. What one leaves running stays.

        Args:
            command: The program and its arguments.
            out: Is given its standard output.
            err: Is given its standard error.
            limit: Seconds that it may take; then it is killed, with its session.
            env: Is added to its environment.
            stdin: What it reads from its standard input.
            directory: Where it is started.

        Returns:
            Its exit status; negative is the number of the signal that has killed it.

        Raises:
            LabError: If it takes too long, or the virtual machine has ended.
        """
        order = {
            "command": list(command),
            "environment": {**self.environment, **(env or {})},
            "directory": directory,
            "limit": limit,
        }
        outputs = {agent.OUTPUT: out, agent.ERROR: err}
        async with self._turn:
            if self._process is None:
                raise LabError("the virtual machine does not run; use it in `async with`")
            await self._send(agent.ORDER, json.dumps(order).encode())
            await self._send(agent.INPUT, stdin)
            try:
                async with asyncio.timeout(limit + _GRACE):
                    while True:
                        kind, data = await self._receive()
                        if kind == agent.EXIT:
                            return int(data)
                        if kind == agent.LATE:
                            break
                        outputs[kind](data)
            except BaseException as exc:
                await self.close()  # what comes next would be the end of this program's output
                if not isinstance(exc, TimeoutError):
                    raise
        raise LabError(f"{shlex.join(command)} was not done within {limit:g} s")

    async def read(self, path: str) -> bytes:
        """Return the content of a file in it.

        Raises:
            LabError: If it cannot be read.
        """
        content, told = bytearray(), bytearray()
        if await self.follow(["cat", "--", path], content.extend, told.extend):
            raise LabError(told.decode(errors="replace").strip())
        return bytes(content)

    async def write(self, path: str, content: bytes) -> None:
        """Write a file in it.

        Raises:
            LabError: If it cannot be written.
        """
        await self.run(["dd", "status=none", f"of={path}"], stdin=content)

    async def close(self) -> None:
        """End it at once."""
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._process = None
        self._stack.close()

    async def _boot(self) -> None:
        image = self._image
        ours, theirs = (self._stack.enter_context(each) for each in socket.socketpair())
        self._console = os.memfd_create("console")
        self._stack.callback(os.close, self._console)
        with ExitStack() as opened:
            files: list[IO[bytes]] = [opened.enter_context(image.disk.open("rb"))]
            for folder in self._folders.values():
                # It has no name, and so leaves nothing behind.
                file = opened.enter_context(TemporaryFile(dir=image.folder.parent))
                await asyncio.to_thread(write_disk, folder, file.fileno())
                files.append(file)
            disks = [file.fileno() for file in files]
            self._process = await asyncio.create_subprocess_exec(
                *("setpriv", "--pdeathsig", "KILL", EMULATOR),
                *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
                # KVM may be there and fail (nested, it does); emulation works everywhere.
                *("-accel", "tcg"),
                *(("-icount", _CLOCK) if self._counts else ()),
                *("-cpu", "max", "-smp", str(_PROCESSORS), "-m", str(MEMORY)),
                *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
                *("-append", image.arguments, "-serial", "stdio"),
                *(word for disk in disks for word in ("-drive", _drive(disk))),
                *("-chardev", f"socket,id=agent,fd={theirs.fileno()}"),
                *("-device", "virtio-serial", "-device", "virtserialport,chardev=agent"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=self._console,
                stderr=self._console,
                pass_fds=[theirs.fileno(), *disks],
                start_new_session=True,
            )
        theirs.close()
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        self._stack.callback(self._writer.close)
        try:
            async with asyncio.timeout(_BOOT_LIMIT):
                await self._receive()
        except TimeoutError:
            raise self._error(f"is not ready within {_BOOT_LIMIT:g} s") from None
        for number, name in enumerate(self._folders, 1):
            target = f"{PLACE}/{name}"
            await self.run(["mkdir", "-p", target])
            await self.run(["mount", "-o", "ro", f"/dev/vd{chr(ord('a') + number)}", target])

    async def _send(self, kind: bytes, data: bytes) -> None:
        self._writer.write(agent.HEADER.pack(kind, len(data)) + data)
        try:
            await self._writer.drain()
        except ConnectionError:
            raise self._error("has ended") from None

    async def _receive(self) -> tuple[bytes, bytes]:
        try:
            kind, length = agent.HEADER.unpack(await self._reader.readexactly(agent.HEADER.size))
            return kind, await self._reader.readexactly(length)
        except (ConnectionError, asyncio.IncompleteReadError):
            raise self._error("has ended") from None

    def _error(self, what: str) -> LabError:
        length = os.fstat(self._console).st_size
        said = os.pread(self._console, _TOLD, max(0, length - _TOLD)).decode(errors="replace")
        return LabError(f"the virtual machine {what}; it said: {said.strip() or 'nothing'}")


def _drive(descriptor: int) -> str:
    """Return the option for a disk that is read only."""
    return f"file=/proc/self/fd/{descriptor},format=raw,if=virtio,readonly=on"
