"""Makes the image of an application for Podman, by its own import of a root file system.

What a bundle has in its ``config.json`` is partly in the image, and partly in the options that it
has to be run with: `PodmanImage.command`.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..engines.engine import IMAGE_ANNOTATION, SOCKET_DIRECTORY
from .application import Application
from .bundle import build, check_apart, check_name, require_root, scratch
from .errors import ImageError
from .oci import (
    CAPABILITIES,
    CONFIG_NAME,
    MEMORY,
    OPEN_FILES,
    ROOT_FOLDER,
    socket_directory,
)
from .programs import run
from .root import Progress

_LIMIT = 600.0
_REMEDY = "install Podman (on Debian: apt-get install podman), and see that `podman info` works"


@dataclass(frozen=True)
class PodmanImage:
    """An image that Podman has now.

    Attributes:
        reference: By which Podman knows it.
        name: What the container has to be called.
        digest: Of everything in it; equal on hosts between which it can move.
        user: The number of the user that the server runs as.
        memory: How much memory the container may use, in bytes; 0 for any amount.
        processes: How many processes and threads it may have; 0 for any number.
    """

    reference: str
    name: str
    digest: str
    user: int
    memory: int
    processes: int

    @classmethod
    def of(cls, bundle: Path, name: str) -> Self:
        """Return what a bundle becomes in Podman, whether it was imported or not.

        Args:
            bundle: The directory with ``config.json`` and the root file system.
            name: What the container is called.

        Raises:
            ImageError: If Podman cannot call it so, or that is no bundle of quicferry's.
        """
        _check_name(name)
        try:
            config = json.loads((bundle / CONFIG_NAME).read_bytes())
            digest, user = config["annotations"][IMAGE_ANNOTATION], config["process"]["user"]["uid"]
            resources = config["linux"]["resources"]
            memory, processes = (
                resources.get(kind, {}).get("limit", 0) for kind in ("memory", "pids")
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ImageError(f"{bundle} is no bundle; make one with `quicferry image`") from None
        return cls(_reference(name), name, digest, user, memory, processes)

    @property
    def socket_directory(self) -> Path:
        """The directory on the host that the container's management socket will be in."""
        return Path(socket_directory(self.name))

    @property
    def command(self) -> tuple[str, ...]:
        """What starts the container."""
        return (
            *("podman", "--runtime=runc", "run", "--detach", "--name", self.name),
            *("--network=host", f"--pids-limit={self.processes}"),
            *([f"--memory={self.memory}b"] if self.memory else []),
            "--passwd=false",  # Podman would mount one that it does not make again on another host
            *("--read-only", "--read-only-tmpfs=false"),
            *(f"--tmpfs={at}:{','.join(how)}" for at, how in MEMORY.items()),
            *("--cap-drop=all", *(f"--cap-add={each}" for each in CAPABILITIES)),
            *("--security-opt=no-new-privileges", f"--ulimit=nofile={OPEN_FILES}:{OPEN_FILES}"),
            f"--volume={self.socket_directory}:{SOCKET_DIRECTORY}",
            f"--annotation={IMAGE_ANNOTATION}={self.digest}",
            self.reference,
        )


def make_podman_image(
    application: Application,
    *,
    name: str,
    base: Path | None = None,
    progress: Progress = lambda _: None,
) -> PodmanImage:
    """Make the image of an application, in this user's Podman. Only root can.

    Args:
        application: What is to run in it.
        name: The container's and the image's name: small letters, digits, ``_``, ``.`` and ``-``.
        base: A root file system with python3, which is copied; None for a new Debian.
        progress: Is told what is being done.

    Raises:
        ImageError: If it cannot be made.
        OSError: If a file cannot be read or written.
    """
    _check_name(name)
    scratch_place = Path(tempfile.gettempdir())
    check_apart(scratch_place, application, base)
    require_root()
    run("podman", "--version", limit=_LIMIT, remedy=_REMEDY)
    with scratch(scratch_place, f"quicferry-{name}") as folder:
        build(folder, application, name=name, base=base, progress=progress)
        progress(f"importing it into Podman as {_reference(name)}")
        return import_bundle(folder, name=name)


def import_bundle(bundle: Path, *, name: str) -> PodmanImage:
    """Make an image of what is in a bundle, in this user's Podman. Only root can.

    Args:
        bundle: The directory with ``config.json`` and the root file system.
        name: The container's and the image's name: small letters, digits, ``_``, ``.`` and ``-``.

    Raises:
        ImageError: If it cannot be made.
        OSError: If a file cannot be written.
    """
    image = PodmanImage.of(bundle, name)
    require_root()
    process = json.loads((bundle / CONFIG_NAME).read_bytes())["process"]
    user = process["user"]
    changes = (
        f"CMD {json.dumps(process['args'])}",
        *(f"ENV {variable}" for variable in process["env"]),
        f"WORKDIR {process['cwd']}",
        f"USER {user['uid']}:{user['gid']}",
        f"LABEL {IMAGE_ANNOTATION}={image.digest}",
    )
    with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
        run(
            *("tar", "--create", "--numeric-owner", "--file", archive.name),
            *("--directory", bundle / ROOT_FOLDER, "."),
            limit=_LIMIT,
            remedy="make room, or name another place with TMPDIR",
        )
        run(
            *("podman", "import", "--quiet"),
            *(f"--change={change}" for change in changes),
            *("-", image.reference),
            limit=_LIMIT,
            remedy=_REMEDY,
            stdin=archive,
        )
    return image


def _reference(name: str) -> str:
    return f"localhost/{name}:latest"


def _check_name(name: str) -> None:
    check_name(name)
    if name != name.lower():
        raise ImageError(f"Podman wants small letters in the name of an image, not {name}")
