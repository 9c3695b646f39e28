"""Where the throw-away process is restored: its own network and process IDs, like another host.

A file on its own, of the standard library only, so that it starts at once:
``python -I -S landing.py PATH --port=PORT COMMAND...`` in new namespaces. COMMAND restores the
process, which is asked then, at its UDP socket and at its Unix socket. What it answers is printed,
a line for each. It ends with this one, because it lives in its process ID namespace.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import subprocess
import sys

LOOPBACK = "127.0.0.1"
LIMIT = 30.0
"""Seconds for the restore, and for an answer."""

_REQUEST = "16sH22x"  # struct ifreq (netdevice(7))
_GET_FLAGS = 0x8913
_SET_FLAGS = 0x8914
_UP = 1


def raise_loopback() -> None:
    """Switch the loopback interface of this network namespace on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        now = fcntl.ioctl(sock, _GET_FLAGS, struct.pack(_REQUEST, b"lo", 0))
        _, flags = struct.unpack(_REQUEST, now)
        fcntl.ioctl(sock, _SET_FLAGS, struct.pack(_REQUEST, b"lo", flags | _UP))


def ask(port: int) -> str:
    """Return what the process answers at its UDP socket.

    Args:
        port: The UDP port, on loopback.

    Raises:
        OSError: If it does not answer.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(LIMIT)
        sock.connect((LOOPBACK, port))
        sock.send(b"?")
        return sock.recv(1500).decode()


def ask_unix(path: str) -> str:
    """Return what the process answers at its Unix socket.

    Args:
        path: Where it listens.

    Raises:
        OSError: If it does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(LIMIT)
        sock.connect(path)
        answer = b""
        while more := sock.recv(1500):
            answer += more
        return answer.decode()


def land(path: str, port: int, command: list[str]) -> int:
    """Restore the process, print what it answers, and return the exit status."""
    raise_loopback()
    done = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=LIMIT, check=False)
    if done.returncode:
        print("it was not restored", file=sys.stderr)
        return 1
    try:
        print(ask(port))
        print(ask_unix(path))
    except OSError as exc:
        print(f"it does not answer any more after the restore: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(land(sys.argv[1], int(sys.argv[2].removeprefix("--port=")), sys.argv[3:]))
