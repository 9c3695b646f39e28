"""Makes the image of an application for Podman, by its own import of a root file system.

What a bundle has in its ``config.json`` is partly in the image, and partly in the options that it
has to be run with: `PodmanImage.command`.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..engines.engine import IMAGE_ANNOTATION, SOCKET_DIRECTORY
from .application import Application
from .bundle import build, check_apart, check_name, require_root, scratch
from .errors import ImageError
from .oci import CAPABILITIES, CONFIG_NAME, MEMORY, OPEN_FILES, ROOT_FOLDER, socket_directory
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
    """

    reference: str
    name: str
    digest: str
    user: int

    @property
    def socket_directory(self) -> Path:
        """The directory on the host that the container's management socket will be in."""
        return Path(socket_directory(self.name))

    @property
    def command(self) -> tuple[str, ...]:
        """What starts the container."""
        return (
            *("podman", "--runtime=runc", "run", "--detach", "--name", self.name),
            *("--network=host", "--pids-limit=0"),
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
    check_name(name)
    if name != name.lower():
        raise ImageError(f"Podman wants small letters in the name of an image, not {name}")
    scratch_place = Path(tempfile.gettempdir())
    check_apart(scratch_place, application, base)
    require_root()
    run("podman", "--version", limit=_LIMIT, remedy=_REMEDY)
    reference = f"localhost/{name}:latest"
    with scratch(scratch_place, f"quicferry-{name}") as folder:
        digest = build(folder, application, name=name, base=base, progress=progress)
        process = json.loads((folder / CONFIG_NAME).read_bytes())["process"]
        progress(f"importing it into Podman as {reference}")
        archive = folder / "root.tar"
        run(
            *("tar", "--create", "--numeric-owner", "--file", archive),
            *("--directory", folder / ROOT_FOLDER, "."),
            limit=_LIMIT,
            remedy="make room, or name another place with TMPDIR",
        )
        changes = (
            f"CMD {json.dumps(process['args'])}",
            *(f"ENV {variable}" for variable in process["env"]),
            f"WORKDIR {process['cwd']}",
            f"USER {application.user}:{application.user}",
            f"LABEL {IMAGE_ANNOTATION}={digest}",
        )
        with archive.open("rb") as stdin:
            run(
                *("podman", "import", "--quiet"),
                *(f"--change={change}" for change in changes),
                *("-", reference),
                limit=_LIMIT,
                remedy=_REMEDY,
                stdin=stdin,
            )
    return PodmanImage(reference, name, digest, application.user)
