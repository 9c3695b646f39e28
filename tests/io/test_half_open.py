"""Strangers: what they make a server keep is bounded, and good clients get in meanwhile."""

from __future__ import annotations

import asyncio
import gc
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.packet import pull_quic_header
from initials import HELLO, crypto_frame, first_flight, initial, is_refusal, noise, pieces
from loopback import Filter, at, client_configuration, server_configuration
from routed import UNTIL, Running, echo, exchange
from strangers import knock, knock_with_token, stranger

from quicferry.io import (
    ConnectionProtocol,
    HandshakeCounts,
    Handshakes,
    QlogDirectory,
    UdpSocket,
    half_open,
)
from quicferry.io.half_open import MOST_LATER_PARTS
from quicferry.io.knocks import Knock, Knocks
from quicferry.transport import Connection


def traces(folder: Path) -> int:
    return len(list(folder.iterdir()))


def live(kind: type[object]) -> int:
    gc.collect()
    return sum(isinstance(each, kind) for each in gc.get_objects())


async def turns(running: Running) -> None:
    """Wait until all that have knocked have had their turn."""
    for _ in range(running.router.waiting):
        await asyncio.sleep(0)
    assert not running.router.waiting


async def assert_welcome(running: Running, **arguments: Any) -> None:
    """Assert that a good client gets in, and is served."""
    async with running.connect(**arguments) as client:
        assert await echo(client, b"good") == b"good"


# Noise


async def test_nothing_is_made_of_noise(tmp_path: Path) -> None:
    configuration = server_configuration(quic_logger=QlogDirectory(tmp_path))
    async with Running(configuration=configuration) as running:
        async with stranger(running.port) as it:
            await it.send(noise() for _ in range(100))  # whatever is made once
            before = live(Connection), live(ConnectionProtocol), len(asyncio.all_tasks())
            tracemalloc.start()
            try:
                assert await it.send(noise() for _ in range(2000)) == []
                gc.collect()
                assert tracemalloc.get_traced_memory()[0] < 100_000  # 50 bytes for each
            finally:
                tracemalloc.stop()
            after = live(Connection), live(ConnectionProtocol), len(asyncio.all_tasks())
        assert after == before
        assert not running.router.protocols
        assert running.router.handshake_counts == HandshakeCounts(dropped=2100)
        assert traces(tmp_path) == 0
        await assert_welcome(running)


async def test_who_asks_for_proof_does_not_answer_noise() -> None:
    """Or it would send to whatever address stands in it."""
    short = initial(crypto_frame(0, HELLO), destination=b"7 bytes")
    async with Running(retry=True) as running, stranger(running.port) as it:
        assert await it.send([noise(), short, initial(b"\x01", destination=b"12345678")]) == []
        assert running.router.handshake_counts == HandshakeCounts(dropped=3)


# ClientHellos in parts


class Reversed(Filter):
    """A path on which the first datagrams of a client arrive in the opposite order."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.waiting: list[bytes] = []
        self.count = count

    def send(self, data: bytes, addr: Any) -> None:
        if len(self.waiting) == self.count:
            self.inner.send(data, addr)
            return
        self.waiting.append(data)
        if len(self.waiting) == self.count:
            for each in reversed(self.waiting):
                self.inner.send(each, addr)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("retry", [False, True])
async def test_the_beginning_comes_last(count: int, retry: bool) -> None:
    """Nothing has to be sent a second time for it."""
    long = ["h3", *(f"{number:0200}" for number in range(2 + 5 * (count - 1)))]
    configuration = client_configuration()
    configuration.alpn_protocols = long
    assert len(first_flight(configuration)) == count
    link = Reversed(count)
    async with Running(retry=retry) as running:
        async with running.connect(configuration=configuration, wrap_transport=link) as client:
            assert await echo(client, b"in parts") == b"in parts"
            assert len(link.waiting) == count
            loss = client.connection._loss
            assert loss._pto_count == 0
        assert running.router.handshake_counts.dropped == 0


async def test_parts_with_gaps_and_in_any_order() -> None:
    """A later part is nothing; with the beginning, the whole is answered as one."""
    frames = list(pieces(HELLO, 1, 40, 150))
    cid = os.urandom(8)

    def packet(number: int) -> bytes:
        return initial(frames[number], destination=cid, number=number)

    async with Running() as running, stranger(running.port) as it:
        assert await it.send([packet(3), packet(1), packet(1)]) == []
        assert not running.router.protocols
        await it.send([packet(0)])
        await turns(running)
        [protocol] = running.router.protocols
        hello = b"\x02"  # the first byte of a ServerHello is sent only when the whole is there
        assert not sent(protocol).startswith(hello)
        await it.send([packet(2)])
        assert sent(protocol).startswith(hello)


def sent(protocol: ConnectionProtocol) -> bytes:
    """Return what a server has to say in the handshake so far."""
    streams = protocol.connection._crypto_streams
    return bytes(next(iter(streams.values())).sender._buffer)


async def test_later_parts_do_not_pile_up() -> None:
    later = crypto_frame(500, HELLO[500:] or b"more")
    async with Running() as running, stranger(running.port) as it:
        await it.send(initial(later, destination=os.urandom(8)) for _ in range(100))
        tracemalloc.start()
        try:
            packets = (initial(later, destination=os.urandom(8)) for _ in range(1000))
            assert await it.send(packets) == []
            gc.collect()
            kept = tracemalloc.get_traced_memory()[0]
            assert kept < MOST_LATER_PARTS * 3000  # of 1,200 bytes each
        finally:
            tracemalloc.stop()
        assert not running.router.protocols
        await it.send([initial(later, destination=b"the same") for _ in range(1000)])
        assert not running.router.protocols
        await assert_welcome(running)


# Knocks


async def test_forged_addresses_get_no_further_than_a_tenth() -> None:
    """The sender of each receives nothing, so none has a token."""
    async with Running(max_half_open=50) as running, running.connect() as before:
        await before.ping()
        for number in range(20):
            async with stranger(running.port, f"127.0.1.{number + 1}") as it:
                await it.send(knock() for _ in range(15))
        counts = running.router.handshake_counts
        assert counts == HandshakeCounts(half_open=5, retried=295)
        await turns(running)
        assert len(running.router.protocols) == 6
        await assert_welcome(running)
        assert counts.retried == 296
        assert await echo(before, b"still here") == b"still here"


async def test_one_address_gets_a_fourth_whoever_it_is() -> None:
    async with Running(max_half_open=40, retry=True) as running:
        async with stranger(running.port, "127.0.0.2") as it:
            attempts = [await knock_with_token(it) for _ in range(30)]
        counts = running.router.handshake_counts
        assert counts == HandshakeCounts(half_open=10, retried=30, refused=20)
        assert all(attempts[:10])
        assert attempts[10:] == [None] * 20  # and told so
        await assert_welcome(running)


async def test_the_bound_holds_for_many_addresses() -> None:
    async with Running(max_half_open=12) as running:
        for number in range(20):
            async with stranger(running.port, f"127.0.1.{number + 1}") as it:
                if number:
                    await knock_with_token(it)
                else:
                    await it.send([knock()])  # there is room for one without proof
        counts = running.router.handshake_counts
        assert counts == HandshakeCounts(half_open=12, retried=19, refused=8)
        await turns(running)
        assert len(running.router.protocols) == 12


async def test_who_is_connected_does_not_wait_for_all_that_knock() -> None:
    """The last datagram of a burst is answered when hardly any connection has been made."""
    async with Running(max_half_open=1000) as running, stranger(running.port) as it:
        await it.send(knock() for _ in range(30))
        assert running.router.waiting > 15
        await turns(running)
        assert len(running.router.protocols) == 30


async def test_what_belongs_to_one_that_waits_is_no_attempt_of_its_own() -> None:
    first, second = (initial(each, destination=b"8 bytes.") for each in pieces(HELLO, 100))
    async with Running(max_half_open=50) as running, stranger(running.port) as it:
        await it.send([first, *(knock() for _ in range(4)), second, first])
        assert running.router.handshake_counts == HandshakeCounts(half_open=5)
        await turns(running)
        assert len(running.router.protocols) == 5


async def test_the_same_packet_from_two_addresses_opens_one_connection() -> None:
    """Whoever has seen it on its way could otherwise take the client's place."""
    copied = first_flight()[0]
    async with (
        Running() as running,
        stranger(running.port) as client,
        stranger(running.port, "127.0.0.2") as other,
    ):
        client.throw([*(knock() for _ in range(10)), copied])
        other.throw([copied])
        await other.send([noise()])
        await turns(running)
        assert len(running.router.protocols) == 11
        for protocol in list(running.router.protocols):
            protocol.close()
            await protocol.wait_closed()
        assert not running.router.protocols


async def test_those_that_wait_are_refused_when_the_server_is_about_to_move() -> None:
    async with Running() as running, stranger(running.port) as it:
        await it.send(knock() for _ in range(20))
        waiting = running.router.waiting
        assert waiting
        running.router.handshakes = Handshakes.REFUSED
        await turns(running)
        counts = running.router.handshake_counts
        assert (counts.refused, counts.half_open) == (waiting, 20 - waiting)
        assert len(running.router.protocols) == 20 - waiting


async def test_what_comes_meanwhile_is_not_lost() -> None:
    first, second = pieces(HELLO, 100)
    parts = [
        initial(each, destination=b"8 bytes.", number=n) for n, each in enumerate((first, second))
    ]
    async with Running() as running, stranger(running.port) as it:
        await it.send([*(knock() for _ in range(20)), *parts])
        assert running.router.handshake_counts == HandshakeCounts(half_open=21)
        await turns(running)
        [protocol] = [
            each
            for each in running.router.protocols
            if each.connection.original_destination_connection_id == b"8 bytes."
        ]
        assert sent(protocol).startswith(b"\x02")


def test_networks_take_turns() -> None:
    here = UdpSocket.bind(at("127.0.0.1", 0))

    def one(host: str, port: int) -> Knock:
        data = knock()
        header = pull_quic_header(Buffer(data=data), host_cid_length=8)
        return Knock(here, data, header, (host, port), None, None)

    knocks = Knocks()
    sources = [("192.0.2.1", port) for port in range(4)]
    sources += [("2001:db8::1", 0), ("2001:db8::2", 1), ("192.0.2.2", 0), ("::ffff:192.0.2.2", 1)]
    for source in sources:
        knocks.put(one(*source))
    order = [knocks.take().source for _ in range(len(knocks))]
    assert order == [sources[each] for each in (0, 4, 6, 1, 5, 7, 2, 3)]
    assert not knocks
    here.close()


async def test_hosts_that_take_all_places_leave_one_to_another() -> None:
    """Those with most give way, and push out nobody themselves."""
    async with Running(max_half_open=20, retry=True) as running:
        counts = running.router.handshake_counts
        for number in range(5):
            async with stranger(running.port, f"127.0.1.{number + 1}") as it:
                for _ in range(8):
                    await knock_with_token(it)
        assert (counts.half_open, counts.expired) == (20, 0)
        before = counts.refused
        async with stranger(running.port, "127.0.1.1") as it:
            assert await knock_with_token(it) is None
        assert (counts.half_open, counts.refused) == (20, before + 1)
        await assert_welcome(running)
        assert counts.refused == before + 2
        assert len(running.router.protocols) <= 21


async def test_a_complete_handshake_makes_room() -> None:
    async with Running(max_half_open=1) as running:
        for _ in range(5):
            await assert_welcome(running)
        assert running.router.handshake_counts == HandshakeCounts(retried=5)


async def test_the_same_packet_again_is_the_same_client() -> None:
    async with Running(max_half_open=50) as running, stranger(running.port) as it:
        await it.send([knock(destination=b"the same")] * 60)
        assert running.router.handshake_counts == HandshakeCounts(half_open=1)


@pytest.mark.parametrize("is_validated", [True, False])
async def test_a_handshake_has_its_time(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_validated: bool
) -> None:
    monkeypatch.setattr(half_open, "HANDSHAKE_DEADLINE", 0.2)
    configuration = server_configuration(quic_logger=QlogDirectory(tmp_path))
    async with (
        Running(configuration=configuration, max_half_open=100, retry=is_validated) as running,
        stranger(running.port) as it,
    ):
        opened: list[ConnectionProtocol] = []
        running.router.on_open = opened.append
        cids = [await knock_with_token(it) or b"" for _ in range(3)] if is_validated else []
        if not is_validated:
            cids = [b"stranger%d" % number for number in range(3)]
            await it.send(knock(destination=cid) for cid in cids)
        await turns(running)
        for protocol in opened:
            await protocol.wait_closed()
        counts = running.router.handshake_counts
        assert counts == HandshakeCounts(expired=3, retried=3 if is_validated else 0)
        assert not running.router.protocols
        assert [protocol._timer for protocol in opened] == [None] * 3
        assert traces(tmp_path) == 0
        said = await it.send([knock(destination=b"the last")])
        told = [cid for cid in cids if any(is_refusal(each, cid) for each in said)]
        assert told == (cids if is_validated else [])
        running.router.on_open = lambda protocol: None
        await assert_welcome(running)
        await asyncio.sleep(0)
        assert traces(tmp_path) == 1


async def test_a_handshake_that_fails_is_forgotten() -> None:
    """Its connection counts as long as it is there (RFC 9000 10.2)."""
    broken = crypto_frame(0, b"\x01\0\0\x02xx")
    async with Running(max_half_open=50) as running, stranger(running.port) as it:
        await it.send(initial(broken, destination=os.urandom(8)) for _ in range(30))
        counts = running.router.handshake_counts
        assert (counts.half_open, counts.retried) == (5, 25)
        await turns(running)
        for protocol in list(running.router.protocols):
            await protocol.wait_closed()
        assert counts.half_open == 0
        assert not running.router.protocols


async def test_versions_that_nobody_knows_are_answered_as_ever() -> None:
    async with Running(max_half_open=1) as running:
        assert await exchange(running.port, UNTIL.replace(b"untilcid", b"another."), UNTIL)
