"""What can be seen of this host without trying anything out on it."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from quicferry.protocol import QuicferryError
from quicferry.relocation.container.engines.program import run
from quicferry.relocation.errors import EngineError
from quicferry.server import management_directory

_LIMIT = 30.0
"""Seconds for a question, which takes some milliseconds where a processor is not emulated."""
_FEATURES = ("mem_dirty_track", "uffd", "uffd-noncoop", "timens")
_LOOPBACK = ("127.0.0.1", 9)
"""Nothing is sent to it."""


@dataclass(frozen=True)
class Program:
    """An installed program.

    Attributes:
        version: What it says of itself.
        problem: Why it cannot be used; empty if it can.
    """

    version: str
    problem: str = ""


@dataclass(frozen=True)
class Criu(Program):
    """An installed CRIU.

    Attributes:
        features: Those of the ones that are asked for that it can use on this kernel.
        tls: Whether it was built with TLS.
    """

    features: frozenset[str] = frozenset()
    tls: bool = False


@dataclass(frozen=True)
class Mount:
    """A line of ``/proc/self/mounts``.

    Attributes:
        target: Where it is.
        kind: The type of its file system.
        options: Its options.
    """

    target: Path
    kind: str
    options: frozenset[str]


@dataclass(frozen=True)
class Kernel:
    """What the kernel tells through ``/proc``.

    Attributes:
        release: Its version; empty if it does not say.
        user: The effective user ID of this process, -1 if unknown.
        capabilities: The effective capabilities of this process, a bit for each.
        pipe_soft: The sysctl fs.pipe-user-pages-soft; None if it cannot be read.
        pipe_max: The sysctl fs.pipe-max-size, bytes; None if it cannot be read.
        mounts: What is mounted, the newest last.
        swaps: Whether memory may be swapped.
        memory: How much memory there is for a file system in it, in bytes.
        tmpfs: Whether there is such a file system.
    """

    release: str
    user: int
    capabilities: int
    pipe_soft: int | None
    pipe_max: int | None
    mounts: tuple[Mount, ...]
    swaps: bool
    memory: int
    tmpfs: bool


@dataclass(frozen=True)
class Facts:
    """What can be seen of this host.

    Attributes:
        kernel: What the kernel tells.
        loopback: Whether 127.0.0.1 can be reached.
        tls: Whether Python can do TLS 1.3.
        management: Why a server's management socket cannot be made; empty if it can.
        criu: CRIU; None if it is not there.
        engines: The container engines that were looked for and are there, by name.
        podman_runtime: The runtime that Podman uses unless it is told otherwise; empty if unknown.
    """

    kernel: Kernel
    loopback: bool
    tls: bool
    management: str
    criu: Criu | None
    engines: dict[str, Program]
    podman_runtime: str = ""


_working_criu: dict[tuple[str, int], Criu] = {}
"""What is known of CRIU, by the path of the program and its time of modification."""


async def look(engines: Iterable[str], proc: Path = Path("/proc")) -> Facts:
    """Look at this host.

    Args:
        engines: The container engines of interest; without any, CRIU is of no interest either.
        proc: Where to read what the kernel tells.
    """
    names = list(engines)
    found, versions = await asyncio.gather(
        _criu() if names else _nothing(), asyncio.gather(*(_version(name) for name in names))
    )
    return Facts(
        kernel=look_at_kernel(proc),
        loopback=_loopback(),
        tls=ssl.HAS_TLSv1_3,
        management=_management(),
        criu=found,
        engines={
            name: program
            for name, program in zip(names, versions, strict=True)
            if program is not None
        },
    )


async def podman_runtime() -> str:
    """Return the runtime that Podman uses unless it is told otherwise.

    Raises:
        EngineError: If Podman cannot say so; the text has its reason.
    """
    return (await run("podman", "info", "--format={{.Host.OCIRuntime.Name}}", limit=_LIMIT)).strip()


def look_at_kernel(proc: Path = Path("/proc")) -> Kernel:
    """Read what the kernel tells.

    Args:
        proc: Where proc(5) is mounted.
    """
    status, memory = _fields(proc / "self/status"), _fields(proc / "meminfo")
    sysctls = proc / "sys"
    return Kernel(
        release=_read(sysctls / "kernel/osrelease").strip(),
        user=int(status.get("Uid", "-1 -1").split()[1]),
        capabilities=int(status.get("CapEff", "0"), 16),
        pipe_soft=_number(sysctls / "fs/pipe-user-pages-soft"),
        pipe_max=_number(sysctls / "fs/pipe-max-size"),
        mounts=tuple(_mounts(_read(proc / "self/mounts"))),
        swaps=len(_read(proc / "swaps").splitlines()) > 1,
        memory=min(_bytes(memory, "MemAvailable"), _bytes(memory, "MemTotal") // 2),
        tmpfs="tmpfs" in _read(proc / "filesystems").split(),
    )


def _mounts(text: str) -> Iterable[Mount]:
    for line in text.splitlines():
        _, target, kind, options, *_ = line.split(" ")
        decoded = target.replace(r"\040", " ").replace(r"\134", "\\")
        yield Mount(Path(decoded), kind, frozenset(options.split(",")))


async def _criu() -> Criu | None:
    """Ask CRIU; one that works is asked once, which takes some milliseconds for each question."""
    path = shutil.which("criu")
    if path is None:
        return None
    made = Path(path).stat().st_mtime_ns  # noqa: ASYNC240 (one stat: less than a thread costs)
    known = _working_criu.get((path, made))
    if known is None:
        known = await _ask_criu()
        if not known.problem:
            _working_criu[path, made] = known
    return known


async def _ask_criu() -> Criu:
    try:
        said = await run("criu", "--version", limit=_LIMIT)
    except EngineError as exc:
        return Criu("?", str(exc))
    version = said.partition("Version:")[2].split() or ["?"]
    problem, manual, *able = await asyncio.gather(
        _error("criu", "check"),
        _output("criu", "--help"),
        *(_error("criu", "check", "--feature", feature) for feature in _FEATURES),
    )
    features = [feature for feature, error in zip(_FEATURES, able, strict=True) if not error]
    return Criu(version[0], problem, frozenset(features), tls="--tls" in manual)


async def _version(engine: str) -> Program | None:
    if shutil.which(engine) is None:
        return None
    try:
        said = await run(engine, "--version", limit=_LIMIT)
    except EngineError as exc:
        return Program("?", str(exc))
    return Program(said.splitlines()[0].split()[-1] if said else "?")


async def _nothing() -> None:
    return None


async def _error(*arguments: str) -> str:
    """Run a program, and return why it fails, empty if it does not."""
    try:
        await run(*arguments, limit=_LIMIT)
    except EngineError as exc:
        return str(exc)
    return ""


async def _output(*arguments: str) -> str:
    """Run a program, and return what it says, nothing if it fails."""
    try:
        return await run(*arguments, limit=_LIMIT)
    except EngineError:
        return ""


def _loopback() -> bool:
    """Whether there is a way to this host itself; CRIU and its page server need it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(_LOOPBACK)
        except OSError:
            return False
    return True


def _management() -> str:
    try:
        management_directory()
    except (QuicferryError, OSError) as exc:
        return str(exc)
    return ""


def _fields(path: Path) -> dict[str, str]:
    lines = (line.partition(":") for line in _read(path).splitlines())
    return {name: value.strip() for name, _, value in lines}


def _bytes(fields: dict[str, str], name: str) -> int:
    """Return an amount of memory, which proc(5) has in kB."""
    return int(fields.get(name, "0 kB").split()[0]) << 10


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
