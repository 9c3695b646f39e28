"""What a checkpoint of Podman may ask of the host that it has come to.

A checkpoint brings its container's configuration along (``config.dump``, ``spec.dump``), and Podman
makes the container by that, as root: with any directory of the host, any user, any device, and
programs that are run beside it. So it is held against what an agent's own image and command line
give, before Podman sees it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quicferry.relocation.errors import EngineError

from .criu_images import Rights
from .engine import SOCKET_DIRECTORY

DEFAULT_CAPABILITIES = frozenset(
    f"CAP_{name}"
    for name in (
        *("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "NET_BIND_SERVICE", "SETFCAP"),
        *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
    )
)
"""Those that Podman gives by itself (containers.conf(5))."""

CAPABILITIES = DEFAULT_CAPABILITIES | {"CAP_IPC_LOCK"}
"""Those that a container may have that is moved."""

_TYPES = frozenset({"tmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2"})
"""Of mounts that show nothing of the host's disks."""
_NAMESPACES = frozenset({"pid", "mount", "ipc"})
_PODMANS = (Path("/run/containers"), Path("/var/run/containers"))
"""Where Podman has files for a container, beside its storage."""


@dataclass(frozen=True)
class Given:
    """What a host gives to a container.

    Attributes:
        user: That of the image, as ``USER`` in a Containerfile; empty for root.
        directory: Where the directory with the management socket is on the host.
        mounts: Directories of the host that it may mount beside that.
        storage: Where Podman has what it stores.
    """

    user: str
    directory: Path
    mounts: tuple[Path, ...]
    storage: Path


def check(config: dict[str, Any], spec: dict[str, Any], given: Given) -> Rights:
    """Check that a container asks for no more than it is given, and return its rights.

    Args:
        config: ``config.dump``.
        spec: ``spec.dump``.
        given: What it is given.

    Raises:
        EngineError: If it asks for more.
        ValueError: If the two cannot be understood; so do KeyError, TypeError and AttributeError.
    """
    process, linux = spec["process"], spec["linux"]
    rights = _rights(process, linux)
    for problem in (
        _problem_of_config(config),
        _problem_of_user(rights, given.user),
        *(_problem_of_mount(each, config["id"], given) for each in spec["mounts"]),
        _problem_of_host(spec, linux),
    ):
        if problem is not None:
            raise EngineError(
                f"the container {problem}; whoever has sent it may try to get into this host: look "
                "at the source"
            )
    if more := sorted(rights.capabilities - CAPABILITIES):
        raise EngineError(
            f"the container has the capabilities {', '.join(more)}, which would be those of root "
            "here; make it without"
        )
    return rights


def _rights(process: dict[str, Any], linux: dict[str, Any]) -> Rights:
    user = process["user"]
    sets: Iterable[list[str]] = (process.get("capabilities") or {}).values()
    return Rights(
        int(user["uid"]),
        (int(user["gid"]), *map(int, user.get("additionalGids") or ())),
        frozenset(name for each in sets for name in each or ()),
        is_filtered=bool(linux.get("seccomp")),
    )


def _problem_of_config(config: dict[str, Any]) -> str | None:
    if config.get("privileged"):
        return "is privileged, which is root here"
    if config.get("rootfs"):
        return "has a directory of the host as its root file system"
    if config.get("userNsCtr") or config.get("pod"):
        return "shares what it has with another one"
    return None


def _problem_of_user(rights: Rights, user: str) -> str | None:
    uid, _, gid = user.partition(":")
    if uid in ("", "0", "root"):
        return None
    if uid.isdecimal():
        if rights.user != int(uid):
            return f"is to run as user {rights.user}, and the image here says {uid}"
    elif rights.user == 0:
        return f"is to run as root, and the image here says {uid}"
    if gid.isdecimal() and not set(rights.groups) <= {int(gid)}:
        groups = ", ".join(map(str, rights.groups))
        return f"is to run in the groups {groups}, and the image here says {gid}"
    return None


def _problem_of_mount(mount: dict[str, Any], identity: str, given: Given) -> str | None:
    destination, source = mount["destination"], Path(mount.get("source") or "")
    options = set(mount.get("options") or ())
    kind = mount.get("type") or "none"
    if kind in _TYPES and not options & {"bind", "rbind"}:
        return None
    if kind not in ("bind", "none") and kind not in _TYPES:
        return f"mounts a file system of the type {kind} at {destination}"
    if not source.is_absolute() or ".." in source.parts:
        return f"mounts {source} at {destination}"
    if destination == SOCKET_DIRECTORY:
        wanted = given.directory
        return None if source == wanted else f"has its socket in {source}, and not in {wanted}"
    of_podman = identity in source.parts and any(
        source.is_relative_to(place) for place in (*_PODMANS, given.storage)
    )
    if of_podman or source in given.mounts:
        return None
    return (
        f"mounts {source} of this host at {destination}; if it may, start the agent with "
        f"--allow-mount {source}"
    )


def _problem_of_host(spec: dict[str, Any], linux: dict[str, Any]) -> str | None:
    if any((spec.get("hooks") or {}).values()):
        return "has programs of the host run beside it (hooks)"
    if linux.get("devices"):
        return "has devices of the host"
    own = {each["type"] for each in linux["namespaces"] if not each.get("path")}
    if missing := sorted(_NAMESPACES - own):
        return f"shares namespaces with the host: {', '.join(missing)}"
    return None
