"""What an agent for containers remembers beyond its own life.

A container lives on when its agent ends. So whoever comes after it has to know which relocations
were committed, and which containers were only copies that nobody has given the word for. It is
written down in a directory that is as short-lived as the containers are: after a start of the host
both are gone.

Several agents of a host use the same directory. A copy belongs to the agent that has made it for as
long as that lives, which a lock on its file (flock(2)) shows.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from ..errors import EngineError
from ..ownership.history import History

_COPY = "copy-"
_COMMITTED = "committed-"


class Ledger(History):
    """A history that is written to a directory.

    Args:
        directory: Where; it is made if it is not there.

    Raises:
        EngineError: If it cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory
        self._locked: dict[bytes, int] = {}
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in sorted(
                directory.glob(f"{_COMMITTED}*"), key=lambda each: each.stat().st_mtime
            ):
                super().committed(bytes.fromhex(path.name.removeprefix(_COMMITTED)))
        except OSError as exc:
            raise EngineError(f"cannot use {directory}: {exc.strerror}; run this as root") from None

    def copies(self) -> dict[bytes, str]:
        """Return the containers that are copies without a commitment, by their relocation.

        Those of agents that live are not among them.
        """
        found = {}
        for path in self._directory.glob(f"{_COPY}*"):
            handover = bytes.fromhex(path.name.removeprefix(_COPY))
            if handover not in self._locked:
                with suppress(FileNotFoundError, BlockingIOError):  # its agent lives
                    self._lock(handover, os.open(path, os.O_RDONLY))
                    found[handover] = path.read_text()
        return found

    def begin(self, handover: bytes, container: str) -> None:
        """Write down that a copy is about to be made."""
        path = self._directory / f"{_COPY}{handover.hex()}"
        unfinished = path.with_name(f"new-{handover.hex()}")  # nobody may see it without its lock
        _write(unfinished, container)
        self._lock(handover, os.open(unfinished, os.O_RDONLY))
        unfinished.rename(path)

    def forget(self, handover: bytes) -> None:
        """Write down that there is no copy, or that it is more than one."""
        (self._directory / f"{_COPY}{handover.hex()}").unlink(missing_ok=True)
        if (file := self._locked.pop(handover, None)) is not None:
            os.close(file)

    def close(self) -> None:
        """Leave the copies that are left to another agent."""
        while self._locked:
            os.close(self._locked.popitem()[1])

    def committed(self, handover: bytes) -> None:
        """Write down that the container came to live here."""
        _write(self._directory / f"{_COMMITTED}{handover.hex()}", "")
        self.forget(handover)
        super().committed(handover)

    def _lock(self, handover: bytes, file: int) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise
        self._locked[handover] = file


def _write(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
