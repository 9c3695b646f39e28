"""A client that does what it is told, whether QUIC and HTTP/3 allow it or not."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterator

from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import FrameType, StreamType
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    QuicEvent,
)

HANDSHAKE_LIMIT = 10.0
LEAST = 0.5
"""Seconds that an attack takes from its first connection on, however late that is."""
_MOST_READ = 64
_Address = tuple[str, int]

REQUEST_FIELDS = (
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"siege.example"),
    (b":path", b"/"),
)


def configuration() -> QuicConfiguration:
    """Return the configuration of a client that trusts every server."""
    return QuicConfiguration(
        alpn_protocols=["h3"], server_name="siege.example", verify_mode=ssl.CERT_NONE
    )


class Puppet:
    """A QUIC connection of aioquic's own class, and its socket.

    Args:
        server: Where the server is.

    Attributes:
        quic: The connection; what is done with it leaves with the next `turn`.
        events: What has happened since the last `turn`.
        is_over: Whether the connection has ended.
    """

    def __init__(self, server: _Address) -> None:
        self.quic = QuicConnection(configuration=configuration())
        self.events: list[QuicEvent] = []
        self.is_over = False
        self.has_connected = False
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.connect(server)
        self._server = server
        self.quic.connect(server, time.monotonic())

    def turn(self, *, reads: int = _MOST_READ) -> None:
        """Take in so many datagrams that have come, and send what is to be sent."""
        now = time.monotonic()
        for data in self._datagrams(reads):
            self.quic.receive_datagram(data, self._server, now)
        timer = self.quic.get_timer()
        if timer is not None and timer <= now:
            self.quic.handle_timer(now)
        self.events = []
        while (event := self.quic.next_event()) is not None:
            self.events.append(event)
            self.is_over = self.is_over or isinstance(event, ConnectionTerminated)
            self.has_connected = self.has_connected or isinstance(event, HandshakeCompleted)
        for data, _ in self.quic.datagrams_to_send(now):
            try:
                self._socket.send(data)
            except OSError:
                return  # its buffer is full, or nobody is there any more

    def open(self, content: bytes, *, ends: bool = False) -> int:
        """Open a stream of requests, and return it."""
        stream_id = self.quic.get_next_available_stream_id()
        self.quic.send_stream_data(stream_id, content, ends)
        return stream_id

    def close(self) -> None:
        """Forget the connection; the server is told nothing."""
        self._socket.close()

    def _datagrams(self, most: int) -> Iterator[bytes]:
        for _ in range(most):
            try:
                yield self._socket.recv(65536)
            except OSError:
                return


def connected(server: _Address, until: float) -> Puppet | None:
    """Return a puppet that has shaken hands and sent its settings.

    Args:
        server: Where the server is.
        until: When no further attempt is made (`time.monotonic`).

    Returns:
        None if no attempt has succeeded; there is at least one.
    """
    while True:
        puppet = Puppet(server)
        limit = time.monotonic() + HANDSHAKE_LIMIT
        while not (puppet.has_connected or puppet.is_over) and time.monotonic() < limit:
            puppet.turn()
            time.sleep(0.002)
        if puppet.has_connected:
            control = puppet.quic.get_next_available_stream_id(is_unidirectional=True)
            settings = encode_uint_var(StreamType.CONTROL) + frame(FrameType.SETTINGS, b"")
            puppet.quic.send_stream_data(control, settings)
            puppet.turn()
            return puppet
        puppet.close()
        if time.monotonic() >= until:
            return None
        time.sleep(0.05)


def hold(server: _Address, until: float, act: Callable[[Puppet], None], *, pause: float) -> None:
    """Act on a connection again and again, and on a new one whenever it ends.

    Args:
        server: Where the server is.
        until: When the attack is over; half a second of it there is in any case.
        act: Does something; the puppet's turn follows.
        pause: Seconds between two turns.
    """
    least = LEAST
    while least or time.monotonic() < until:
        puppet = connected(server, until)
        if puppet is None:
            return
        until, least = max(until, time.monotonic() + least), 0.0
        while not puppet.is_over and time.monotonic() < until:
            act(puppet)
            puppet.turn()
            time.sleep(pause)
        puppet.close()


def frame(kind: int, content: bytes, said: int | None = None) -> bytes:
    """Return a frame of HTTP/3, which may say that it is longer than it is."""
    return encode_uint_var(kind) + encode_uint_var(len(content) if said is None else said) + content


def request(*changed: tuple[bytes, bytes], more: tuple[tuple[bytes, bytes], ...] = ()) -> bytes:
    """Return the HEADERS frame of a request in which nothing is compressed.

    Args:
        changed: Fields instead of those of the same name.
        more: Fields beside.
    """
    instead = dict(changed)
    fields = [(name, instead.get(name, value)) for name, value in REQUEST_FIELDS]
    return frame(FrameType.HEADERS, b"\0\0" + b"".join(_line(*field) for field in (*fields, *more)))


def _line(name: bytes, value: bytes) -> bytes:
    """Return a field line with a literal name (RFC 9204 4.5.6)."""
    return _integer(0x20, 3, len(name)) + name + _integer(0, 7, len(value)) + value


def _integer(first: int, prefix: int, value: int) -> bytes:
    most = (1 << prefix) - 1
    if value < most:
        return bytes([first | value])
    value -= most
    rest = bytearray([first | most])
    while value >= 128:
        rest.append(value & 127 | 128)
        value >>= 7
    rest.append(value)
    return bytes(rest)
