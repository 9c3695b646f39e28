"""Containers of runc (github.com/opencontainers/runc), moved with CRIU.

A container is frozen (cgroup freezer) before it is dumped, and CRIU leaves it so: the source is
stopped, but still there, until `resume` or `remove`. That is what ``--leave-running`` amounts to
for a container that was paused before.

runc's command line is used for everything, except for CRIU's client for memory that is fetched
after the restore, which runc leaves to its user.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from quicferry.relocation.errors import EngineError
from quicferry.relocation.steps.destinations import ports_in

from . import criu
from .criu_images import Rights, check_rights
from .engine import (
    IMAGE_ANNOTATION,
    SOCKET_DIRECTORY,
    SOCKET_NAME,
    Container,
    DestinationContainer,
    Engine,
    LazyDump,
    LazyRestore,
    PageTls,
    SourceContainer,
    Technique,
    check_container_name,
)
from .processes import memory_of
from .program import Program, run, start

_QUICK = 30.0
_LIMIT = 120.0
"""Seconds for a dump or a restore."""

_LOOK_AGAIN = 0.02

_BEFORE = "before"
"""The directory with the memory that was written while the container ran."""
_FINAL = "final"
_WORK = "work"


class Bundle:
    """What a container is made of: a directory with ``config.json`` (OCI runtime specification).

    Args:
        path: The directory.

    Raises:
        EngineError: If there is none, or no quicferry server can be in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._config: dict[str, Any] = json.loads((path / "config.json").read_bytes())
        except (OSError, ValueError) as exc:
            raise EngineError(
                f"{path} is no bundle: {getattr(exc, 'strerror', None) or exc}; make one with "
                "`quicferry image`"
            ) from None
        self.annotations: dict[str, str] = self._config.get("annotations") or {}
        for mount in self._config.get("mounts") or ():
            if mount.get("destination") == SOCKET_DIRECTORY:
                self.directory = Path(mount["source"])
                return
        raise EngineError(
            f"the container of {path} mounts nothing at {SOCKET_DIRECTORY}, so its server cannot "
            "be managed from here; make its bundle with `quicferry image`"
        )

    @property
    def command(self) -> list[str]:
        """The command line of its first process."""
        return list((self._config.get("process") or {}).get("args") or ())

    @property
    def rights(self) -> Rights:
        """What its processes may do."""
        process = self._config.get("process") or {}
        user = process.get("user") or {}
        capabilities = process.get("capabilities") or {}
        return Rights(
            user.get("uid", 0),
            (user.get("gid", 0), *(user.get("additionalGids") or ())),
            frozenset(name for each in capabilities.values() for name in each),
            is_filtered=bool((self._config.get("linux") or {}).get("seccomp")),
        )

    @property
    def image(self) -> str:
        """What it says that it was made of."""
        return self.annotations.get(IMAGE_ANNOTATION, "")

    @property
    def socket(self) -> Path:
        """The management socket of the server in it."""
        return self.directory / SOCKET_NAME

    def prepare_directory(self) -> None:
        """Make the directory for the management socket, and remove that of a former server."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        user = (self._config.get("process") or {}).get("user") or {}
        os.chown(self.directory, user.get("uid", 0), user.get("gid", 0))
        self.socket.unlink(missing_ok=True)

    def configure_criu(self, tls: PageTls | None = None, host: str = "") -> None:
        """Write CRIU's configuration for the container; see `criu.configure`.

        Raises:
            EngineError: If it has none, and needs one.
        """
        path = self.annotations.get(criu.CONFIGURATION_ANNOTATION)
        if path is not None:
            criu.configure(Path(path), tls, host)
        elif tls is not None:
            raise EngineError(
                f"{self.path / 'config.json'} has no annotation {criu.CONFIGURATION_ANNOTATION}, "
                "so pages cannot be fetched securely; make the bundle with `quicferry image`, or "
                "use another technique"
            )


class Runc(Engine):
    """runc on this host.

    Args:
        bundle: What a container that is moved here is made of; None where none will be.

    Raises:
        EngineError: If that is no bundle, or no quicferry server can be in it.
    """

    name = "runc"
    techniques = frozenset(Technique)

    def __init__(self, bundle: Path | None = None) -> None:
        if bundle is not None:
            Bundle(bundle)
        self._bundle = bundle

    async def version(self) -> str:
        """Return the versions of runc and CRIU."""
        runc = await run("runc", "--version", limit=_QUICK)
        program = await run("criu", "--version", limit=_QUICK)
        number = program.partition("Version:")[2].split()
        return f"{runc.splitlines()[0]}, CRIU {number[0] if number else '?'}"

    async def ports(self) -> frozenset[int]:
        """Return the ports that the bundle's server is told."""
        return frozenset() if self._bundle is None else ports_in(Bundle(self._bundle).command)

    async def source(self, name: str) -> SourceContainer:
        """Return the running container called `name`."""
        state = await _known(name)
        if state["status"] == "paused":
            raise EngineError(
                f"the container {name} is paused; if a relocation was interrupted and came to "
                f"nothing, let it go on with `runc resume {name}`"
            )
        if state["status"] != "running":
            raise EngineError(f"the container {name} is {state['status']}; start it first")
        return _Source(name, Bundle(Path(state["bundle"])), int(state["pid"]))

    async def interrupted(self, name: str) -> SourceContainer:
        """Return the container called `name`, which a relocation may have left stopped."""
        state = await _known(name)
        return _Source(name, Bundle(Path(state["bundle"])), int(state["pid"]))

    async def destination(self, name: str) -> DestinationContainer:
        """Return the container that may be made here under the name `name`."""
        if self._bundle is None:
            raise EngineError("name what containers are made of here: --bundle DIR")
        bundle = Bundle(self._bundle)
        if await _state(name) is not None:
            raise EngineError(
                f"there is a container {name} already; end it with `runc delete -f {name}`, or use "
                "another host"
            )
        return _Destination(name, bundle)

    async def discard(self, name: str) -> None:
        """End a container, whatever has become of it."""
        await _remove(name)

    def grows(self, name: str) -> bool:
        """Whether an image of this name is only ever appended to: those that hold memory are."""
        return fnmatch(name, f"*/{_PAGES}")


_PAGES = "pages-*.img"


class _Container(Container):
    def __init__(self, name: str, bundle: Bundle) -> None:
        self.name = name
        self.image = bundle.image
        self.socket = bundle.socket
        self._bundle = bundle

    async def remove(self) -> None:
        """End the container at once, and forget it."""
        await _remove(self.name)


class _Source(_Container, SourceContainer):
    def __init__(self, name: str, bundle: Bundle, pid: int) -> None:
        super().__init__(name, bundle)
        self._pid = pid

    async def memory(self) -> int:
        """Return how much memory its processes use, in bytes."""
        return memory_of(self._pid)

    async def pre_dump(self, images: Path) -> None:
        """Write its memory while it runs."""
        self._bundle.configure_criu()
        await self._checkpoint(images, _BEFORE, "--pre-dump")

    async def dump(self, images: Path) -> None:
        """Pause it and write everything, or what has changed since `pre_dump`."""
        self._bundle.configure_criu()
        await run("runc", "pause", "--", self.name, limit=_QUICK)
        await self._checkpoint(images, _FINAL, "--leave-running", *_parent(images))

    async def dump_lazily(self, images: Path, tls: PageTls, host: str) -> LazyDump:
        """Pause it and write everything but its memory."""
        self._bundle.configure_criu(tls, host)
        await run("runc", "pause", "--", self.name, limit=_QUICK)
        port = _free_port(host)
        with _status_pipe(images.parent / _WORK) as (ours, theirs):
            program = await start(
                *self._arguments(images, _FINAL, "--leave-running", *_parent(images)),
                *("--lazy-pages", "--page-server", f"{host}:{port}"),
                *("--status-fd", str(theirs), "--", self.name),
                pass_fds=[theirs],
            )
            dump = _Lazy(program, images.parent / _WORK / "dump.log", host, port)
            os.close(theirs)
            await dump.ready(ours)
        return dump

    async def resume(self) -> None:
        """Let it run on, once nobody writes it any more."""
        await _until_written(self.name)
        state = await _state(self.name)
        if state is None:
            raise EngineError(f"the container {self.name} has been ended by somebody else")
        if state["status"] == "paused":
            await run("runc", "resume", "--", self.name, limit=_QUICK)

    async def _checkpoint(self, images: Path, directory: str, *options: str) -> None:
        try:
            await run(*self._arguments(images, directory, *options), "--", self.name, limit=_LIMIT)
        except EngineError as exc:
            raise criu.explain(exc, images.parent / _WORK / "dump.log") from None

    def _arguments(self, images: Path, directory: str, *options: str) -> list[str]:
        target, work = images / directory, images.parent / _WORK
        for each in (target, work):
            each.mkdir(mode=0o700, exist_ok=True)
        paths = ["--image-path", str(target), "--work-path", str(work)]
        return ["runc", "checkpoint", *paths, *options]


class _Lazy(LazyDump):
    def __init__(self, program: Program, log: Path, host: str, port: int) -> None:
        self.port = port
        self._host = host
        self._program = program
        self._log = log

    async def ready(self, pipe: int) -> None:
        """Wait until the memory can be fetched; CRIU says so with a byte."""
        loop = asyncio.get_running_loop()
        said = asyncio.Event()
        loop.add_reader(pipe, said.set)
        try:
            async with asyncio.timeout(_LIMIT):
                await said.wait()
                if not os.read(pipe, 1):
                    await self.wait()
                    raise EngineError("CRIU ends without having served the memory")
        except TimeoutError:
            raise EngineError(f"CRIU has not written the container in {_LIMIT:g} s") from None
        finally:
            loop.remove_reader(pipe)

    async def wait(self) -> None:
        """Wait until everything was fetched, or the client has gone."""
        try:
            await self._program.wait()
        except EngineError as exc:
            raise criu.explain(exc, self._log) from None

    async def abandon(self) -> None:
        """Let nobody fetch it any more.

        CRIU ends when its only client goes away. It must not be killed: it holds the container.
        """
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(self._host, self.port)
            writer.close()
        with contextlib.suppress(EngineError):
            await self.wait()


class _Destination(_Container, DestinationContainer):
    async def restore(self, images: Path) -> None:
        """Make and start it."""
        self._bundle.configure_criu()
        await self._restore(images)

    async def restore_lazily(self, images: Path, tls: PageTls, host: str, port: int) -> LazyRestore:
        """Make and start it; its memory is fetched."""
        self._bundle.configure_criu()
        work = images.parent / _WORK
        work.mkdir(mode=0o700, exist_ok=True)
        client = await criu.PageClient.begin(images / _FINAL, work, tls, host, port)
        try:
            await self._restore(images, "--lazy-pages")
        except BaseException:
            client.kill()
            raise
        return client

    async def _restore(self, images: Path, *options: str) -> None:
        check_rights(images / _FINAL, self._bundle.rights)
        self._bundle.prepare_directory()
        work = images.parent / _WORK
        work.mkdir(mode=0o700, exist_ok=True)
        if (images / _BEFORE).is_dir():
            with contextlib.suppress(FileExistsError):
                (images / _FINAL / "parent").symlink_to(Path("..") / _BEFORE)
        paths = ["--image-path", str(images / _FINAL), "--work-path", str(work)]
        bundle = ["--bundle", str(self._bundle.path)]
        try:
            await run(
                *("runc", "restore", "--detach", *bundle, *paths, *options, "--", self.name),
                limit=_LIMIT,
            )
        except EngineError as exc:
            with contextlib.suppress(EngineError):
                await self.remove()
            raise criu.explain(exc, work / "restore.log") from None


async def _state(name: str) -> dict[str, Any] | None:
    """Return what runc knows of a container; None if nothing."""
    check_container_name(name)
    try:
        return dict(json.loads(await run("runc", "state", "--", name, limit=_QUICK)))
    except EngineError as exc:
        if "does not exist" in str(exc):
            return None
        raise


async def _known(name: str) -> dict[str, Any]:
    """Return what runc knows of a container."""
    state = await _state(name)
    if state is None:
        raise EngineError(
            f"runc has no container {name}; see `runc list`, and start it with `runc run`"
        )
    return state


async def _remove(name: str) -> None:
    if await _state(name) is not None:
        await run("runc", "delete", "--force", "--", name, limit=_QUICK)


async def _until_written(name: str) -> None:
    """Wait until no dump of a container is under way, which another process may have begun."""
    for _ in range(round(_LIMIT / _LOOK_AGAIN)):
        if not _is_being_written(name):
            return
        await asyncio.sleep(_LOOK_AGAIN)
    raise EngineError(f"the container {name} has been written for more than {_LIMIT:g} s")


def _is_being_written(name: str) -> bool:
    return any(_is_checkpoint(path, name) for path in Path("/proc").glob("[0-9]*/cmdline"))


def _is_checkpoint(cmdline: Path, name: str) -> bool:
    try:
        words = cmdline.read_bytes().split(b"\0")
    except OSError:
        return False  # it has ended meanwhile
    return words[:2] == [b"runc", b"checkpoint"] and name.encode() in words


def _parent(images: Path) -> list[str]:
    """Return the options for a dump of what has changed since the memory was written."""
    return ["--parent-path", f"../{_BEFORE}"] if (images / _BEFORE).is_dir() else []


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind((host, 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def _status_pipe(directory: Path) -> Iterator[tuple[int, int]]:
    """Provide a pipe whose end for CRIU can only be written to, as it demands: a FIFO."""
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / "status"
    os.mkfifo(path, 0o600)
    try:
        ours = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        theirs = os.open(path, os.O_WRONLY)
    finally:
        path.unlink()
    try:
        yield ours, theirs
    finally:
        os.close(ours)
