"""Makes a Debian root file system, from where this machine gets its own packages."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from .errors import ImageError
from .programs import run

SUITE = "trixie"
"""The release that is installed; its Python is 3.13."""

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""What the archive's signatures are checked with."""

_LIMIT = 900.0
_CONTAINED = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Runs a program such that its mounts and what it has started end with it."""

_ARCHIVES = ("var/cache/apt", "var/lib/apt/lists")
_REMEDY = (
    "on Debian: apt-get install debootstrap debian-archive-keyring; "
    "or name a root file system that has python3: --base DIR"
)


def make_debian(root: Path, packages: Sequence[str], suite: str = SUITE) -> None:
    """Make a minimal Debian with some packages. It takes about half a minute.

    Args:
        root: The directory; it has to be empty, or is made.
        packages: Names of packages beside the essential ones.
        suite: The release.

    Raises:
        ImageError: If debootstrap is not there or fails, or there is no way to Debian's archive.
    """
    if not KEYRING.is_file():
        raise ImageError(f"there is no {KEYRING}, which Debian's signatures need; {_REMEDY}")
    run(
        *_CONTAINED,
        "debootstrap",
        "--variant=minbase",
        f"--keyring={KEYRING}",
        f"--include={','.join(packages)}",
        suite,
        root,
        find_mirror(),
        limit=_LIMIT,
        remedy=_REMEDY,
    )
    for folder in _ARCHIVES:
        for entry in (root / folder).iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def find_mirror() -> str:
    """Return the address of the Debian archive that this machine's apt is configured for.

    Raises:
        ImageError: If it is not configured for any.
    """
    found = run(
        *("apt-get", "indextargets", "--format", "$(REPO_URI) $(SUITE)"),
        *("Created-By: Packages", "Origin: Debian", "Component: main"),
        limit=30.0,
        remedy=_REMEDY,
    )
    for line in found.splitlines():
        address, _, suite = line.partition(" ")
        if not suite.endswith(("-security", "-updates", "-backports")):
            return address
    raise ImageError(
        "apt knows of no archive of Debian's packages; run apt-get update, or, on another system, "
        "name a root file system that has python3: --base DIR"
    )
