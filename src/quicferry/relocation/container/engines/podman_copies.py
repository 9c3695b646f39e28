"""Keeps Podman's own copies of a checkpoint in memory.

Podman writes a checkpoint to the directory that it has for the container, on disk, before it
exports it, and again when it imports it. A checkpoint holds keys. So directories in memory are
mounted where Podman writes to: `keep_in_memory` and `let_go`. What it writes beside them is a copy
of ``/dev/shm``; it follows a symbolic link to the same place, which goes along in the archive.

The memory belongs to whoever lends it: it is wiped there, when all this is over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from quicferry.relocation.errors import EngineError

from .program import run

CHECKPOINT = "checkpoint"
"""Where Podman writes a checkpoint to, in the container's directory."""

PRE_CHECKPOINT = "pre-checkpoint"
"""Where it writes the memory of a running container to."""

_SHARED_MEMORY = "devshm-checkpoint.tar"
_LIMIT = 10.0


async def keep_in_memory(directory: Path, memory: Path, names: Iterable[str]) -> None:
    """Have Podman write to memory, until `let_go`.

    Args:
        directory: What Podman has for the container; it is made if it is not there.
        memory: A directory in memory. What was written there before is there again.
        names: Of the directories that Podman will write to.

    Raises:
        EngineError: If that is not possible.
    """
    await let_go(directory)
    try:
        for name in names:
            target, source = directory / name, memory / name
            for path in (directory.parent, directory, target, source):
                path.mkdir(mode=0o700, exist_ok=True)
            await run("mount", "--bind", str(source), str(target), limit=_LIMIT)
        link = directory / _SHARED_MEMORY
        link.unlink(missing_ok=True)
        link.symlink_to(Path(CHECKPOINT, _SHARED_MEMORY))
    except OSError as exc:
        await let_go(directory)
        raise EngineError(f"cannot prepare {directory}: {exc.strerror}; run this as root") from None
    except BaseException:
        await let_go(directory)
        raise


async def let_go(directory: Path) -> None:
    """Undo `keep_in_memory`, also one of a process that is gone. Nothing happens without one.

    Raises:
        EngineError: If that is not possible.
    """
    for name in (CHECKPOINT, PRE_CHECKPOINT):
        path = directory / name
        while path.is_mount():
            await run("umount", "--lazy", str(path), limit=_LIMIT)
        with contextlib.suppress(OSError):
            path.rmdir()  # if it is empty: somebody may have a checkpoint of his own there
    link = directory / _SHARED_MEMORY
    if link.is_symlink():
        link.unlink()
