"""The channel between two hosts, over real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from relocation.credentials import LOCAL, Credentials, issue, plain_client

from quicferry.relocation.errors import ChannelClosed, ChannelError, ChannelProblem
from quicferry.relocation.link import listener as module
from quicferry.relocation.link.channel import Channel, connect
from quicferry.relocation.link.identity import Identity
from quicferry.relocation.link.listener import Listener, listen
from quicferry.relocation.link.messages import MAX_MESSAGE_SIZE, Limits

TIME = 10.0


@dataclass
class Hosts:
    """A listener that sends back what it is sent, and somebody that it knows."""

    listener: Listener
    client: Identity
    server: Credentials
    known: Credentials
    met: list[Channel] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.listener.address.port

    async def connect(self, identity: Identity | None = None, host: str = LOCAL) -> Channel:
        return await connect(host, self.port, identity or self.client, timeout=TIME)

    async def check_nobody_else_was_let_in(self) -> None:
        """Check that whom it knows gets through, and that nobody else has."""
        channel = await self.connect()
        channel.send_soon(b"hello")
        assert await channel.receive() == b"hello"
        assert len(self.met) == 1
        await channel.close()


async def echo(channel: Channel) -> None:
    while True:
        await channel.send(await channel.receive())


@asynccontextmanager
async def hosts(
    folder: Path,
    serve: Callable[[Channel], Awaitable[None]] = echo,
    known: Credentials | None = None,
    accepts: Limits | None = None,
) -> AsyncIterator[Hosts]:
    server, known = issue(), known or issue("127.0.0.9")
    met: list[Channel] = []

    async def on_channel(channel: Channel) -> None:
        met.append(channel)
        await serve(channel)

    identity = server.with_peers(folder / "server", known)
    listener = await listen(LOCAL, 0, identity, on_channel, accepts)
    try:
        yield Hosts(listener, known.with_peers(folder / "client", server), server, known, met)
    finally:
        await listener.close()


async def problem_of(attempt: Awaitable[Channel]) -> ChannelProblem:
    """Return why no channel comes about, or why nothing can be received from it."""

    async def use() -> None:
        channel = await attempt
        channel.send_soon(b"SECRET")
        await channel.receive()

    with pytest.raises(ChannelError) as caught:
        await use()
    assert "SECRET" not in str(caught.value)
    return caught.value.problem


async def until_closed(port: int, context: ssl.SSLContext | None, sent: bytes = b"") -> bytes:
    """Connect, send something, and return what comes until the other end closes."""
    try:
        reader, writer = await asyncio.open_connection(LOCAL, port, ssl=context)
        writer.write(sent)
        received = await reader.read()
    except OSError:
        return b""
    writer.close()
    return received


# What it carries


async def test_messages_arrive_whole_and_in_order(tmp_path: Path) -> None:
    async with hosts(tmp_path) as pair:
        channel = await pair.connect()
        sent = [b"", b"x", bytes(range(256)) * 100, b"end"]
        for message in sent:
            await channel.send(message)
        assert [await channel.receive() for _ in sent] == sent
        await channel.close()


async def test_each_end_knows_who_the_other_is(tmp_path: Path) -> None:
    async with hosts(tmp_path) as pair:
        channel = await pair.connect()
        channel.send_soon(b"hello")
        await channel.receive()
        assert channel.peer == "host 127.0.0.1"
        assert pair.met[0].peer == "host 127.0.0.9"
        await channel.close()


async def test_many_messages_at_once(tmp_path: Path) -> None:
    async with hosts(tmp_path) as pair:
        channel = await pair.connect()
        sent = [struct.pack("!I", number) * 375 for number in range(1000)]
        for message in sent:
            channel.send_soon(message)
        assert [await channel.receive() for _ in sent] == sent
        await channel.close()


async def test_the_largest_message_and_a_larger_one(tmp_path: Path) -> None:
    data = bytes(MAX_MESSAGE_SIZE)

    async def digest(channel: Channel) -> None:
        channel.send_soon(hashlib.sha256(await channel.receive()).digest())
        await channel.receive()

    async with hosts(tmp_path, digest) as pair:
        channel = await pair.connect()
        with pytest.raises(ChannelError) as caught:
            channel.send_soon(data + b"x")
        assert caught.value.problem is ChannelProblem.TOO_LARGE
        await channel.send(data)
        assert await channel.receive() == hashlib.sha256(data).digest()
        await channel.close()


async def test_a_peer_that_does_not_read_slows_the_sender_down(tmp_path: Path) -> None:
    may_read = asyncio.Event()
    message, count = bytes(1 << 20), 40

    async def read_later(channel: Channel) -> None:
        await may_read.wait()
        for _ in range(count):
            assert await channel.receive() == message
        channel.send_soon(b"all")
        await channel.receive()

    async with hosts(tmp_path, read_later) as pair:
        channel = await pair.connect()

        async def send() -> None:
            for _ in range(count):
                await channel.send(message)

        sending = asyncio.create_task(send())
        await asyncio.wait([sending], timeout=0.2)
        assert not sending.done(), "40 MiB fit into no buffer on the way"
        assert channel.is_congested
        may_read.set()
        await sending
        assert await channel.receive() == b"all"
        await channel.close()


# Its end


async def test_what_was_sent_before_the_end_arrives(tmp_path: Path) -> None:
    async def speak(channel: Channel) -> None:
        for number in range(100):
            channel.send_soon(b"%d" % number)

    async with hosts(tmp_path, speak) as pair:
        channel = await pair.connect()
        assert [await channel.receive() for _ in range(100)] == [b"%d" % n for n in range(100)]
        with pytest.raises(ChannelClosed):
            await channel.receive()
        channel.send_soon(b"to nobody")
        with pytest.raises(ChannelClosed):
            await channel.send(b"to nobody")
        await channel.close()


async def test_peer_that_vanishes_in_the_middle_of_a_message(tmp_path: Path) -> None:
    ends: asyncio.Queue[ChannelError] = asyncio.Queue()

    async def serve(channel: Channel) -> None:
        try:
            await echo(channel)
        except ChannelError as exc:
            ends.put_nowait(exc)

    async with hosts(tmp_path, serve) as pair:
        context = plain_client(tmp_path / "client")
        _, writer = await asyncio.open_connection(LOCAL, pair.port, ssl=context)
        writer.write(struct.pack("!I", 1000) + b"SECRET")
        await writer.drain()
        writer.close()
        end = await ends.get()
        assert isinstance(end, ChannelClosed)
        assert "in the middle of a message" in str(end)
        assert "SECRET" not in str(end)


async def test_message_that_is_announced_too_large(tmp_path: Path) -> None:
    ends: asyncio.Queue[ChannelError] = asyncio.Queue()

    async def serve(channel: Channel) -> None:
        try:
            await channel.receive()
        except ChannelError as exc:
            ends.put_nowait(exc)

    async with hosts(tmp_path, serve) as pair:
        context = plain_client(tmp_path / "client")
        assert (
            await until_closed(pair.port, context, struct.pack("!I", MAX_MESSAGE_SIZE + 1)) == b""
        )
        assert (await ends.get()).problem is ChannelProblem.TOO_LARGE


async def test_listener_that_closes_says_what_is_left(tmp_path: Path) -> None:
    async def wait(channel: Channel) -> None:
        channel.send_soon(b"ready")
        try:
            await channel.receive()
        finally:
            channel.send_soon(b"goodbye")

    async with hosts(tmp_path, wait) as pair:
        channel = await pair.connect()
        assert await channel.receive() == b"ready"
        closing = asyncio.create_task(pair.listener.close())
        assert await channel.receive() == b"goodbye"
        with pytest.raises(ChannelClosed):
            await channel.receive()
        await channel.close()
        await closing
        with pytest.raises(ChannelError) as caught:
            await pair.connect()
        assert caught.value.problem is ChannelProblem.REFUSED


# What may be sent


@pytest.mark.parametrize(
    ("start", "problem"),
    [
        (struct.pack("!IB", 5, 2), ChannelProblem.NOT_ACCEPTED),
        (struct.pack("!IB", 10 << 20, 2), ChannelProblem.NOT_ACCEPTED),
        (struct.pack("!I", 0), ChannelProblem.NOT_ACCEPTED),
        (struct.pack("!IB", 101, 1), ChannelProblem.TOO_LARGE),
        (struct.pack("!IB", 0xFFFFFFFF, 1), ChannelProblem.TOO_LARGE),
    ],
)
async def test_what_is_not_accepted_ends_the_channel_at_its_first_byte(
    tmp_path: Path, start: bytes, problem: ChannelProblem
) -> None:
    """Nothing of it is awaited or kept; what came before is received."""
    ends: asyncio.Queue[ChannelError] = asyncio.Queue()

    async def serve(channel: Channel) -> None:
        received.append(await channel.receive())
        try:
            await channel.receive()
        except ChannelError as exc:
            ends.put_nowait(exc)

    received: list[bytes] = []
    async with hosts(tmp_path, serve, accepts={1: 100}) as pair:
        context = plain_client(tmp_path / "client")
        before = b"\x01" * 100
        await until_closed(pair.port, context, struct.pack("!I", 100) + before + start)
        assert (await ends.get()).problem is problem
        assert received == [before]


async def test_kind_that_comes_after_the_size(tmp_path: Path) -> None:
    async with hosts(tmp_path, accepts={1: 100}) as pair:
        context = plain_client(tmp_path / "client")
        reader, writer = await asyncio.open_connection(LOCAL, pair.port, ssl=context)
        data = struct.pack("!I", 3) + b"\x01ab"
        for byte in data:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0)
        assert await reader.readexactly(7) == data
        writer.close()


async def test_many_small_messages_let_others_have_their_turn(tmp_path: Path) -> None:
    count = 5000
    turns = received = 0
    ready, all_there = asyncio.Event(), asyncio.Event()

    async def read(channel: Channel) -> None:
        nonlocal received
        channel.send_soon(b"ready")
        await ready.wait()
        for _ in range(count):
            await channel.receive()
            received += 1
        all_there.set()

    async with hosts(tmp_path, read) as pair:
        channel = await pair.connect()
        await channel.receive()
        for _ in range(count):
            channel.send_soon(b"small")
        channel.send_soon(b"last")
        ready.set()
        while not all_there.is_set():
            turns += 1
            await asyncio.sleep(0)
        assert received == count
        assert turns > count // 100
        await channel.close()


# Who is not let in


async def test_no_certificate(tmp_path: Path) -> None:
    async with hosts(tmp_path) as pair:
        assert await until_closed(pair.port, plain_client(None), b"xxxx") == b""
        await pair.check_nobody_else_was_let_in()


async def test_stranger(tmp_path: Path) -> None:
    async with hosts(tmp_path) as pair:
        stranger = issue("127.0.0.9").with_peers(tmp_path / "stranger", pair.server)
        assert await problem_of(pair.connect(stranger)) is ChannelProblem.NOT_TRUSTED_BY_PEER
        await pair.check_nobody_else_was_let_in()


async def test_server_that_is_a_stranger(tmp_path: Path) -> None:
    async with hosts(tmp_path) as pair:
        client = pair.known.with_peers(tmp_path / "other", issue())
        assert await problem_of(pair.connect(client)) is ChannelProblem.NOT_TRUSTED
        await pair.check_nobody_else_was_let_in()


OTHER_NAME = "signed"
"""With its signer's name a certificate counts as self-signed, and OpenSSL refuses it alone."""


@pytest.mark.parametrize("name", [None, OTHER_NAME])
@pytest.mark.parametrize("may_sign", [False, True])
async def test_certificate_that_one_on_the_list_has_signed(
    tmp_path: Path, may_sign: bool, name: str | None
) -> None:
    known = issue("127.0.0.9", may_sign=may_sign)
    async with hosts(tmp_path, known=known) as pair:
        signed = issue("127.0.0.9", name=name, signer=known)
        identity = signed.with_peers(tmp_path / "signed", pair.server)
        problem = await problem_of(pair.connect(identity))
        assert problem in (ChannelProblem.NOT_TRUSTED_BY_PEER, ChannelProblem.CLOSED)
        await pair.check_nobody_else_was_let_in()


@pytest.mark.parametrize("name", [None, OTHER_NAME])
async def test_server_that_one_on_the_list_has_signed(tmp_path: Path, name: str | None) -> None:
    listed = issue(may_sign=True)
    client = issue("127.0.0.9")
    server = issue(name=name, signer=listed).with_peers(tmp_path / "server", client)
    listener = await listen(LOCAL, 0, server, echo)
    identity = client.with_peers(tmp_path / "client", listed)
    attempt = connect(LOCAL, listener.address.port, identity, timeout=TIME)
    assert await problem_of(attempt) is ChannelProblem.NOT_TRUSTED
    await listener.close()


async def test_certificate_that_has_expired(tmp_path: Path) -> None:
    expired = issue("127.0.0.9", days=(-2, -1))
    server = issue().with_peers(tmp_path / "server", expired)
    met: list[Channel] = []

    async def on_channel(channel: Channel) -> None:
        met.append(channel)

    listener = await listen(LOCAL, 0, server, on_channel)
    context = plain_client(expired.write(tmp_path / "expired"))
    assert await until_closed(listener.address.port, context, b"xxxx") == b""
    assert not met
    await listener.close()


async def test_older_tls(tmp_path: Path) -> None:
    async with hosts(tmp_path) as pair:
        old = plain_client(tmp_path / "client", version=ssl.TLSVersion.TLSv1_2)
        assert await until_closed(pair.port, old, b"xxxx") == b""
        await pair.check_nobody_else_was_let_in()


async def test_other_application_protocol(tmp_path: Path) -> None:
    async with hosts(tmp_path) as pair:
        other = plain_client(tmp_path / "client", alpn="quicferry-handover/0")
        assert await until_closed(pair.port, other, b"xxxx") == b""
        await pair.check_nobody_else_was_let_in()


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", bytes(4096), b"\xff" * 70000])
async def test_no_tls_at_all(tmp_path: Path, sent: bytes) -> None:
    async with hosts(tmp_path) as pair:
        answer = await until_closed(pair.port, None, sent)
        assert len(answer) < 100, "an alert at most"
        await pair.check_nobody_else_was_let_in()


async def test_silent_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_LIMIT", 0.05)
    async with hosts(tmp_path) as pair:
        assert await until_closed(pair.port, None) == b""
        await pair.check_nobody_else_was_let_in()


async def test_many_silent_clients_keep_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_STRANGERS", 4)
    async with hosts(tmp_path) as pair:
        silent = [asyncio.create_task(until_closed(pair.port, None)) for _ in range(12)]
        await asyncio.wait(silent, return_when=asyncio.FIRST_COMPLETED)
        await pair.check_nobody_else_was_let_in()
        for task in silent:
            task.cancel()


async def test_too_many_channels_cost_the_most_silent_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_CHANNELS", 2)
    async with hosts(tmp_path) as pair:
        channels = []
        for _ in range(3):
            channel = await pair.connect()
            channel.send_soon(b"hello")
            assert await channel.receive() == b"hello"
            channels.append(channel)
        with pytest.raises(ChannelClosed):
            await channels[0].receive()
        for channel in channels[1:]:
            channel.send_soon(b"still here")
            assert await channel.receive() == b"still here"
        for channel in channels:
            await channel.close()


# Which host


NAMES = [
    ("127.0.0.1", LOCAL, None),
    ("::1", LOCAL, "0:0:0:0:0:0:0:1"),
    ("alpha.example", LOCAL, "alpha.example"),
    ("alpha.example", LOCAL, "ALPHA.example."),
    ("localhost", "localhost", None),
]
OTHER_NAMES = [
    ("127.0.0.2", LOCAL, None),
    ("127.0.0.1", LOCAL, "127.0.0.2"),
    ("alpha.example", LOCAL, None),
    ("alpha.example", LOCAL, "beta.example"),
    ("alpha.example", LOCAL, "example"),
    ("127.0.0.1", "localhost", None),
]


@asynccontextmanager
async def known_server(
    folder: Path, host: str, signer: Credentials | None = None, name: str | None = None
) -> AsyncIterator[tuple[int, Identity]]:
    """Provide the port of a server with some name, and a host that trusts it and others."""
    server, client = issue(host, name=name, signer=signer), issue("127.0.0.9", signer=signer)
    if signer is None:
        known = client.with_peers(folder / "client", issue("127.0.0.7"), server, issue("c.example"))
        identity = server.with_peers(folder / "server", client)
    else:
        known, identity = (
            each.with_ca(folder / side, signer)
            for each, side in ((client, "client"), (server, "server"))
        )
    listener = await listen(LOCAL, 0, identity, echo)
    try:
        yield listener.address.port, known
    finally:
        await listener.close()


@pytest.mark.parametrize("by_authority", [False, True])
@pytest.mark.parametrize(("server", "to", "peer"), NAMES)
async def test_host_that_was_looked_for(
    tmp_path: Path, server: str, to: str, peer: str | None, by_authority: bool
) -> None:
    ca = issue("ca", may_sign=True) if by_authority else None
    async with known_server(tmp_path, server, ca) as (port, identity):
        channel = await connect(to, port, identity, timeout=TIME, peer=peer)
        channel.send_soon(b"hello")
        assert await channel.receive() == b"hello"
        await channel.close()


@pytest.mark.parametrize("by_authority", [False, True])
@pytest.mark.parametrize(("server", "to", "peer"), OTHER_NAMES)
async def test_host_that_is_trusted_but_another_one(
    tmp_path: Path, server: str, to: str, peer: str | None, by_authority: bool
) -> None:
    ca = issue("ca", may_sign=True) if by_authority else None
    async with known_server(tmp_path, server, ca) as (port, identity):
        with pytest.raises(ChannelError, match=f"{peer or to}.*--peer NAME") as caught:
            await connect(to, port, identity, timeout=TIME, peer=peer)
        assert caught.value.problem is ChannelProblem.WRONG_HOST
        if not by_authority:
            assert f"it names {server}" in str(caught.value)


async def test_common_name_counts_for_nothing_beside_another_name(tmp_path: Path) -> None:
    async with known_server(tmp_path, "127.0.0.2", name=LOCAL) as (port, identity):
        attempt = connect(LOCAL, port, identity, timeout=TIME)
        assert await problem_of(attempt) is ChannelProblem.WRONG_HOST


async def test_connecting_that_is_cancelled_in_its_handshake(tmp_path: Path) -> None:
    """The peer sees the end at once, and not when it happens to be collected as garbage."""
    greeted, ended = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        greeted.set()
        with suppress(ConnectionError):
            await reader.read()
        ended.set()
        writer.close()

    identity = issue().with_peers(tmp_path / "host", issue())
    async with await asyncio.start_server(say_nothing, LOCAL, 0) as silent:
        port = silent.sockets[0].getsockname()[1]
        connecting = asyncio.create_task(connect(LOCAL, port, identity, timeout=TIME))
        await greeted.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await ended.wait()


# With an authority


@pytest.mark.parametrize("host", [LOCAL, "localhost"])
async def test_authority(tmp_path: Path, host: str) -> None:
    ca = issue("ca", may_sign=True)
    server = issue(host, signer=ca).with_ca(tmp_path / "server", ca)
    client = issue("127.0.0.9", signer=ca).with_ca(tmp_path / "client", ca)
    listener = await listen(LOCAL, 0, server, echo)
    channel = await connect(host, listener.address.port, client, timeout=TIME)
    channel.send_soon(b"hello")
    assert await channel.receive() == b"hello"
    await channel.close()
    await listener.close()


async def test_another_authority(tmp_path: Path) -> None:
    ca = issue("ca", may_sign=True)
    server = issue(signer=ca).with_ca(tmp_path / "server", ca)
    listener = await listen(LOCAL, 0, server, echo)
    stranger = issue("127.0.0.9").write(tmp_path / "stranger")
    assert await until_closed(listener.address.port, plain_client(stranger), b"xxxx") == b""
    await listener.close()


# What is wrong with the way there


async def test_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server((LOCAL, 0)) as reserved:
        port = reserved.getsockname()[1]
    identity = issue().with_peers(tmp_path / "host", issue())
    attempt = connect(LOCAL, port, identity, timeout=TIME)
    assert await problem_of(attempt) is ChannelProblem.REFUSED


async def test_server_that_says_nothing(tmp_path: Path) -> None:
    identity = issue().with_peers(tmp_path / "host", issue())
    with socket.create_server((LOCAL, 0)) as silent:
        attempt = connect(LOCAL, silent.getsockname()[1], identity, timeout=0.05)
        assert await problem_of(attempt) is ChannelProblem.TIMEOUT


async def test_server_of_something_else(tmp_path: Path) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n")
        await reader.read()
        writer.close()

    identity = issue().with_peers(tmp_path / "host", issue())
    async with await asyncio.start_server(greet, LOCAL, 0) as other:
        attempt = connect(LOCAL, other.sockets[0].getsockname()[1], identity, timeout=TIME)
        assert await problem_of(attempt) is ChannelProblem.WRONG_PROTOCOL


async def test_port_in_use(tmp_path: Path) -> None:
    async with hosts(tmp_path) as pair:
        with pytest.raises(ChannelError) as caught:
            await listen(LOCAL, pair.port, pair.client, echo)
        assert caught.value.problem is ChannelProblem.CANNOT_LISTEN
