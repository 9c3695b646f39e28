"""How the laboratory's hosts get its application, and start it: what differs between the engines.

A host sees what was made of the application on the machine's disk, read-only, so that it takes no
memory: a bundle for runc; for Podman a store of images, which its own storage is put beside.
"""

from __future__ import annotations

import asyncio
import errno
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from quicferry.relocation.container.image import PodmanImage
from quicferry.relocation.container.image.bundle import scratch
from quicferry.relocation.container.image.programs import run
from quicferry_lab.containers.bundle import NAME
from quicferry_lab.hosts import Host, Lab
from quicferry_lab.patience import patient

_FOLDER = "srv/quicferry"
_BUNDLE = f"/{_FOLDER}/{NAME}"
_START_LIMIT = patient(20.0)
_MAKE_LIMIT = 300.0

_IMAGES = "images"
"""Podman's store, beside the bundle that it was made of."""
_SEEN_AT = "srv/images"
_STORAGE = "/var/lib/containers"
_CONTAINERS = """\
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
[containers]
pids_limit = 0
"""
"""How Podman does on a machine whose control groups are no systemd's."""
_STORES = f"""\
[storage]
driver = "overlay"
runroot = "/run/containers/storage"
graphroot = "{_STORAGE}/storage"
[storage.options]
additionalimagestores = ["/{_SEEN_AT}"]
"""


class Deployment(ABC):
    """An engine's part in a trial.

    Args:
        folder: What `prepare_bundle` has made.

    Attributes:
        folders: What hosts have to see, as for `Lab.add_host`.
        options: What an agent has to be told beside the engine's name.
        containers: The command that lists the containers of a host, a line each.
    """

    folders: Mapping[str, Path]
    options: tuple[str, ...]
    containers: tuple[str, ...]

    def __init__(self, folder: Path) -> None:
        self.image = PodmanImage.of(folder / NAME, NAME)

    @abstractmethod
    async def prepare(self, host: Host) -> None:
        """Make a host ready to have the container.

        Raises:
            LabError: If that fails.
        """

    async def start(self, host: Host) -> None:
        """Start the container.

        Raises:
            LabError: If that fails.
        """
        user, directory = str(self.image.user), str(self.image.socket_directory)
        await host.run(["install", "-d", "-m", "700", "-o", user, "-g", user, directory])
        await self._run(host)

    @abstractmethod
    async def _run(self, host: Host) -> None: ...


class _Runc(Deployment):
    options = ("--bundle", _BUNDLE)
    containers = ("runc", "list", "--quiet")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folders = {_FOLDER: folder}

    async def prepare(self, host: Host) -> None:
        """Do nothing: runc needs no more than the bundle."""

    async def _run(self, host: Host) -> None:
        start = f"exec runc run --detach --bundle {_BUNDLE} {NAME} </dev/null >/dev/null 2>&1"
        await host.run(["sh", "-c", start], limit=_START_LIMIT)


class _Podman(Deployment):
    containers = ("podman", "ps", "--all", "--quiet")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folders = {_SEEN_AT: folder / _IMAGES}
        self.options = ("--image", self.image.reference)

    async def prepare(self, host: Host) -> None:
        """Give Podman its configuration, and a place for layers, which overlayfs is not."""
        await _configure(host)
        (host.root / "etc/containers/storage.conf").write_text(_STORES)

    async def _run(self, host: Host) -> None:
        await host.run(self.image.command, limit=_START_LIMIT)


async def deploy(engine: str, folder: Path) -> Deployment:
    """Return an engine's part, once all that hosts have to see is there.

    For Podman that takes some twenty seconds once, and 3 GB of memory meanwhile.

    Args:
        engine: Its name.
        folder: What `prepare_bundle` has made.

    Raises:
        LabError: If that fails.
        ImageError: If the image cannot be kept.
    """
    if engine == "runc":
        return _Runc(folder)
    if not (folder / _IMAGES).exists():
        await _make_store(folder)
    return _Podman(folder)


async def _make_store(folder: Path) -> None:
    """Import the bundle into a host's Podman, and keep what that makes of it."""
    async with Lab() as lab:
        host = await lab.add_host("images", folders={_FOLDER: folder}, run_size=4 << 30)
        await _configure(host)
        await host.run(["python3", "-c", _IMPORT, _BUNDLE, NAME], limit=_MAKE_LIMIT)
        await asyncio.to_thread(_keep, host.root / _STORAGE.lstrip("/") / "storage", folder)


_IMPORT = """
import sys
from pathlib import Path
from quicferry.relocation.container.image import import_bundle
import_bundle(Path(sys.argv[1]), name=sys.argv[2])
"""


def _keep(store: Path, folder: Path) -> None:
    with scratch(folder, _IMAGES) as unfinished:
        run(
            *("cp", "--archive", "--no-target-directory", store, unfinished),
            limit=_MAKE_LIMIT,
            remedy="make room, or name another place with QUICFERRY_LAB_DIR",
        )
        try:
            unfinished.rename(folder / _IMAGES)
        except OSError as exc:
            if exc.errno != errno.ENOTEMPTY:  # then another trial was faster
                raise


async def _configure(host: Host) -> None:
    await host.run(["mkdir", "-p", _STORAGE])
    await host.run(["mount", "-t", "tmpfs", "disk", _STORAGE])
    (host.root / "etc/containers/containers.conf").write_text(_CONTAINERS)
