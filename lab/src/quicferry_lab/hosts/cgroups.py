"""Control groups of the laboratory: one for each host, so that an engine can freeze in it."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path

_PREFIX = "quicferry-lab-"
_numbers = itertools.count(1)


class LabGroup:
    """The groups of one laboratory, in the tree of version 2; none where there is no such tree.

    Attributes:
        path: Where they lie; None where there is no tree that can be written to.
    """

    def __init__(self) -> None:
        self.path = self._make()

    @staticmethod
    def _make() -> Path | None:
        tree = _tree()
        if tree is None:
            return None
        # Those of a laboratory that was killed are empty, and still there.
        for left in tree.glob(f"{_PREFIX}*"):
            pid = left.name.removeprefix(_PREFIX).partition("-")[0]
            if not Path("/proc", pid).exists():
                _remove(left)
        path = tree / f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        try:
            path.mkdir()
        except OSError:
            return None
        return path

    def add(self, name: str) -> Path | None:
        """Make the group of a host."""
        if self.path is None:
            return None
        group = self.path / name
        group.mkdir()
        return group

    def remove(self) -> None:
        """Remove all the groups; the processes in them have to be gone."""
        if self.path is not None:
            _remove(self.path)


def _tree() -> Path | None:
    """Return where the tree of version 2 is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, target, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(target)
    return None


def _remove(group: Path) -> None:
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            Path(folder).rmdir()
