"""Makes the bundle of an application: what runc and other OCI runtimes run.

The bundle has to be the same on both hosts, at whatever path. So it is made once and copied.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .application import Application
from .digest import digest
from .errors import ImageError
from .oci import (
    CONFIG_NAME,
    ROOT_FOLDER,
    TAKEN_NAMES,
    make_annotations,
    make_config,
    socket_directory,
)
from .root import Progress, fill_root

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True)
class Bundle:
    """A bundle that was made.

    Attributes:
        path: The directory with ``config.json`` and the root file system.
        name: What the container has to be called.
        digest: Of everything in it; equal on hosts between which it can move.
        user: The number of the user that the server runs as.
    """

    path: Path
    name: str
    digest: str
    user: int

    @property
    def socket_directory(self) -> Path:
        """The directory on a host that the container's management socket will be in.

        It has to be there before the container is created, and belong to the user of its server.
        """
        return Path(socket_directory(self.name))


def make_bundle(
    out: Path,
    application: Application,
    *,
    name: str,
    base: Path | None = None,
    progress: Progress = lambda _: None,
) -> Bundle:
    """Make a bundle of an application. Only root can, because its files belong to several users.

    It takes some ten seconds, and half a minute more without a base.

    Args:
        out: The directory to be made. It may exist if it is empty.
        application: What is to run in it.
        name: The container's name: letters, digits, ``_``, ``.`` and ``-``.
        base: A root file system with python3, which is copied; None for a new Debian.
        progress: Is told what is being done.

    Raises:
        ImageError: If it cannot be made; nothing is left of it then.
        OSError: If a file cannot be read or written.
    """
    check_name(name)
    out = out.absolute()
    if out.is_symlink() or (out.exists() and not (out.is_dir() and not any(out.iterdir()))):
        raise ImageError(f"{out} exists and is not an empty directory; remove it or choose another")
    check_apart(out, application, base)
    require_root()
    out.parent.mkdir(parents=True, exist_ok=True)
    with scratch(out.parent, out.name) as folder:
        value = build(folder, application, name=name, base=base, progress=progress)
        folder.rename(out)
    return Bundle(out, name, value, application.user)


def build(
    folder: Path, application: Application, *, name: str, base: Path | None, progress: Progress
) -> str:
    """Make root file system and configuration in a directory, and return their digest.

    Raises:
        ImageError: If that fails; what was made until then is left there.
    """
    root = folder / ROOT_FOLDER
    root.mkdir()
    python = fill_root(root, application, base, progress)
    config = make_config(application, python.executable, name)
    progress("taking the digest")
    value = digest(root, config)
    config["annotations"] = make_annotations(name, value)
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return value


def check_name(name: str) -> None:
    """Check that a container can be called so.

    Raises:
        ImageError: If it cannot.
    """
    if not _NAME.fullmatch(name):
        raise ImageError(
            f"{name!r} cannot be the name of a container; take up to 63 letters, digits, "
            "_, . and -, with a letter or digit first"
        )
    if name in TAKEN_NAMES:
        raise ImageError(
            f"{name!r} cannot be the name of a container, because {socket_directory(name)} is "
            "quicferry's own; choose another name"
        )


def check_apart(place: Path, application: Application, base: Path | None) -> None:
    """Check that what is copied does not hold the place that it is copied to.

    Raises:
        ImageError: If it does.
    """
    for source in (application.source, base):
        if source is not None and place.resolve().is_relative_to(source.resolve()):
            raise ImageError(
                f"{place} is in {source}, which would be copied into itself; make the image "
                "elsewhere"
            )


def require_root() -> None:
    """Check that this is root.

    Raises:
        ImageError: If it is not.
    """
    if os.geteuid() != 0:
        raise ImageError("only root can make an image, whose files belong to several users")


@contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """Provide a directory that is removed, if it was not moved to another place."""
    folder = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
