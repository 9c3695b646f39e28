"""The ``config.json`` of a bundle, by the Open Container Initiative's runtime specification.

The server sees the host's network, because it listens at the host's addresses, and nothing else of
the host but the directory with its management socket. It has no user's rights beyond its own files,
and no capability but the one to listen at ports below 1024; its system calls are filtered, and its
processes and memory are limited. What it writes is in memory, which CRIU
carries along; the root file system is the same on both hosts and stays as it is.
"""

from __future__ import annotations

from typing import Any

from ..engines.criu import CONFIGURATION_ANNOTATION
from ..engines.engine import IMAGE_ANNOTATION, SOCKET_DIRECTORY
from .application import Application
from .filter import make_filter

CONFIG_NAME = "config.json"

ROOT_FOLDER = "rootfs"
"""The root file system in a bundle."""

HOST_DIRECTORY = "/run/quicferry"
"""Where the directories with management sockets are on a host, each named after its container."""

TAKEN_NAMES = ("agent", "relocations")
"""What else is there: what agents write down, and images."""

MOUNT_POINTS = ("proc", "dev", "tmp", "run")
"""What a root file system has to have, so that nothing is made in it when it is run."""

CAPABILITIES = ("CAP_NET_BIND_SERVICE", "CAP_IPC_LOCK")
"""What the server may do beside what anybody may: use ports below 1024, and lock its working
memory, so that it goes along at once where the rest is fetched later."""

OPEN_FILES = 4096
"""How many files and sockets it may have open."""

MEMORY = {
    "/tmp": ["nosuid", "nodev", "mode=1777", "size=64m"],
    "/run": ["nosuid", "nodev", "noexec", "mode=1777", "size=16m"],
}
"""Where a container has files in memory, with the options of their mounts."""

_CAPABILITY_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")
_NAMESPACES = ("pid", "mount", "ipc", "uts", "cgroup")
_MASKED = (
    *("acpi", "asound", "kcore", "keys", "latency_stats", "sched_debug", "scsi"),
    *("timer_list", "timer_stats"),
)
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")


def make_config(application: Application, python: str, name: str) -> dict[str, Any]:
    """Return the configuration of a container, but for its annotations.

    Args:
        application: What runs in it.
        python: The Python in its root file system.
        name: The container's name.
    """
    variables = application.environment().items()
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": application.user, "gid": application.user},
            "args": list(application.command(python)),
            "env": [f"{variable}={value}" for variable, value in variables],
            "cwd": application.folder,
            "capabilities": {each: list(CAPABILITIES) for each in _CAPABILITY_SETS},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": OPEN_FILES, "soft": OPEN_FILES}],
            "noNewPrivileges": True,
        },
        "root": {"path": ROOT_FOLDER, "readonly": True},
        "hostname": name,
        "mounts": _mounts(name),
        "linux": {
            "resources": _resources(application),
            "seccomp": make_filter(),
            "namespaces": [{"type": namespace} for namespace in _NAMESPACES],
            "maskedPaths": [f"/proc/{path}" for path in _MASKED],
            "readonlyPaths": [f"/proc/{path}" for path in _READ_ONLY],
        },
    }


def make_annotations(name: str, digest: str) -> dict[str, str]:
    """Return what a container says about itself, and where CRIU finds what it should do with it.

    Args:
        name: The container's name.
        digest: Of everything that it is made of.
    """
    return {
        IMAGE_ANNOTATION: digest,
        CONFIGURATION_ANNOTATION: f"{HOST_DIRECTORY}/{name}.criu.conf",
    }


def socket_directory(name: str) -> str:
    """Return the directory on a host that a container has its management socket in."""
    return f"{HOST_DIRECTORY}/{name}"


def _resources(application: Application) -> dict[str, Any]:
    # A limit needs its controller, which not every system has for control groups (cgroups(7)).
    resources: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if application.processes:
        resources["pids"] = {"limit": application.processes}
    if application.memory:
        resources["memory"] = {"limit": application.memory << 20}
    return resources


def _mounts(name: str) -> list[dict[str, Any]]:
    # Without a network namespace of the container's own there can be no /sys.
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        _mount("tmpfs", "/dev", ["nosuid", "strictatime", "mode=755", "size=64k"]),
        _mount(
            "devpts",
            "/dev/pts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        _mount("tmpfs", "/dev/shm", ["nosuid", "nodev", "noexec", "mode=1777", "size=64m"]),
        *(_mount("tmpfs", folder, options) for folder, options in MEMORY.items()),
        {
            "destination": SOCKET_DIRECTORY,
            "type": "bind",
            "source": socket_directory(name),
            "options": ["bind", "rw", "nosuid", "nodev", "noexec"],
        },
    ]


def _mount(kind: str, destination: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": kind, "options": options}
