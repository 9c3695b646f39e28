"""What the machine must have for the laboratory, and how it gets it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from quicferry.relocation.container.image.debian import KEYRING
from quicferry_lab.hosts.errors import LabError

_PACKAGES = {
    "debootstrap": "debootstrap",
    "unshare": "util-linux",
    "ip": "iproute2",
    str(KEYRING): "debian-archive-keyring",
}
"""Programs and files, and the Debian packages that have them."""
_LIMIT = 600.0


def missing() -> list[str]:
    """Return the Debian packages that the machine lacks."""
    return [package for thing, package in _PACKAGES.items() if not _is_there(thing)]


def install(say: Callable[[str], None]) -> None:
    """Install what the machine lacks.

    Args:
        say: Is told in a line what is being done.

    Raises:
        LabError: If this is not root, or apt-get is not there or fails.
    """
    if os.geteuid() != 0:
        raise LabError("the laboratory needs root: its hosts are namespaces with mounts; use sudo")
    packages = missing()
    if not packages:
        return
    if shutil.which("apt-get") is None:
        raise LabError(
            f"the laboratory needs {', '.join(packages)} (Debian's names); install them and try "
            "again"
        )
    say(f"installing {' '.join(packages)}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ("apt-get", "update", "-qq"),
        ("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages),
    ):
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_LIMIT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{' '.join(command)} was not done within {_LIMIT:g} s") from None
        if done.returncode:
            raise LabError(f"{' '.join(command)} failed: {done.stderr.strip()}")


def _is_there(thing: str) -> bool:
    return Path(thing).exists() if thing.startswith("/") else shutil.which(thing) is not None
