"""The key that outlives a server's process, in a file.

From it follow the keys of stateless resets and of Retry tokens, so a server that is started again
can end the connections of the one before it, and hosts that share the file take each other's
tokens.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from .errors import ConfigurationError

SMALLEST_KEY = 32
"""Bytes."""
LARGEST_KEY = 4096
"""Bytes."""


def load_key(path: Path) -> bytes:
    """Return the key in a file; one is made at random if there is no file.

    Raises:
        ConfigurationError: If it cannot be read or made, others can read it, or it is too short.
    """
    try:
        if not path.exists():
            _make(path)
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ConfigurationError(f"the key file {path} is not a file; name another one")
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigurationError(
                    f"other users may use the key file {path}; allow it only yours: chmod 600"
                )
            key = file.read(LARGEST_KEY + 1).strip()
    except OSError as exc:
        raise ConfigurationError(
            f"cannot use the key file {path}: {exc.strerror or exc}; name another one"
        ) from exc
    if not SMALLEST_KEY <= len(key) <= LARGEST_KEY:
        raise ConfigurationError(
            f"the key file {path} does not hold {SMALLEST_KEY} to {LARGEST_KEY} bytes; remove it, "
            "and one is made"
        )
    return key


def _make(path: Path) -> None:
    """Make the file with all of its content, or not at all; another process may do so as well."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_hex(SMALLEST_KEY).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(beside, path)
    finally:
        beside.unlink()
