"""A digest of a root file system and of what is run in it: equal where a container can go on.

Everything counts that a process could notice, except for times and the number of links of a file,
which differ between two copies of the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def digest(root: Path, config: dict[str, Any]) -> str:
    """Return the digest, ``sha256:`` and hexadecimal digits.

    Args:
        root: The root file system.
        config: How it is run, without annotations.

    Raises:
        OSError: If a file cannot be read.
    """
    total = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for path in _walk(root):
        found = path.lstat()
        described = [
            os.fsencode(path.relative_to(root)),
            f"{found.st_mode:o} {found.st_uid} {found.st_gid} {found.st_rdev}".encode(),
            _content(path, found.st_mode),
        ]
        for part in described:
            total.update(len(part).to_bytes(8, "big") + part)
    return f"sha256:{total.hexdigest()}"


def _walk(root: Path) -> Iterator[Path]:
    """Yield everything in a directory, each folder before what is in it, by name."""
    for entry in sorted(root.iterdir()):
        yield entry
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry)


def _content(path: Path, mode: int) -> bytes:
    if stat.S_ISLNK(mode):
        return os.fsencode(path.readlink())
    if stat.S_ISREG(mode):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    return b""
