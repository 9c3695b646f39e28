"""Stream data that is on its way at the freeze: acknowledged to whoever goes on, or sent again."""

from __future__ import annotations

import dataclasses
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgpack
import pytest
from aioquic.quic import events
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.stream import QuicStreamReceiver, QuicStreamSender
from aioquic.tls import Epoch
from quicferry_lab.simulation import Answer, Exchange, Path, SimulatedAddress
from simulated_pair import AWAY, HOME, RTT, Pair, pair

from quicferry.protocol import MigrationProtocol
from quicferry.transport import (
    Connection,
    SnapshotError,
    activate,
    commit,
    freeze,
    resume_after_freeze,
    thaw,
)
from quicferry.transport.snapshot import flight as snapshot_flight
from quicferry.transport.snapshot.format import FORMAT_VERSION
from quicferry.transport.snapshot.records import SentDataState, SentPacketState

STREAM = 3
"""A stream from the server to the client."""
DATA = bytes(8000)
DOWNLOAD = Exchange(100, 300_000, answer=Answer.AT_ONCE)
PACKET = 1200
HEADER = struct.Struct("!4sHI")


class ByHand:
    """A server and its client, whose datagrams are carried by hand."""

    def __init__(self, it: Pair) -> None:
        self.it = it
        self.now = it.network.now
        self.server = it.server.migrating
        self.client = it.client.connection
        self.received = 0
        self.has_ended = False

    def write(self, data: bytes = DATA, *, end: bool = True) -> list[bytes]:
        """Let the server write; return the datagrams that take it to the client."""
        self.server.send_stream_data(STREAM, data, end_stream=end)
        return self.sent()

    def sent(self) -> list[bytes]:
        """What the server sends within 20 ms, without its timers."""
        datagrams = []
        for _ in range(20):
            self.now += 0.001
            datagrams += [data for data, _ in self.server.datagrams_to_send(self.now)]
        return datagrams

    def arrive(self, *datagrams: bytes) -> list[bytes]:
        """Hand datagrams to the client; return what it answers."""
        self.now += RTT / 2
        for data in datagrams:
            self.client.receive_datagram(data, HOME, self.now)
        while event := self.client.next_event():
            if isinstance(event, events.StreamDataReceived):
                self.received += len(event.data)
                self.has_ended |= event.end_stream
        return [data for data, _ in self.client.datagrams_to_send(self.now + 0.002)]

    def answer(self, datagrams: list[bytes]) -> None:
        """Hand what the client has answered to the server."""
        self.now += RTT / 2
        for data in datagrams:
            self.server.receive_datagram(data, self.it.client.external, self.now)

    def carry(self, *, silence: float = 0.0) -> None:
        """Put a copy in the place of the server's connection."""
        data = freeze(self.server, now=self.now)
        copy = self.thaw(data)
        self.now += silence
        activate(copy, now=self.now)
        commit(copy)
        self.server = copy

    def thaw(self, data: bytes) -> Connection:
        return thaw(data, configuration=self.server.configuration, now=self.now)

    def expire(self) -> list[bytes]:
        """Let the server's next timer fire; return what it sends then."""
        timer = self.server.get_timer()
        assert timer is not None
        self.now = max(timer, self.now)
        self.server.handle_timer(self.now)
        return self.sent()

    def repair(self) -> None:
        """Let time go by until all has arrived that the server can send."""
        for _ in range(5):
            datagrams = self.sent()
            if not datagrams and self.awaited:
                datagrams = self.expire()
            self.answer(self.arrive(*datagrams))

    @property
    def awaited(self) -> list[int]:
        """The packets of the server whose acknowledgement is awaited."""
        return list(self.server._spaces[Epoch.ONE_RTT].sent_packets)

    def assert_complete(self, size: int = len(DATA)) -> None:
        assert (self.received, self.has_ended) == (size, True)
        self.sent()
        assert self.awaited == []
        assert STREAM not in self.server._streams


@contextmanager
def by_hand() -> Iterator[ByHand]:
    with pair() as it:
        yield ByHand(it)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all frames with stream data that are sent; of CRYPTO frames too."""
    sizes: list[int] = []
    get_frame = QuicStreamSender.get_frame

    def note(self: QuicStreamSender, *arguments: Any) -> Any:
        frame = get_frame(self, *arguments)
        sizes.append(0 if frame is None or self._stream_id is None else len(frame.data))
        return frame

    monkeypatch.setattr(QuicStreamSender, "get_frame", note)
    return sizes


@pytest.fixture
def duplicates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much of each frame with stream data had arrived before."""
    sizes: list[int] = []
    handle_frame = QuicStreamReceiver.handle_frame

    def note(self: QuicStreamReceiver, frame: Any) -> Any:
        start, stop = frame.offset, frame.offset + len(frame.data)
        known = max(min(stop, self._buffer_start) - start, 0)
        for item in self._ranges:
            known += max(min(stop, item.stop) - max(start, item.start), 0)
        sizes.append(0 if self._stream_id is None else known)
        return handle_frame(self, frame)

    monkeypatch.setattr(QuicStreamReceiver, "handle_frame", note)
    return sizes


# Carried by the network


def move(it: Pair, destination: SimulatedAddress, silence: float) -> None:
    """Hand the server over to another address, as a handover does."""
    source = it.server.migrating
    it.network.detach(it.host.address)
    copy = thaw(
        freeze(source, now=it.network.now),
        configuration=source.configuration,
        now=it.network.now,
    )
    copy.network_switch(destination, now=it.network.now)
    it.network.run_for(silence)
    activate(copy, now=it.network.now)
    it.server.connection = copy
    it.host.address = destination
    it.network.attach(destination, it.host.receive)
    it.server.flush()
    commit(copy)
    it.server.flush()


def download(loss: float, moments: list[float], protocol: MigrationProtocol) -> None:
    for seed, moment in enumerate(moments):
        with pair(seed) as it:
            it.imminent(protocol, AWAY if protocol is MigrationProtocol.EXPLICIT else None)
            it.network.set_path(Path(delay=RTT / 2, rate=2e7, loss=loss), source=HOME)
            it.requests.start([[DOWNLOAD]])
            it.network.run_for(moment)
            assert not it.requests.done
            assert it.server.migrating.path_estimate.bytes_in_flight > 5 * PACKET
            move(it, AWAY, 0.02)
            it.network.run_until(lambda: it.requests.done, limit=60, what=f"seed {seed}")


MOMENTS = [0.03 + 0.007 * number for number in range(8)]


@pytest.mark.parametrize("loss", [0.0, 0.04])
@pytest.mark.parametrize(
    "protocol", [MigrationProtocol.EXPLICIT, MigrationProtocol.SYNCHRONIZED_SYMMETRIC]
)
def test_what_was_delivered_is_not_sent_again(
    protocol: MigrationProtocol, loss: float, duplicates: list[int]
) -> None:
    download(loss, MOMENTS, protocol)
    assert sum(duplicates) == 0


def test_it_would_be_if_the_flight_were_not_carried(
    monkeypatch: pytest.MonkeyPatch, duplicates: list[int]
) -> None:
    monkeypatch.setattr(snapshot_flight, "_is_carried", lambda *_: False)
    download(0.0, MOMENTS, MigrationProtocol.EXPLICIT)
    assert sum(duplicates) > 5 * PACKET * len(MOMENTS)


# Acknowledged late


@pytest.mark.parametrize("silence", [0.0, 0.5])
def test_an_acknowledgement_to_the_copy_frees_the_data(silence: float, written: list[int]) -> None:
    with by_hand() as it:
        answers = it.arrive(*it.write())
        it.carry(silence=silence)
        assert it.awaited
        written.clear()
        it.answer(answers)
        it.assert_complete()
        assert sum(written) == 0


def test_what_was_on_its_way_may_arrive_after_the_freeze(written: list[int]) -> None:
    with by_hand() as it:
        datagrams = it.write()
        it.carry()
        written.clear()
        it.answer(it.arrive(*datagrams))
        it.assert_complete()
        assert sum(written) == 0


def test_there_and_back_before_anything_is_acknowledged(written: list[int]) -> None:
    with by_hand() as it:
        answers = it.arrive(*it.write())
        awaited = it.awaited
        for _ in range(3):
            it.carry(silence=0.1)
            assert it.awaited == awaited
        written.clear()
        it.answer(answers)
        it.assert_complete()
        assert sum(written) == 0


def test_a_second_copy_knows_what_the_first_one_has_sent(written: list[int]) -> None:
    with by_hand() as it:
        first = it.write(end=False)
        it.carry()
        second = it.write(b"more")
        it.carry()
        written.clear()
        it.answer(it.arrive(*first, *second))
        it.assert_complete(len(DATA) + 4)
        assert sum(written) == 0


def test_a_late_acknowledgement_says_nothing_about_the_round_trip() -> None:
    """Nobody knows how long it took: neither the copy, nor a source that goes on."""
    with by_hand() as it:
        it.answer(it.arrive(*it.write(end=False)))
        before = it.server.path_estimate
        answers = it.arrive(*it.write(end=False))
        data = freeze(it.server, now=it.now)
        copy, source = it.thaw(data), it.server
        it.now += 3
        activate(copy, now=it.now)
        resume_after_freeze(source, now=it.now)
        for server in (copy, source):
            it.server = server
            it.answer(answers)
            after = server.path_estimate
            assert (after.smoothed_rtt, after.min_rtt) == (before.smoothed_rtt, before.min_rtt)
            assert after.probe_timeout == before.probe_timeout
            assert after.congestion_window == before.congestion_window


# Lost


@pytest.mark.parametrize("silence", [0.0, 0.5])
def test_what_is_lost_is_repaired(silence: float, written: list[int]) -> None:
    with by_hand() as it:
        datagrams = it.write()
        window = it.server.path_estimate.congestion_window
        it.carry(silence=silence)
        written.clear()
        it.answer(it.arrive(*(d for n, d in enumerate(datagrams) if n not in (0, 1, 3))))
        it.answer(it.arrive(*it.sent()))
        it.assert_complete()
        assert 2 * PACKET < sum(written) < 3 * PACKET
        assert it.server.path_estimate.congestion_window >= window


def test_all_of_it_is_lost(written: list[int], duplicates: list[int]) -> None:
    """One probe timeout finds out, by the acknowledgement of what is sent then."""
    with by_hand() as it:
        it.write()
        it.carry()
        written.clear()
        it.repair()
        it.assert_complete()
        assert (sum(written), sum(duplicates)) == (len(DATA), 0)


def test_the_silence_is_no_persistent_congestion() -> None:
    """A packet from before it and one from long after it are lost, with nothing between them."""
    with by_hand() as it:
        it.answer(it.arrive(*it.write(end=False)))
        it.write(b"lost", end=False)
        it.carry(silence=10)
        it.now += 3
        window = it.server.path_estimate.congestion_window
        *_, last = it.write()
        it.answer(it.arrive(last))
        assert it.server.path_estimate.congestion_window >= window // 2


def test_an_end_without_data_is_lost() -> None:
    with by_hand() as it:
        it.answer(it.arrive(*it.write(end=False)))
        it.write(b"")
        it.carry()
        assert it.awaited
        it.answer(it.arrive(*it.expire()))
        it.assert_complete()


def test_an_end_that_is_on_its_way_twice() -> None:
    """It was sent alone, and once more with data that was lost before."""
    with by_hand() as it:
        it.write(b"first", end=False)
        alone = it.write(b"")
        both = it.expire()
        it.carry()
        assert len(it.awaited) > 1
        it.answer(it.arrive(*alone, *both))
        it.assert_complete(5)


def test_a_gap_known_before_the_freeze_is_closed_without_a_probe_timeout() -> None:
    """A packet was overtaken by two others, which is too few to call it lost at once."""
    with by_hand() as it:
        it.answer(it.arrive(*it.write(end=False)))
        _, *others = it.write(bytes(3000))
        assert len(others) == 2
        it.answer(it.arrive(*others))
        estimate = it.server.path_estimate
        it.carry(silence=5)
        assert len(it.awaited) == 1
        timer = it.server.get_timer()
        assert timer is not None
        assert timer < it.now + estimate.probe_timeout / 2
        it.answer(it.arrive(*it.expire()))
        it.assert_complete(len(DATA) + 3000)


# Given up


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_stream_is_reset_by_the_copy(is_lost: bool, written: list[int]) -> None:
    with by_hand() as it:
        datagrams = it.write(end=False)
        it.carry()
        it.server.reset_stream(STREAM, 7)
        written.clear()
        reset = it.sent()
        it.answer(it.arrive(*([] if is_lost else datagrams), *reset))
        for _ in range(3):
            it.answer(it.arrive(*it.sent()))
        assert sum(written) == 0
        assert it.awaited == []
        assert STREAM not in it.server._streams


def test_what_belongs_to_a_stream_that_is_over_is_not_carried() -> None:
    with by_hand() as it:
        it.write(end=False)
        it.server.reset_stream(STREAM, 7)
        it.answer(it.arrive(*it.sent())[:1])
        it.sent()
        assert STREAM not in it.server._streams
        it.carry()
        assert it.server._streams == {}


def test_a_flight_of_more_packets_than_a_snapshot_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot_flight, "MOST_PACKETS", 2)
    with by_hand() as it:
        it.write()
        newest = it.awaited[-2:]
        it.carry()
        assert it.awaited == newest
        it.repair()
        it.assert_complete()


# A source that goes on


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_source_goes_on_with_its_flight(is_lost: bool, written: list[int]) -> None:
    with by_hand() as it:
        answers = it.arrive(*(datagrams := it.write()))
        assert datagrams
        freeze(it.server, now=it.now)
        it.now += 5
        resume_after_freeze(it.server, now=it.now)
        assert it.server.path_estimate.bytes_in_flight == 0
        written.clear()
        if is_lost:
            it.answer(it.arrive(*it.expire()))
        else:
            it.answer(answers)
        it.answer(it.arrive(*it.sent()))
        it.assert_complete()
        assert it.server.path_estimate.bytes_in_flight == 0
        assert sum(written) <= (PACKET if is_lost else 0)
        freeze(it.server, now=it.now)


# Wrong records


Change = Callable[[list[Any]], object]


def frame(**values: Any) -> Change:
    """Change a frame in flight: the first one of the second packet."""
    fields = [field.name for field in dataclasses.fields(SentDataState)]

    def apply(flight: list[Any]) -> None:
        data = flight[1][3][0]
        for name, value in values.items():
            data[fields.index(name)] = value

    return apply


def packet(**values: Any) -> Change:
    """Change the second packet in flight."""
    fields = [field.name for field in dataclasses.fields(SentPacketState)]

    def apply(flight: list[Any]) -> None:
        for name, value in values.items():
            flight[1][fields.index(name)] = value

    return apply


def changed(data: bytes, change: Change) -> bytes:
    content = msgpack.unpackb(data[HEADER.size :])
    change(content["flight"])
    body: bytes = msgpack.packb(content)
    return HEADER.pack(b"QFCS", FORMAT_VERSION, zlib.crc32(body)) + body


@contextmanager
def frozen() -> Iterator[tuple[ByHand, bytes]]:
    """A snapshot with the third packet acknowledged, others in flight, and data to be sent."""
    with by_hand() as it:
        _, _, third, *_ = it.write(end=False)
        it.answer(it.arrive(third))
        it.server.send_stream_data(STREAM, bytes(2000))
        yield it, freeze(it.server, now=it.now)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(frame(stream_id=7), id="no such stream"),
        pytest.param(frame(stream_id=2), id="a stream that is never opened"),
        pytest.param(frame(start=9_000), id="backwards"),
        pytest.param(frame(stop=1167), id="nothing"),
        pytest.param(frame(start=0), id="in flight twice"),
        pytest.param(frame(stop=3_000), id="acknowledged"),
        pytest.param(frame(start=7_000, stop=9_000), id="not sent yet"),
        pytest.param(frame(start=8_000, stop=10_000), id="to be sent"),
        pytest.param(frame(stop=1 << 61), id="not there"),
        pytest.param(frame(is_end=True), id="an end before the end"),
        pytest.param(frame(start=-1), id="a negative offset"),
        pytest.param(packet(data=[]), id="no data"),
        pytest.param(packet(number=1 << 40), id="of the future"),
        pytest.param(packet(number=0), id="out of order"),
        pytest.param(packet(size=-1), id="a negative size"),
        pytest.param(packet(sent_ago=-1.0), id="sent later"),
        pytest.param(packet(sent_ago=float("nan")), id="sent never"),
        pytest.param(packet(sent_ago=float("inf")), id="sent always"),
        pytest.param(lambda flight: flight.insert(0, flight[0]), id="a packet twice"),
    ],
)
def test_a_wrong_flight_is_refused(change: Change) -> None:
    with frozen() as (it, data):
        it.thaw(changed(data, lambda _: None))
        with pytest.raises(SnapshotError):
            it.thaw(changed(data, change))


WRONG: tuple[object, ...] = (
    None,
    True,
    -1,
    0,
    1,
    1166,
    1 << 30,
    1 << 61,
    1 << 63,
    0.5,
    1e300,
    b"",
    "",
    [],
    [[]],
    {},
)


@pytest.mark.parametrize("is_lost", [False, True])
def test_no_other_flight_breaks_a_copy(is_lost: bool) -> None:
    """It is refused, or lives, whatever is acknowledged or found lost then."""
    with frozen() as (it, data):
        configuration = it.server.configuration
    places = [(frame, field.name) for field in dataclasses.fields(SentDataState)]
    places += [(packet, field.name) for field in dataclasses.fields(SentPacketState)]
    accepted = 0
    for change, name in places:
        for wrong in WRONG:
            wrong_data = changed(data, change(**{name: wrong}))
            try:
                copy = thaw(wrong_data, configuration=configuration, now=5)
            except SnapshotError:
                continue
            accepted += 1
            activate(copy, now=6)
            copy.datagrams_to_send(6)
            acknowledge(copy, newest_only=is_lost)
            for later in (7, 8, 9):
                copy.datagrams_to_send(later)
                copy.handle_timer(later)
    assert accepted


def acknowledge(copy: Connection, *, newest_only: bool) -> None:
    """Let the client acknowledge all that was sent, or so little that the rest is lost."""
    space, newest = copy._spaces[Epoch.ONE_RTT], copy._packet_number - 1
    acknowledged = RangeSet([range(newest if newest_only else 0, newest + 1)])
    copy._loss.on_ack_received(ack_rangeset=acknowledged, ack_delay=0, now=6.1, space=space)
