"""Runs in the virtual machine, and runs programs there for the machine outside.

Run as a script, at boot; it imports nothing but the standard library. It is spoken to through a
virtio serial port, by messages: a kind of one byte, a length of four, and so many bytes. It takes
one order at a time::

    order (JSON), input   ->
                          <-  output | error, as they are written
                          <-  exit (the status, as `subprocess` counts) | late

When the other side closes the port, this ends, and with it the virtual machine.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO

HEADER = struct.Struct(">cI")
READY, ORDER, INPUT, OUTPUT, ERROR, EXIT, LATE = (b"R", b"o", b"i", b"O", b"E", b"X", b"L")

_PORT = "/dev/vport0p1"
_PORT_LIMIT = 20.0
_LOOK_AGAIN = 0.05
_CHUNK = 1 << 16
_CANNOT_RUN = 127


def main() -> None:
    """Carry out orders until the port is closed."""
    with _await_port().open("r+b", buffering=0) as port:
        _send(port, READY)
        while True:
            _, order = _receive(port)
            _, data = _receive(port)
            _carry_out(port, json.loads(order), data)


def _await_port() -> Path:
    """Return the port once the kernel has found it; there is no udev to say so."""
    port = Path(_PORT)
    ends_at = time.monotonic() + _PORT_LIMIT
    while not port.exists():
        if time.monotonic() > ends_at:
            sys.exit(f"there is no {_PORT}")
        time.sleep(_LOOK_AGAIN)  # between two looks: nothing announces the device
    return port


def _carry_out(port: BinaryIO, order: dict[str, Any], data: bytes) -> None:
    # A file, so that nothing has to be written to the program while its output is read.
    with os.fdopen(os.memfd_create("input"), "w+b", buffering=0) as stdin:
        stdin.write(data)
        stdin.seek(0)
        try:
            program = subprocess.Popen(
                order["command"],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **order["environment"]},
                cwd=order["directory"],
                start_new_session=True,
            )
        except OSError as exc:
            _send(port, ERROR, f"{order['command'][0]} cannot be run: {exc.strerror}\n".encode())
            _send(port, EXIT, str(_CANNOT_RUN).encode())
            return
    with program:
        if _pass_on(port, program, time.monotonic() + order["limit"]):
            _send(port, EXIT, str(program.returncode).encode())
        else:
            os.killpg(program.pid, signal.SIGKILL)
            _send(port, LATE)


def _pass_on(port: BinaryIO, program: subprocess.Popen[bytes], ends_at: float) -> bool:
    """Pass the output on until the program has ended; return whether it has, in time.

    What it leaves running may keep the pipes open: only what is in them by then is passed on.
    """
    assert program.stdout is not None
    assert program.stderr is not None
    ended = os.pidfd_open(program.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            for pipe, kind in ((program.stdout, OUTPUT), (program.stderr, ERROR)):
                os.set_blocking(pipe.fileno(), False)
                selector.register(pipe, selectors.EVENT_READ, kind)
            while time.monotonic() < ends_at:
                ready = selector.select(ends_at - time.monotonic())
                for key, _ in ready:
                    if key.data is not None and not _pass_on_once(port, key.fd, key.data):
                        selector.unregister(key.fileobj)
                if [key.fd for key, _ in ready] == [ended]:  # and the pipes have nothing more
                    program.wait()
                    return True
    finally:
        os.close(ended)
    return False


def _pass_on_once(port: BinaryIO, pipe: int, kind: bytes) -> bool:
    data = os.read(pipe, _CHUNK)
    if data:
        _send(port, kind, data)
    return bool(data)


def _send(port: BinaryIO, kind: bytes, data: bytes = b"") -> None:
    left = memoryview(HEADER.pack(kind, len(data)) + data)
    while left:
        left = left[port.write(left) :]


def _receive(port: BinaryIO) -> tuple[bytes, bytes]:
    kind, length = HEADER.unpack(_read(port, HEADER.size))
    return kind, _read(port, length)


def _read(port: BinaryIO, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = port.read(length - len(parts))
        if not part:
            sys.exit(0)
        parts += part
    return bytes(parts)


if __name__ == "__main__":
    main()
