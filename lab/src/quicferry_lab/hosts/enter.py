"""Runs a program inside a host, as the laboratory's child that stands for it.

Run as a script: `enter.py SETTINGS PROGRAM ARGUMENT ...`; it imports nothing but the standard
library. `nsenter` would do but for this: a process cannot enter a PID namespace, only its children
can, so whoever starts a program has another process as his child. This one passes on the signals
that it gets, ends as the program does, and takes the program along when it is killed.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_PR_SET_PDEATHSIG = 1
_CANNOT_RUN = 127


def main(settings: dict[str, Any], command: list[str]) -> None:
    """Enter the host's namespaces, run the program there, and end as it does."""
    libc = ctypes.CDLL(None, use_errno=True)
    if settings["cgroup"]:
        Path(settings["cgroup"], "cgroup.procs").write_text("0")
    folder = Path("/proc", str(settings["pid"]), "ns")
    # All are opened before any is entered: then /proc is another. "mnt" changes the root, too.
    for descriptor in [os.open(folder / name, os.O_RDONLY) for name in settings["namespaces"]]:
        if libc.setns(descriptor, 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        os.close(descriptor)
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    child = os.fork()
    if child == 0:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _execute(command)
    for passed in PASSED_ON:
        signal.signal(passed, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    # Pipes are the program's alone; this process must not hold them open for others.
    nothing = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number in PASSED_ON:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(os.WEXITSTATUS(status))


def _execute(command: list[str]) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # which Python ignores, and so would the program
    try:
        os.execvp(command[0], command)
    except OSError as exc:
        os.write(2, f"{command[0]} cannot be run: {exc.strerror}\n".encode())
    sys.exit(_CANNOT_RUN)


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]), sys.argv[2:])
    except OSError as exc:
        sys.exit(f"the host cannot be entered, it may have ended: {exc.strerror}")
