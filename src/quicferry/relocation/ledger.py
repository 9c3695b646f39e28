"""What an agent for containers remembers beyond its own life.

A container lives on when its agent ends. So whoever comes after it has to know which relocations
were committed, and which containers were only copies that nobody has given the word for. It is
written down in a directory that is as short-lived as the containers are: after a start of the host
both are gone.
"""

from __future__ import annotations

import os
from pathlib import Path

from .errors import EngineError
from .history import History

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
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for path in sorted(
                directory.glob(f"{_COMMITTED}*"), key=lambda each: each.stat().st_mtime
            ):
                super().committed(bytes.fromhex(path.name.removeprefix(_COMMITTED)))
        except OSError as exc:
            raise EngineError(f"cannot use {directory}: {exc.strerror}; run this as root") from None

    def copies(self) -> dict[bytes, str]:
        """Return the containers that are copies without a commitment, by their relocation."""
        return {
            bytes.fromhex(path.name.removeprefix(_COPY)): path.read_text()
            for path in self._directory.glob(f"{_COPY}*")
        }

    def begin(self, handover: bytes, container: str) -> None:
        """Write down that a copy is about to be made."""
        _write(self._directory / f"{_COPY}{handover.hex()}", container)

    def forget(self, handover: bytes) -> None:
        """Write down that there is no copy, or that it is more than one."""
        (self._directory / f"{_COPY}{handover.hex()}").unlink(missing_ok=True)

    def committed(self, handover: bytes) -> None:
        """Write down that the container came to live here."""
        _write(self._directory / f"{_COMMITTED}{handover.hex()}", "")
        self.forget(handover)
        super().committed(handover)


def _write(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
