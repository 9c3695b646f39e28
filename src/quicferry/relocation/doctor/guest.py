"""The process that is moved to see whether this host can do it.

It has what a server has: a UDP socket, a listening Unix socket, and memory. Both sockets answer
with how often it was asked and with the hash of its memory. A file on its own, of the standard
library only, so that it starts at once: ``python -I -S guest.py PATH PORT READY``, where READY is a
file descriptor that is written to and closed when it can be asked.
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import sys

_SIZE = 4 << 20
_PAGE = 4096


def serve(path: str, port: int, ready: int) -> None:
    """Answer until killed.

    Args:
        path: Of the Unix socket.
        port: Of the UDP socket.
        ready: The file descriptor to tell when it is so.
    """
    memory = bytearray(_PAGE) + os.urandom(_SIZE)
    # The wildcard, as a server that is moved to another host's address has.
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("0.0.0.0", port))
    unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    unix.bind(path)
    unix.listen()
    os.write(ready, b"\0")
    os.close(ready)
    while True:
        readable, _, _ = select.select([udp, unix], [], [])
        # The first page changes with each question, so that there is something new to carry.
        asked = int.from_bytes(memory[:_PAGE], "big") + 1
        memory[:_PAGE] = asked.to_bytes(_PAGE, "big")
        answer = f"{asked} {hashlib.sha256(memory[_PAGE:]).hexdigest()}".encode()
        if udp in readable:
            _, address = udp.recvfrom(1500)
            udp.sendto(answer, address)
        else:
            connection, _ = unix.accept()
            with connection:
                connection.sendall(answer)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
