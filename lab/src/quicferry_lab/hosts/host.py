"""A host of the laboratory: a machine made of namespaces.

It has its own processes, mounts, network, name, System V IPC, control groups and, if asked for, its
own clock. Its root is the laboratory's system under a layer of its own in memory, so nothing that
happens in it reaches the machine's disk, and it ends with the laboratory. It is no protection
against programs that want out: they are root, and see the machine's devices.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import IO, Any

from quicferry_lab.hosts import programs
from quicferry_lab.hosts.errors import LabError
from quicferry_lab.hosts.programs import Done
from quicferry_lab.hosts.rootfs import SOURCE, directory, packages
from quicferry_lab.patience import patient

_SCRIPTS = Path(__file__).parent
_PYTHON = (sys.executable, "-I", "-S")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BYTECODE = "opt/quicferry/bytecode"
_AREA = Path("/run/quicferry-lab")
"""An empty directory: where each host mounts its layers, unseen by the others."""
_READY_LIMIT = patient(20.0)
_END_LIMIT = patient(10.0)

Stream = int | IO[bytes] | None
"""What a program's standard stream is, as for `asyncio.create_subprocess_exec`."""


@dataclass(frozen=True)
class HostSettings:
    """What a host is made of.

    Attributes:
        name: Its host name.
        address: The one address that it has on all of its links.
        root: The root file system under its own layer.
        cgroup: The control group that it lives in, as seen from outside; None for no own one.
        clock_offset: Seconds by which its monotonic and boot-time clocks are ahead of the
            machine's; None for the machine's clocks. Whole seconds, as the kernel's interface is.
        run_size: How large /run may become, in bytes.
        folders: Directories of the machine that it sees, read-only, by where it sees them.
    """

    name: str
    address: IPv4Address
    root: Path
    cgroup: Path | None = None
    clock_offset: int | None = None
    run_size: int = 1 << 30
    folders: Mapping[str, Path] = field(default_factory=dict)


class Host:
    """A host that runs; made by `Lab.add_host`.

    Attributes:
        name: Its host name.
        address: The one address that it has on all of its links.
        pid: Its first process, as seen from outside.
        root: Its root directory, as seen from outside: to read and write files in it.
    """

    def __init__(
        self, settings: HostSettings, pid: int, process: asyncio.subprocess.Process
    ) -> None:
        self.name = settings.name
        self.address = settings.address
        self.pid = pid
        self.root = Path("/proc", str(pid), "root")
        self._process = process
        self._started: list[asyncio.subprocess.Process] = []
        self._launcher = (
            *_PYTHON,
            str(_SCRIPTS / "enter.py"),
            json.dumps(
                {
                    "pid": pid,
                    "cgroup": settings.cgroup and str(settings.cgroup),
                    "namespaces": _namespaces(settings),
                }
            ),
        )

    @classmethod
    async def create(cls, settings: HostSettings) -> Host:
        """Make a host.

        Raises:
            LabError: If that fails; the text says what did.
        """
        process = await asyncio.create_subprocess_exec(
            *_unshare(settings),
            *_PYTHON,
            str(_SCRIPTS / "init.py"),
            json.dumps(_orders(settings)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with asyncio.timeout(_READY_LIMIT):
                line = await process.stdout.readline()
                if not line:
                    told = (await process.stderr.read()).decode(errors="replace").strip()
                    raise LabError(
                        f"the host {settings.name} cannot be made (root is needed): {told}"
                    )
        except BaseException as exc:
            await _end(process)
            if isinstance(exc, TimeoutError):
                raise LabError(f"the host {settings.name} was not there in time") from None
            raise
        return cls(settings, int(line), process)

    async def start(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        stdin: Stream = asyncio.subprocess.DEVNULL,
        stdout: Stream = asyncio.subprocess.DEVNULL,
        stderr: Stream = None,
        longest_line: int = 1 << 16,
    ) -> asyncio.subprocess.Process:
        """Start a program in the host.

        Args:
            command: The program and its arguments. `quicferry` is the one that runs here.
            env: Is added to its environment, which has nothing else of this process's.
            stdin: Its standard input.
            stdout: Its standard output.
            stderr: Its standard error; None for this process's.
            longest_line: That can be read of its output, in bytes.

        Returns:
            A process that stands for the program: it passes SIGTERM, SIGINT, SIGHUP, SIGQUIT,
            SIGUSR1 and SIGUSR2 on, ends as the program does, and SIGKILL ends both. It has a
            session of its own.
        """
        process = await asyncio.create_subprocess_exec(
            *self._launcher,
            *command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=self._environment(env),
            start_new_session=True,
            limit=longest_line,
        )
        self._started.append(process)
        return process

    async def run(
        self,
        command: Sequence[str],
        *,
        limit: float = 60.0,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> Done:
        """Run a program in the host to its end.

        Args:
            command: The program and its arguments.
            limit: Seconds that it may take; then it is killed.
            env: Is added to its environment.
            stdin: What it reads from its standard input.

        Raises:
            LabError: If it fails, or takes too long. The text has what it wrote to its standard
                error.
        """
        done = await self.attempt(command, limit=limit, env=env, stdin=stdin)
        return done.check(f" on {self.name}")

    async def attempt(
        self,
        command: Sequence[str],
        *,
        limit: float = 60.0,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
    ) -> Done:
        """Run a program in the host to its end, whatever its exit status is.

        The arguments are those of `run`.

        Raises:
            LabError: If it takes too long.
        """
        return await programs.run(
            self._launcher, command, limit=limit, env=self._environment(env), stdin=stdin
        )

    async def close(self) -> None:
        """End everything in the host, and the host; `Lab.crash` is what shows it to the others."""
        await _end(self._process)
        for process in self._started:
            programs.kill(process)  # its program is gone, and it is about to end by itself
            await process.wait()

    def entered(self, command: Sequence[str]) -> str:
        """Return the command line that runs a program in the host, for people."""
        return shlex.join((*self._launcher, *command))

    @staticmethod
    def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
        return {
            "PATH": _PATH,
            "HOME": "/root",
            "LANG": "C.UTF-8",
            # The code lies in a read-only place; compiling it takes longer than what most do.
            "PYTHONPYCACHEPREFIX": f"/{_BYTECODE}",
            **(extra or {}),
        }


def _orders(settings: HostSettings) -> dict[str, Any]:
    """Return what the host's first process is told, and make the directories that it needs."""
    _AREA.mkdir(mode=0o700, exist_ok=True)
    bytecode = directory() / "bytecode"
    bytecode.mkdir(parents=True, exist_ok=True)
    return {
        "name": settings.name,
        "area": str(_AREA),
        "root": str(settings.root),
        "run_size": settings.run_size,
        "has_cgroup": settings.cgroup is not None,
        "binds": [
            *((str(package), f"{SOURCE}/{package.name}", "ro") for package in packages()),
            (str(bytecode), _BYTECODE, "rw"),
            *((str(path), inside, "ro") for inside, path in settings.folders.items()),
        ],
        "path": _PATH,
    }


def _unshare(settings: HostSettings) -> list[str]:
    command = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--net", "--fork", "--kill-child"]
    if settings.clock_offset is not None:
        offset = str(settings.clock_offset)
        command += ["--time", "--monotonic", offset, "--boottime", offset]
    if settings.cgroup is not None:
        # The namespace shows the group that a process is in when it makes the namespace.
        join = 'echo 0 > "$0/cgroup.procs" && exec "$@"'
        command = ["sh", "-c", join, str(settings.cgroup), *command, "--cgroup"]
    return command


def _namespaces(settings: HostSettings) -> list[str]:
    """Return the namespaces to enter, in this order."""
    cgroup = [] if settings.cgroup is None else ["cgroup"]
    time = [] if settings.clock_offset is None else ["time"]
    return [*cgroup, *time, "uts", "ipc", "net", "pid", "mnt"]


async def _end(process: asyncio.subprocess.Process) -> None:
    """End a host's first process by the end of its input, or else by force."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(_END_LIMIT):
            await process.wait()
    except TimeoutError:
        programs.kill(process)
        await process.wait()
