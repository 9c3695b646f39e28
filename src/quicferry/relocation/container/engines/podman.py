"""Containers of Podman (podman.io), moved with its own export and import.

A dump ends the container's processes, and keeps what is needed to go on: a checkpoint. So the
source never runs beside its copy. `resume` restores it from there, which takes as long as a restore
at the destination does.

The checkpoint leaves Podman as an archive, which is appended to while it is written, and comes to
Podman as one. Both times Podman has a copy of its own, in memory (`podman_copies`): a container
needs twice its memory at either host while it is moved.

What goes along is memory, with what the container has in its own file systems in memory, and what
has changed in its root file system. What it mounts of the host (bind mounts and volumes) does not:
that has to be the same on both hosts. Images are not moved either: both hosts need the same one, by
its ID and by the name that the container knows it by.

Podman's command line is used for everything. What it uses (runtime, control groups, storage) is a
matter of its configuration.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from quicferry.relocation.errors import EngineError
from quicferry.relocation.steps.destinations import ports_in

from . import criu
from .engine import (
    SOCKET_DIRECTORY,
    SOCKET_NAME,
    DestinationContainer,
    Engine,
    LazyDump,
    LazyRestore,
    PageTls,
    SourceContainer,
    Technique,
    check_container_name,
)
from .podman_copies import CHECKPOINT, PRE_CHECKPOINT, keep_in_memory, let_go
from .podman_facts import Archive, Image, Inspected
from .podman_rights import Given
from .processes import memory_of
from .program import run
from .runc import Runc

_QUICK = 60.0
"""Seconds for what depends on no size; Podman itself may take some on a slow machine."""
_LIMIT = 120.0
"""Seconds for a dump or a restore."""

_OLDEST = (5, 0)
_BEFORE = "before.tar"
"""The archive with the memory that was written while the container ran."""
_FINAL = "checkpoint.tar"


class Podman(Engine):
    """Podman on this host, run by root.

    Args:
        image: What a container that is moved here was made of, a name; None where none will be.
        mounts: Directories of this host that it may mount, beside that of its socket.
    """

    name = "podman"
    techniques = frozenset({Technique.COLD, Technique.PRE_COPY})
    room = 2.5

    def __init__(self, image: str | None = None, mounts: Iterable[Path] = ()) -> None:
        self._image = image
        self._mounts = tuple(mounts)

    async def version(self) -> str:
        """Return the versions of Podman, runc and CRIU."""
        podman = (await run("podman", "--version", limit=_QUICK)).strip()
        number = re.search(r"(\d+)\.(\d+)", podman)
        if number is None or tuple(map(int, number.groups())) < _OLDEST:
            raise EngineError(
                f"this is {podman}, and Podman {_OLDEST[0]}.{_OLDEST[1]} or later is needed; "
                "Debian 13 has it"
            )
        return f"{podman}, {await Runc().version()}"

    async def ports(self) -> frozenset[int]:
        """Return the ports that the image's server is told."""
        return frozenset() if self._image is None else ports_in((await self._find_image()).command)

    async def source(self, name: str) -> SourceContainer:
        """Return the running container called `name`."""
        found = await _inspect(name)
        if found is None:
            raise EngineError(
                f"Podman has no container {name}; see `podman ps --all`, and start it with "
                "`podman run`"
            )
        if found.status != "running":
            raise EngineError(f"the container {name} is {found.status}; {_remedy(name, found)}")
        if found.socket is None:
            raise EngineError(
                f"the container {name} mounts nothing at {SOCKET_DIRECTORY}, so its server cannot "
                "be managed from here; make it with `--volume "
                f"{_default_socket(name).parent}:{SOCKET_DIRECTORY}`"
            )
        if found.obstacle is not None:
            raise EngineError(f"the container {name} {found.obstacle}")
        return _Source(name, found, found.socket)

    async def interrupted(self, name: str) -> SourceContainer:
        """Return the container called `name`, which a relocation may have left stopped."""
        found = await _inspect(name)
        if found is None or found.socket is None:
            raise EngineError(f"Podman has no container {name} with a quicferry server")
        return _Source(name, found, found.socket)

    async def destination(self, name: str) -> DestinationContainer:
        """Return the container that may be made here under the name `name`."""
        image = await self._find_image()
        if await _inspect(name) is not None:
            raise EngineError(
                f"there is a container {name} already; end it with `podman rm -f {name}`, or use "
                "another host"
            )
        store = "{{.Store.GraphRoot}}/{{.Store.GraphDriverName}}-containers"
        containers = await run("podman", "info", "--format", store, limit=_QUICK)
        place = Path(containers.strip())
        given = Given(image.user, _default_socket(name).parent, self._mounts, place.parent)
        return _Destination(name, image, place, given)

    async def discard(self, name: str) -> None:
        """End a container, whatever has become of it."""
        await _remove(name)

    async def _find_image(self) -> Image:
        if self._image is None:
            raise EngineError("name what containers are made of here: --image NAME")
        try:
            return Image.parse(
                await run("podman", "image", "inspect", "--", self._image, limit=_QUICK)
            )
        except EngineError as exc:
            raise EngineError(
                f"there is no image {self._image} here ({exc}); copy it with `podman save` and "
                "`podman load`"
            ) from None

    def grows(self, name: str) -> bool:
        """Whether an image of this name is only ever appended to: archives are."""
        return name in (_BEFORE, _FINAL)


class _Source(SourceContainer):
    def __init__(self, name: str, found: Inspected, socket: Path) -> None:
        self.name = name
        self.image = found.image
        self.socket = socket
        self._found = found

    async def memory(self) -> int:
        """Return how much memory its processes use, in bytes."""
        return memory_of(self._found.pid)

    async def pre_dump(self, images: Path) -> None:
        """Write its memory while it runs."""
        directory = self._found.directory
        await keep_in_memory(directory, images.parent, (PRE_CHECKPOINT, CHECKPOINT))
        try:
            await self._checkpoint(images / _BEFORE, "--pre-checkpoint")
        finally:
            await let_go(directory)  # `dump` finds it again

    async def dump(self, images: Path) -> None:
        """Stop it and write everything, or what has changed since `pre_dump`.

        Podman's copy stays for `resume`, also if nobody is left to call it: then
        ``podman container restore`` does it.
        """
        names, options = [CHECKPOINT], []
        if (images / _BEFORE).exists():
            names.append(PRE_CHECKPOINT)
            options.append("--with-previous")
        await keep_in_memory(self._found.directory, images.parent, names)
        await self._checkpoint(images / _FINAL, *options)

    async def dump_lazily(self, images: Path, tls: PageTls, host: str) -> LazyDump:
        """Say that Podman cannot do that."""
        raise _not_lazily()

    async def resume(self) -> None:
        """Restore it from what `dump` has written, if it came to that."""
        found = await _inspect(self._found.identity)
        if found is None:
            raise EngineError(f"the container {self.name} has been removed by somebody else")
        if found.status != "running":
            self.socket.unlink(missing_ok=True)
            await _podman("restore", found.identity, log=found.directory / "restore.log")
        await let_go(found.directory)

    async def remove(self) -> None:
        """End the container at once, and forget it."""
        await _remove(self._found.identity)

    async def _checkpoint(self, archive: Path, *options: str) -> None:
        # Volumes would be copied to disk, and could not come back to a host that has them.
        export = ["--export", str(archive), "--compress", "none", "--ignore-volumes", *options]
        if not self._found.has_own_files:
            export.append("--ignore-rootfs")
        log = self._found.directory / "dump.log"
        await _podman("checkpoint", *export, self._found.identity, log=log)


class _Destination(DestinationContainer):
    def __init__(self, name: str, image: Image, containers: Path, given: Given) -> None:
        self.name = name
        self.image = image.identity
        self.socket = _default_socket(name)
        self._image = image
        self._containers = containers
        self._given = given

    async def restore(self, images: Path) -> None:
        """Make and start it."""
        archive = Archive.read(images / _FINAL)
        self._check(archive)
        archive.check(images / _FINAL, self._given)
        try:
            self.socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.chown(self.socket.parent, *archive.user)
            self.socket.unlink(missing_ok=True)  # of a server that was here before
        except OSError as exc:
            raise EngineError(f"cannot prepare {self.socket.parent}: {exc.strerror}") from None
        directory = self._containers / archive.identity / "userdata"
        names, options = [CHECKPOINT], []
        if (images / _BEFORE).exists():
            names.append(PRE_CHECKPOINT)
            options = ["--import-previous", str(images / _BEFORE)]
        await keep_in_memory(directory, images.parent, names)
        try:
            await _podman(
                *("restore", "--import", str(images / _FINAL), "--ignore-volumes", *options),
                log=directory / "restore.log",
            )
        except EngineError:
            with contextlib.suppress(EngineError):
                await self.remove()
            raise
        finally:
            await let_go(directory)
            for path in (directory, directory.parent):
                with contextlib.suppress(OSError):
                    path.rmdir()  # they are empty only if no container was made

    async def restore_lazily(self, images: Path, tls: PageTls, host: str, port: int) -> LazyRestore:
        """Say that Podman cannot do that."""
        raise _not_lazily()

    async def remove(self) -> None:
        """End the container at once, and forget it."""
        await _remove(self.name)

    def _check(self, archive: Archive) -> None:
        if archive.name != self.name:
            raise EngineError(
                f"the container is called {archive.name}, and Podman cannot restore it as "
                f"{self.name}; let the agent give it no name"
            )
        if archive.image not in self._image.names:  # Podman would look for it elsewhere
            raise EngineError(
                f"the container knows its image as {archive.image}, and here it has another name; "
                f"run `podman tag {self._image.identity} {archive.image}`"
            )
        for path in archive.sources:
            if not path.exists():
                raise EngineError(
                    f"the container mounts {path}, which is not on this host; make it the same "
                    "here as there"
                )


async def _podman(*arguments: str, log: Path) -> None:
    """Have a container written or restored.

    Args:
        *arguments: What to do, and with what.
        log: Where CRIU writes what it does.

    Raises:
        EngineError: If that fails; the text has what CRIU says.
    """
    log.unlink(missing_ok=True)  # noqa: ASYNC240 (one call: less than a thread costs)
    try:
        await run("podman", "container", *arguments, limit=_LIMIT)
    except EngineError as exc:
        told, error, said = str(exc).rpartition("Error: ")
        if error:
            said = re.sub("`[^`]*`", "runc", said)  # with all of its arguments
            exc = EngineError(f"{told.partition(':')[0]}: {said}")
        raise criu.explain(exc, log) from None


async def _inspect(name: str) -> Inspected | None:
    """Return what Podman knows of a container, by its name or ID; None if nothing."""
    check_container_name(name)
    try:
        return Inspected.parse(
            await run("podman", "container", "inspect", "--", name, limit=_QUICK)
        )
    except EngineError as exc:
        if "no such container" in str(exc):
            return None
        raise


async def _remove(name: str) -> None:
    found = await _inspect(name)
    if found is not None:
        await run("podman", "rm", "--force", "--time", "0", "--", found.identity, limit=_QUICK)
        await let_go(found.directory)


def _remedy(name: str, found: Inspected) -> str:
    """Return what to do with a container that does not run."""
    if (found.directory / CHECKPOINT / "inventory.img").exists():
        return (
            "if a relocation was interrupted and came to nothing, let it go on with "
            f"`podman container restore {name}`"
        )
    if found.status == "paused":
        return f"let it go on with `podman unpause {name}`"
    return f"start it with `podman start {name}`"


def _default_socket(name: str) -> Path:
    return Path("/run/quicferry", name, SOCKET_NAME)


def _not_lazily() -> EngineError:
    known = " or ".join(sorted(each.value for each in Podman.techniques))
    return EngineError(f"Podman cannot fetch memory after the restore; use {known}, or runc")
