"""What `calibrate` runs at the ends of a link: senders and receivers of UDP and TCP.

Run as a script: `probe.py TASK ARGUMENT ...`; it imports nothing but the standard library, and
prints its result as JSON. Times of arrival are the kernel's, taken when the packet comes out of the
link: a program that waits for its turn on a busy machine does not lengthen the path. A receiver
says `ready` first, and ends when it has heard nothing for a while.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator

PORT = 5900
QUIET = 1.0
"""Seconds of silence that end a receiver."""
PATIENCE = 15.0
"""Seconds that a receiver waits for the first packet."""

_HEADERS = 28
"""Bytes of IPv4 and UDP in front of the data."""
_FULL = 1500 - _HEADERS
_BURST = 8
"""Packets that `flood` gives to the kernel at once (UDP_SEGMENT)."""
_UDP_SEGMENT = 103
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_BUFFER = 16 << 20
_PRIORITY = 1
_NUMBER = struct.Struct("!Q")
_TIMESPEC = struct.Struct("@qq")

Arrival = tuple[bytes, tuple[str, int], float]


def _be_punctual() -> None:
    """Let nothing come between a time that is read and the packet that carries it."""
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_PRIORITY))


def _open() -> socket.socket:
    endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    endpoint.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    endpoint.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    return endpoint


def _receive(endpoint: socket.socket, first: float = PATIENCE) -> Iterator[Arrival]:
    """Yield the datagrams with their sources and times, until there is silence."""
    endpoint.settimeout(first)
    try:
        while True:
            data, ancillary, _, source = endpoint.recvmsg(2048, 64)
            seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
            yield data, source, seconds + nanoseconds / 1e9
            endpoint.settimeout(QUIET)
    except TimeoutError:
        return


def echo() -> None:
    """Answer every datagram with the time of its arrival, and that of the answer."""
    endpoint = _open()
    endpoint.bind(("0.0.0.0", PORT))
    print("ready", flush=True)
    for data, source, arrived in _receive(endpoint):
        endpoint.sendto(data + struct.pack("!dd", arrived, time.time()), source)


def _sleep_until(at: float) -> None:
    while (left := at - time.monotonic()) > 0:
        time.sleep(left)  # the rate of sending is what is wanted, not a wait for somebody


def ask(address: str, count: int, interval: float) -> dict[str, list[float]]:
    """Send datagrams to an `echo`, and return what the path took, there and back, in seconds."""
    endpoint = _open()
    endpoint.connect((address, PORT))
    endpoint.setblocking(False)
    rtts: list[float] = []
    begin = time.monotonic()
    for number in range(count):
        _sleep_until(begin + number * interval)
        endpoint.send(struct.pack("!d", time.time()))
    for data, _, arrived in _receive(endpoint, QUIET):
        sent, there, back = struct.unpack("!ddd", data)
        rtts.append(there - sent + arrived - back)
    return {"rtts": rtts}


def flood(address: str, mbit: float, seconds: float) -> dict[str, int]:
    """Send full-size packets at a rate, several at once; return how many."""
    endpoint = _open()
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    endpoint.connect((address, PORT))
    count = int(mbit * 1e6 * seconds / 8 / 1500 / _BURST)
    segment = (socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("@H", _FULL))
    rest = bytes(_FULL - _NUMBER.size)
    begin = time.monotonic()
    for number in range(count):
        _sleep_until(begin + number * seconds / count)
        numbers = range(number * _BURST, (number + 1) * _BURST)
        endpoint.sendmsg([_NUMBER.pack(each) + rest for each in numbers], [segment])
    return {"sent": count * _BURST}


def sink() -> dict[str, object]:
    """Receive what `flood` sends; return the rate of whole packets, and the numbers received."""
    endpoint = _open()
    endpoint.bind(("0.0.0.0", PORT))
    print("ready", flush=True)
    total = 0
    numbers: list[int] = []
    times: list[float] = []
    for data, _, arrived in _receive(endpoint):
        total += len(data) + _HEADERS
        numbers.append(*_NUMBER.unpack_from(data))
        times.append(arrived)
    seconds = times[-1] - times[0] if len(times) > 1 else 0.0
    return {"mbit": total * 8e-6 / seconds if seconds else 0.0, "numbers": numbers}


def download() -> None:
    """Accept a TCP connection, and send into it until the peer has had enough."""
    with socket.create_server(("0.0.0.0", PORT)) as listener:
        listener.settimeout(PATIENCE)
        print("ready", flush=True)
        connection, _ = listener.accept()
    data = bytes(1 << 20)
    with connection:
        connection.settimeout(PATIENCE)
        try:
            while True:
                connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return


def fetch(address: str, seconds: float) -> dict[str, float]:
    """Receive by TCP for a while, and return the rate in Mbit/s."""
    total = 0
    with socket.create_connection((address, PORT), PATIENCE) as connection:
        begin = time.monotonic()
        while (spent := time.monotonic() - begin) < seconds:
            total += len(connection.recv(1 << 20))
    return {"mbit": total * 8e-6 / spent}


def main(task: str, arguments: list[str]) -> None:
    """Do a task, and print its result."""
    result: object = None
    match task:
        case "echo":
            _be_punctual()
            echo()
        case "ask":
            _be_punctual()
            result = ask(arguments[0], int(arguments[1]), float(arguments[2]))
        case "flood":
            result = flood(arguments[0], float(arguments[1]), float(arguments[2]))
        case "sink":
            result = sink()
        case "download":
            download()
        case "fetch":
            result = fetch(arguments[0], float(arguments[1]))
        case _:
            raise SystemExit(f"there is no task {task}")
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
