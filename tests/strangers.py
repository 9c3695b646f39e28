"""Strangers that knock at a server: sockets of addresses that need not be their own."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from initials import HELLO, crypto_frame, initial, is_refusal
from routed import UNTIL


class Stranger:
    """A socket at an address of loopback; its server has handled what it sends when that is done.

    Attributes:
        answers: What has come from the server.
    """

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self.answers: list[bytes] = []
        self._port = port
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind((host, 0))
        self._socket.connect(("127.0.0.1", port))

    def go_to(self, server: str) -> None:
        """Send to another host address from now on."""
        self._socket.connect((server, self._port))

    def throw(self, datagrams: Iterable[bytes]) -> None:
        """Send datagrams before the server can look at any of them."""
        for datagram in datagrams:
            self._socket.send(datagram)

    async def send(self, datagrams: Iterable[bytes]) -> list[bytes]:
        """Send datagrams and return the answers, in groups that fit into the server's buffer."""
        loop = asyncio.get_running_loop()
        waiting = list(datagrams)
        answers: list[bytes] = []
        while waiting:
            group, waiting = waiting[:30], waiting[30:]
            for datagram in (*group, UNTIL):
                await loop.sock_sendall(self._socket, datagram)
            while not answers or b"untilcid" not in answers[-1]:
                answers.append(await loop.sock_recv(self._socket, 65536))
            answers.pop()
        return answers

    def close(self) -> None:
        self._socket.close()


@asynccontextmanager
async def stranger(port: int, host: str = "127.0.0.1") -> AsyncIterator[Stranger]:
    it = Stranger(port, host)
    try:
        yield it
    finally:
        it.close()


def kind(datagram: bytes) -> QuicPacketType:
    return pull_quic_header(Buffer(data=datagram), host_cid_length=8).packet_type


def knock(token: bytes = b"", destination: bytes | None = None) -> bytes:
    """Return a valid Initial packet with a ClientHello, of a client that will never go on."""
    return initial(crypto_frame(0, HELLO), destination=destination or os.urandom(8), token=token)


async def knock_with_token(it: Stranger) -> bytes | None:
    """Knock as a client that receives the Retry packet.

    Returns:
        The connection ID that it uses then; None if the server has refused it.
    """
    answers = await it.send([knock()])
    [retry] = [each for each in answers if kind(each) is QuicPacketType.RETRY]
    header = pull_quic_header(Buffer(data=retry))
    cid = header.source_cid
    for answer in await it.send([knock(header.token, cid)]):
        if is_refusal(answer, cid):
            return None
    return cid
