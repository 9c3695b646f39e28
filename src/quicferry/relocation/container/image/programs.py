"""Runs the programs that an image is made with: bounded, and with errors that say why."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import IO

from .errors import ImageError

_LINES_TOLD = 3
_LONGEST_TOLD = 600
_UMASK = 0o022
"""The user in the container, who is nobody special, has to read what is made."""

_SYSTEM_PROGRAMS = "/usr/sbin:/sbin"
"""Where debootstrap and chroot may be, and an administrator's PATH need not lead."""


def run(
    *arguments: str | Path,
    limit: float,
    remedy: str,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
) -> str:
    """Run a program to its end, and return what it has written to its standard output.

    Args:
        *arguments: The program and its arguments.
        limit: Seconds that it may take; then it is killed.
        remedy: What to do when it is not there or fails, for the error's text.
        stdin: What it reads.

    Raises:
        ImageError: If it cannot be run, fails, or takes too long. The text has the end of what it
            has written to its standard error.
    """
    program = str(arguments[0])
    path = f"{os.environ.get('PATH', os.defpath)}:{_SYSTEM_PROGRAMS}"
    try:
        done = subprocess.run(
            arguments,
            stdin=stdin,
            capture_output=True,
            timeout=limit,
            check=False,
            umask=_UMASK,
            env={**os.environ, "PATH": path},
        )
    except FileNotFoundError:
        raise ImageError(f"there is no program {program}; {remedy}") from None
    except subprocess.TimeoutExpired:
        raise ImageError(f"{program} was not done within {limit:g} s; {remedy}") from None
    except OSError as exc:
        raise ImageError(f"{program} cannot be run: {exc.strerror or exc}; {remedy}") from None
    if done.returncode:
        raise ImageError(f"{program} failed: {_told(done)}; {remedy}")
    return done.stdout.decode(errors="replace")


def _told(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return what a program that has failed had to say, in a line."""
    text = (done.stderr.strip() or done.stdout).decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-_LINES_TOLD:])[-_LONGEST_TOLD:] or f"exit status {done.returncode}"
