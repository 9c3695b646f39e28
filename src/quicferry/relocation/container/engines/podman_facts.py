"""What Podman tells: of its containers, of its images, and of a checkpoint in an archive."""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from quicferry.relocation.errors import EngineError

from .criu_images import LARGEST_IMAGE, check_images
from .engine import SOCKET_DIRECTORY, SOCKET_NAME
from .podman_rights import Given, check

_RUNTIME = "runc"
_CHECKPOINT = "checkpoint"
_LOOKED_AT = frozenset({"config.dump", "spec.dump", _CHECKPOINT})
_IDENTITY = re.compile("[0-9a-f]{64}")
_LONGEST_FACTS = 1 << 20
"""Bytes of JSON in an archive; those of a usual container are some thousand."""
_NONSENSE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    tarfile.TarError,
)
"""What comes of an archive that Podman has not made."""


@dataclass(frozen=True)
class Inspected:
    """A container, from ``podman inspect``.

    Attributes:
        identity: Its ID, which it keeps on another host.
        status: What it does: ``running``, ``paused``, ``exited``...
        pid: Its first process, as this host sees it; 0 if there is none.
        image: The ID of the image that it was made of.
        directory: What Podman has for it on disk.
        socket: The management socket of its server; None if it mounts none.
        has_own_files: Whether its root file system can be written to.
        obstacle: Why Podman cannot move it, and what to do about it; None if it can.
    """

    identity: str
    status: str
    pid: int
    image: str
    directory: Path
    socket: Path | None
    has_own_files: bool
    obstacle: str | None

    @classmethod
    def parse(cls, text: str) -> Inspected:
        """Return what ``podman inspect`` has printed of one container.

        Raises:
            EngineError: If that is something else.
        """
        try:
            (found,) = json.loads(text)
            return cls(
                identity=found["Id"],
                status=found["State"]["Status"],
                pid=found["State"]["Pid"],
                image=found["Image"],
                directory=Path(found["StaticDir"]),
                socket=_socket((m["Destination"], m["Source"]) for m in found["Mounts"]),
                has_own_files=not found["HostConfig"]["ReadonlyRootfs"],
                obstacle=_obstacle(found),
            )
        except (ValueError, KeyError, TypeError):
            raise EngineError(
                "`podman inspect` prints what this quicferry does not know; use Podman 5.4"
            ) from None


@dataclass(frozen=True)
class Image:
    """An image, from ``podman image inspect``.

    Attributes:
        identity: Its ID.
        names: What it is called here.
        command: The command line of its first process.
        user: Whom that runs as: ``USER`` or ``USER:GROUP``, by names or numbers; empty for root.
    """

    identity: str
    names: frozenset[str]
    command: tuple[str, ...] = ()
    user: str = ""

    @classmethod
    def parse(cls, text: str) -> Image:
        """Return what ``podman image inspect`` has printed of one image.

        Raises:
            EngineError: If that is something else.
        """
        try:
            (found,) = json.loads(text)
            config = found.get("Config") or {}
            command = (*(config.get("Entrypoint") or ()), *(config.get("Cmd") or ()))
            return cls(
                found["Id"], frozenset(found["RepoTags"] or ()), command, config.get("User") or ""
            )
        except (ValueError, KeyError, TypeError):
            raise EngineError(
                "`podman image inspect` prints what this quicferry does not know; use Podman 5.4"
            ) from None


@dataclass(frozen=True)
class Archive:
    """A checkpoint in an archive, from ``podman container checkpoint --export``.

    Attributes:
        identity: The ID of its container.
        name: The container's name.
        image: The name of the image that it was made of.
        socket: The management socket of its server, on either host.
        sources: What it mounts of the host, beside the directory of the socket.
        user: The numbers of the user and group that its first process runs as.
        config: What Podman makes the container by.
        spec: What its runtime does.
    """

    identity: str
    name: str
    image: str
    socket: Path
    sources: tuple[Path, ...]
    user: tuple[int, int]
    config: dict[str, Any] = field(repr=False, compare=False)
    spec: dict[str, Any] = field(repr=False, compare=False)

    @classmethod
    def read(cls, path: Path) -> Archive:
        """Return what is in an archive.

        Raises:
            EngineError: If it is none, or one of another container.
        """
        try:
            with tarfile.open(path, "r:") as archive:
                _check_members(archive)
                config = _content(archive, "config.dump")
                spec = _content(archive, "spec.dump")
            mounts, user = spec["mounts"], spec["process"]["user"]
            socket = _socket((m["destination"], m["source"]) for m in mounts)
            if socket is None:
                raise KeyError(SOCKET_DIRECTORY)
            bound = [Path(_text(m["source"])) for m in mounts if m["type"] == "bind"]
            identity = config["id"]
            if not _IDENTITY.fullmatch(identity):  # it becomes a part of a path
                raise ValueError
            return cls(
                identity=identity,
                name=_text(config["name"]),
                image=_text(config["rootfsImageName"]),
                socket=socket,
                # Podman makes those that it has for the container itself.
                sources=tuple(
                    path for path in bound if identity not in path.parts and path != socket.parent
                ),
                user=(_number(user["uid"]), _number(user["gid"])),
                config=config,
                spec=spec,
            )
        except _NONSENSE:
            raise _no_checkpoint() from None

    def check(self, path: Path, given: Given) -> None:
        """Check that the container, and each process in it, asks for no more than it is given.

        Args:
            path: The archive.
            given: What it is given.

        Raises:
            EngineError: If one asks for more.
        """
        try:
            rights = check(self.config, self.spec, given)
        except _NONSENSE:
            raise _no_checkpoint() from None
        with tarfile.open(path, "r:") as archive:
            check_images(_images_in(archive), rights)


def _no_checkpoint() -> EngineError:
    return EngineError(
        "what has arrived is no checkpoint of Podman with a quicferry server in it; the transfer "
        "was damaged, or the hosts have different versions of Podman"
    )


def _check_members(archive: tarfile.TarFile) -> None:
    """Check that what is looked at is what Podman reads: one file for each name, and no links."""
    seen = set()
    for member in archive:
        name = os.path.normpath(member.name)
        matters = name in _LOOKED_AT or name.startswith(f"{_CHECKPOINT}/")
        if name in seen or (matters and not (member.isreg() or member.isdir())):
            raise ValueError(name)
        if matters and name != member.name.rstrip("/"):
            raise ValueError(name)
        seen.add(name)


def _images_in(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        name = PurePosixPath(member.name)
        if str(name.parent) == _CHECKPOINT and name.match("core-*.img"):
            file = archive.extractfile(member)
            yield name.name, b"" if file is None else file.read(LARGEST_IMAGE + 1)


def _text(value: object) -> str:
    """Return a text that files may be called by; raises ValueError if it is none."""
    if not isinstance(value, str) or "\0" in value:
        raise ValueError
    return value


def _number(value: object) -> int:
    """Return the number of a user or group; raises ValueError if it is none."""
    if type(value) is not int or not 0 <= value < (1 << 32) - 1:
        raise ValueError
    return value


def _content(archive: tarfile.TarFile, name: str) -> Any:
    """Return what the JSON in a member says; raises one of `_NONSENSE` if there is none."""
    file = archive.extractfile(name)
    if file is None:
        raise KeyError(name)
    text = file.read(_LONGEST_FACTS + 1)
    if len(text) > _LONGEST_FACTS:
        raise ValueError
    return json.loads(text)


def _socket(mounts: Any) -> Path | None:
    """Return where the management socket is, by pairs of destination and source."""
    sources = (source for destination, source in mounts if destination == SOCKET_DIRECTORY)
    return next((Path(_text(source)) / SOCKET_NAME for source in sources), None)


def _obstacle(found: dict[str, Any]) -> str | None:
    """Return why Podman cannot move a container, and what to do about it."""
    host = found["HostConfig"]
    restart = host["RestartPolicy"]["Name"]
    if Path(found["OCIRuntime"]).name != _RUNTIME:
        return (
            f"runs with {found['OCIRuntime']}, whose containers Podman cannot restore; make it "
            "with `podman --runtime runc run`"
        )
    if host["NetworkMode"] != "host":
        return (
            f"has the network {host['NetworkMode']}, so its server does not listen at this host's "
            "addresses; make it with --network host"
        )
    if host["IpcMode"] not in ("", "private", "shareable", "none"):
        return (
            f"shares its /dev/shm ({host['IpcMode']}), which would be moved along; make it with "
            "--ipc private"
        )
    if found["Pod"]:
        return "belongs to a pod, which cannot be moved; make it without one"
    if host["AutoRemove"]:
        return "is removed when it stops, so it could never go on here; make it without --rm"
    if restart not in ("", "no"):
        return (
            f"has the restart policy {restart}, so it might be started anew beside its copy; "
            f"run `podman update --restart=no {found['Name']}`"
        )
    return None
