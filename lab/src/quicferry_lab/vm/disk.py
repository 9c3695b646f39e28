"""Disks for a virtual machine: ext4 file systems made of directories."""

from __future__ import annotations

import os
from pathlib import Path

from quicferry.relocation.container.image.programs import run

_BLOCK = 4096
_INODE = 256
_ROOM = 1.1
"""For directories and the tables of the file system, which take a few percent."""
_SPARE = 64 << 20
_LIMIT = 300.0


def write_disk(folder: Path, descriptor: int) -> None:
    """Write a file system with all that is in a directory, with owners and modes.

    It has no journal and little room beside: it is meant to be read only.

    Args:
        folder: The directory.
        descriptor: Of a new, empty file; it will be sparse.

    Raises:
        ImageError: If that fails.
    """
    size, files = _measure(folder)
    os.ftruncate(descriptor, int(size * _ROOM) + files * _INODE + _SPARE)
    run(
        *("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-b", str(_BLOCK)),
        *("-I", str(_INODE), "-N", str(int(files * _ROOM) + 100)),
        *("-d", folder, f"/proc/{os.getpid()}/fd/{descriptor}"),
        limit=_LIMIT,
        remedy="make room; mke2fs is in Debian's package e2fsprogs",
    )


def _measure(folder: Path) -> tuple[int, int]:
    """Return how many bytes of whole blocks a directory takes, and how many files are in it."""
    size = files = 0
    for path, folders, names in os.walk(folder):
        files += len(folders) + len(names)
        for name in names:
            length = os.lstat(f"{path}/{name}").st_size
            size += -(-length // _BLOCK) * _BLOCK
        size += _BLOCK * (1 + len(folders) + len(names) // 32)
    return size, files
