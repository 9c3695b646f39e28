from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aioquic.asyncio.client import connect as stock_connect
from aioquic.buffer import Buffer
from aioquic.quic.packet import QuicErrorCode, QuicPacketType, pull_quic_header
from initials import HELLO, crypto_frame, first_flight, initial
from loopback import Filter, at, client_configuration, stock_configuration
from routed import UNTIL, Running, echo, exchange, long_header

from quicferry.io import (
    AddressValidation,
    ConnectFailed,
    ConnectionLost,
    ConnectionProtocol,
    HandshakeCounts,
    Handshakes,
    StatelessReset,
)

SECRET = bytes(range(32))


async def test_version_negotiation() -> None:
    async with Running() as running:
        [answer] = await exchange(running.port, long_header(0x0A0A0A0A, b"mycid000"), UNTIL)
        header = pull_quic_header(Buffer(data=answer))
        assert header.packet_type == QuicPacketType.VERSION_NEGOTIATION
        assert header.destination_cid == b"mycid000"
        assert header.supported_versions == [1, 0x6B3343CF]


@pytest.mark.parametrize(("destination", "source"), [(21, 8), (8, 255), (255, 255), (0, 0)])
async def test_version_negotiation_with_connection_ids_of_any_length(
    destination: int, source: int
) -> None:
    theirs, mine = bytes(range(destination)), bytes(reversed(range(source)))
    start = b"\xff\x1a\x2a\x3a\x4a" + bytes([destination]) + theirs + bytes([source]) + mine
    async with Running() as running:
        [answer] = await exchange(running.port, start.ljust(1200, b"\0"), UNTIL)
    head = b"\0\0\0\0" + bytes([source]) + mine + bytes([destination]) + theirs
    assert answer[1:] == head + b"\0\0\0\x01\x6b\x33\x43\xcf"


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\x40",
        b"\x40" + bytes(50),
        b"\xc0",
        b"\xff" * 300,
        b"\xc0\0\0\0\1" + b"\xff" * 1200,
        long_header(0, b"loopcid0"),
        long_header(0x0A0A0A0A, b"smallcid", 1199),
        long_header(1, b"smallcid", 1199),
    ],
    ids=[
        "empty",
        "byte",
        "short",
        "long",
        "cut-off",
        "long-ids",
        "negotiation",
        "small-other",
        "small-initial",
    ],
)
async def test_no_answer(datagram: bytes) -> None:
    async with Running() as running:
        assert await exchange(running.port, datagram, UNTIL) == []
        assert not running.router.protocols


async def test_retry() -> None:
    async with (
        Running(retry=True) as running,
        running.connect() as client,
        stock_connect("127.0.0.1", running.port, configuration=stock_configuration()) as stock,
    ):
        assert await echo(client, b"validated") == b"validated"
        assert await echo(stock, b"validated") == b"validated"


@pytest.mark.parametrize("size", [1, 12, 28, 100])
async def test_a_token_of_another_server_counts_for_nothing(size: int) -> None:
    async with Running(retry=True) as running:
        configuration = client_configuration(token=b"x" * size)
        async with running.connect(configuration=configuration) as client:
            assert await echo(client, b"validated") == b"validated"


async def test_a_retry_token_of_no_use_ends_the_attempt() -> None:
    """Its client has had a Retry packet, and takes no other one."""
    async with Running(retry=True) as running:
        [retry] = await exchange(running.port, first_flight()[0], UNTIL)
        header = pull_quic_header(Buffer(data=retry))
        assert header.packet_type == QuicPacketType.RETRY
        configuration = client_configuration(token=header.token)
        with pytest.raises(ConnectFailed) as caught:
            async with running.connect(configuration=configuration):
                pass
        assert caught.value.error_code == QuicErrorCode.INVALID_TOKEN


@pytest.mark.parametrize("retries", [True, False])
async def test_hosts_that_share_a_key_take_each_others_tokens(retries: bool) -> None:
    """The Retry packet comes from one server, and what follows goes to another one."""
    async with (
        Running(validation=AddressValidation(SECRET), retry=True) as first,
        Running(validation=AddressValidation(SECRET), retry=retries) as second,
    ):

        class Moved(Filter):
            retried = False

            def send(self, data: bytes, addr: Any) -> None:
                sock = first if not self.retried else second
                self.inner.send(data, (addr[0], sock.port))

            def deliver(self, data: bytes, addr: Any) -> None:
                kind = pull_quic_header(Buffer(data=data), host_cid_length=8).packet_type
                self.retried = self.retried or kind == QuicPacketType.RETRY
                self.inner.deliver(data, (addr[0], first.port))

        link = Moved()
        async with first.connect(wrap_transport=link) as client:
            assert await echo(client, b"validated") == b"validated"
            assert link.retried
            assert len(second.router.protocols) == 1
            assert not first.router.protocols


# Stateless reset


async def test_a_client_of_a_server_that_was_killed_knows_at_once() -> None:
    async with Running(resets=StatelessReset(SECRET)) as running, running.connect() as client:
        assert await echo(client, b"before") == b"before"
        running.router.close()  # as if it were killed: nobody is told
        async with Running(running.port, resets=StatelessReset(SECRET)) as again:
            ping = asyncio.create_task(client.ping())
            lost = await client.wait_lost()
            assert lost.reason.startswith("stateless reset")
            with pytest.raises(ConnectionLost, match="stateless reset"):
                await ping
            async with again.connect() as another:
                assert await echo(another, b"again") == b"again"


async def test_a_server_with_another_key_ends_nothing() -> None:
    async with Running(resets=StatelessReset(SECRET)) as running:
        link = Filter()
        got = asyncio.Event()
        async with running.connect(wrap_transport=link) as client:
            await client.ping()
            running.router.close()

            def received(data: bytes, addr: Any) -> bool:
                got.set()
                return False

            link.drops_received = received
            async with Running(running.port, resets=StatelessReset(bytes(32))):
                ping = asyncio.create_task(client.ping())
                await got.wait()
                await asyncio.sleep(0)
                assert client.closed_by is None
            client.close()
            await asyncio.gather(ping, return_exceptions=True)


def unknown(cid: bytes, size: int = 50) -> bytes:
    """A packet of a connection that nobody knows."""
    return b"\x41" + cid + bytes(size - 1 - len(cid))


async def test_what_is_answered_by_a_reset() -> None:
    resets = StatelessReset(SECRET)
    async with Running(resets=resets) as running:
        address = ("127.0.0.1", running.port)
        [answer] = await exchange(running.port, unknown(b"unknown0"), UNTIL)
        assert answer[0] & 0xC0 == 0x40
        assert answer.endswith(resets.token(address, b"unknown0"))
        for datagram in (b"\x41", b"\x41short", unknown(b"unknown0", 21)):
            assert await exchange(running.port, datagram, UNTIL) == []
        running.router.handshakes = Handshakes.REFUSED  # it may be about to move
        assert await exchange(running.port, unknown(b"unknown0"), UNTIL) == []
        running.router.handshakes = Handshakes.ACCEPTED
        running.router.endpoint.rebind(at("127.0.0.2", running.port))
        assert await exchange(running.port, unknown(b"unknown0"), UNTIL) == []


async def test_a_connection_that_was_given_away_is_not_reset() -> None:
    async with Running(resets=StatelessReset(SECRET)) as running, running.connect() as client:
        await client.ping()
        await client.ping()  # the first one may have come together with the handshake
        [protocol] = running.router.protocols
        running.router.forget(protocol)
        for cid in protocol.connection.own_connection_ids:
            assert await exchange(running.port, unknown(cid), UNTIL) == []


async def test_nobody_else_can_end_a_connection_by_a_reset() -> None:
    """Not by the tokens that another host has, nor from another address."""
    resets = StatelessReset(SECRET)
    async with (
        Running(resets=resets) as running,
        Running(resets=resets) as other,
        running.connect() as client,
    ):
        await client.ping()
        [protocol] = running.router.protocols
        home, there = ("127.0.0.1", running.port), ("127.0.0.1", other.port)
        ids = protocol.connection.own_connection_ids
        for cid in ids:
            [answer] = await exchange(other.port, unknown(cid), UNTIL)
            assert answer.endswith(resets.token(there, cid))
            client.receive(answer, home)
            client.receive(bytes(30) + resets.token(home, cid), there)
            client.settle()
        assert await echo(client, b"lives") == b"lives"
        for cid in ids:
            client.receive(bytes(30) + resets.token(home, cid), home)
            client.settle()
        assert client.closed_by is not None


async def test_refused_handshakes() -> None:
    async with Running() as running, running.connect() as client:
        running.router.handshakes = Handshakes.REFUSED
        with pytest.raises(ConnectFailed, match="cannot connect to 127") as caught:
            async with running.connect():
                pass
        assert caught.value.error_code == QuicErrorCode.CONNECTION_REFUSED
        assert await echo(client, b"stays") == b"stays"
        running.router.handshakes = Handshakes.ACCEPTED
        async with running.connect() as other:
            assert await echo(other, b"again") == b"again"


async def test_an_address_just_left_refuses_new_clients() -> None:
    async with Running() as running:
        running.router.endpoint.rebind(at("127.0.0.2", running.port))
        with pytest.raises(ConnectFailed) as caught:
            async with running.connect():
                pass
        assert caught.value.error_code == QuicErrorCode.CONNECTION_REFUSED


async def test_one_failing_connection_leaves_the_others_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Running() as running, running.connect() as first, running.connect() as second:
        await echo(first, b"fail")
        assert (await first.wait_lost()).error_code == QuicErrorCode.INTERNAL_ERROR
        assert "this connection fails" in caplog.text
        assert await echo(second, b"lives") == b"lives"


async def test_a_connection_id_is_known_as_soon_as_it_has_been_sent() -> None:
    """It was taken for one of a connection that is gone, until the server had heard more."""

    link = Filter()

    class Eager(ConnectionProtocol):
        has_changed = False

        def receive(self, data: bytes, addr: Any) -> None:
            super().receive(data, addr)
            if not self.has_changed and self.connection.spare_connection_ids:
                self.has_changed = True
                before = self.connection._peer_cid.cid
                link.drops_sent = lambda data, addr: data[1:9] == before  # it is overtaken
                self.connection.change_connection_id()

    async with (
        Running(resets=StatelessReset(SECRET)) as running,
        running.connect(create_protocol=Eager, wrap_transport=link) as client,
    ):
        assert await echo(client, b"at once") == b"at once"
        assert client.has_changed


async def test_connections_are_forgotten() -> None:
    async with Running() as running:
        async with running.connect() as client:
            assert await echo(client, b"x") == b"x"
            client.change_connection_id()
            assert await echo(client, b"y") == b"y"
            [protocol] = running.router.protocols
        await protocol.wait_closed()
        assert not running.router.protocols


async def test_a_lost_close_is_repeated() -> None:
    async with Running() as running:
        link = Filter()
        async with running.connect(wrap_transport=link) as client:
            assert await echo(client, b"x") == b"x"
            [protocol] = running.router.protocols
            link.drops_received = lambda data, addr: True
            protocol.close(7, "lost at first")
            link.mend()
            _, writer = await client.create_stream()
            writer.write(b"anyone there?")
            lost = await client.wait_lost()
            assert (lost.error_code, lost.reason) == (7, "lost at first")


async def test_an_initial_packet_that_cannot_be_read_leaves_nothing_behind() -> None:
    async with Running() as running:
        forged = bytearray(initial(crypto_frame(0, HELLO), destination=b"8 bytes."))
        forged[-1] ^= 1
        assert await exchange(running.port, bytes(forged), UNTIL) == []
        assert not running.router.protocols
        assert running.router.handshake_counts == HandshakeCounts(dropped=1)
