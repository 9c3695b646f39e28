"""A router of connections with an echo service, and datagrams for it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from aioquic.quic.events import QuicEvent, StreamDataReceived
from loopback import at, client_configuration, server_configuration

import quicferry
from quicferry.io import ConnectionProtocol, ConnectionRouter


class Echo(ConnectionProtocol):
    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            if event.data == b"fail":
                raise RuntimeError("this connection fails")
            self.connection.send_stream_data(event.stream_id, event.data, event.end_stream)


class Running:
    """A router with an echo service, closed at the end of the context."""

    def __init__(self, port: int = 0, **arguments: Any) -> None:
        arguments.setdefault("configuration", server_configuration())
        self.router = ConnectionRouter(
            at("127.0.0.1", port), create_protocol=Echo, linger=0.2, **arguments
        )
        self.port = self.router.endpoint.address.port

    async def __aenter__(self) -> Running:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.router.close()

    def connect(self, **arguments: Any) -> Any:
        arguments.setdefault("configuration", client_configuration())
        return quicferry.connect("127.0.0.1", self.port, **arguments)


async def echo(client: Any, data: bytes) -> bytes:
    reader, writer = await client.create_stream()
    writer.write(data)
    writer.write_eof()
    answer: bytes = await reader.read()
    return answer


async def exchange(port: int, datagram: bytes, until: bytes) -> list[bytes]:
    """Send a datagram, then `until`, and return the answers up to that to `until`."""
    loop = asyncio.get_running_loop()
    answers: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(("127.0.0.1", port))
        await loop.sock_sendall(sock, datagram)
        await loop.sock_sendall(sock, until)
        while not answers or b"untilcid" not in answers[-1]:
            answers.append(await loop.sock_recv(sock, 65536))
    return answers[:-1]


def long_header(version: int, cid: bytes, size: int = 1200) -> bytes:
    start = b"\xc0" + version.to_bytes(4, "big") + bytes([8]) + b"destcid0" + bytes([8]) + cid
    return start + bytes(size - len(start))


UNTIL = long_header(0x1A2A3A4A, b"untilcid")
"""It is answered by version negotiation, so what was sent before it has been seen."""
