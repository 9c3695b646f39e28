"""Connection snapshots: nothing is lost, nothing lives twice, nothing bad is accepted."""

from __future__ import annotations

import dataclasses
import random
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path as FilePath
from typing import Any

import msgpack
import pytest
from aioquic.quic import events
from aioquic.quic.connection import QuicConnectionState
from aioquic.quic.packet import QuicFrameType
from aioquic.tls import AlertDescription, Epoch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quicferry_lab.simulation import Answer, Datagram, Endpoint, Exchange, Path, SimulatedAddress
from quicferry_lab.simulation.invariants import events_of
from simulated_pair import AWAY, HOME, Pair, Until, genuine, pair, pool
from support import wired_pair

from quicferry.protocol import (
    MigrationCompleted,
    MigrationProtocol,
    MigrationReady,
    ServerMigration,
)
from quicferry.transport import (
    MAX_SNAPSHOT_SIZE,
    RESERVED_NUMBERS,
    Connection,
    SnapshotError,
    activate,
    commit,
    freeze,
    resume_after_freeze,
    thaw,
)
from quicferry.transport.snapshot import records as snapshot_records
from quicferry.transport.snapshot.format import FORMAT_VERSION, decode
from quicferry.transport.snapshot.records import Snapshot

THIRD: SimulatedAddress = ("10.0.0.3", 4433)
BOTH_WAYS = Exchange(40_000, 40_000, answer=Answer.AT_ONCE)
CASES = 320
POOL = MigrationProtocol.POOL_OF_ADDRESSES
SYMMETRIC = MigrationProtocol.SYMMETRIC | MigrationProtocol.SYNCHRONIZED_SYMMETRIC
HEADER = struct.Struct("!4sHI")


def copy_of(it: Pair, data: bytes) -> Connection:
    configuration = it.server.migrating.configuration
    return thaw(data, configuration=configuration, now=it.network.now)


def replace_server(it: Pair) -> int:
    """Put the copy in the place of the server's connection; return the snapshot's size."""
    source = it.server.migrating
    data = freeze(source, now=it.network.now)
    copy = copy_of(it, data)
    assert copy.datagrams_to_send(it.network.now) == []
    assert copy.get_timer() is None
    activate(copy, now=it.network.now)
    commit(copy)
    it.server.connection = copy
    return len(data)


def relocate(it: Pair, destination: SimulatedAddress, *, frozen: float) -> None:
    """Carry the connection to another address, with nobody there for a while."""
    it.host.freeze()
    it.network.run_for(frozen)
    replace_server(it)
    it.host.resume(destination)


def completed(it: Pair) -> int:
    return len(events_of(it.server, MigrationCompleted))


def wait_for_completion(it: Pair, number: int = 1) -> None:
    it.network.run_until(lambda: completed(it) == number, limit=30, what="completion")


def wait_for_exchanges(it: Pair) -> None:
    it.network.run_until(lambda: it.requests.done, limit=60, what="the exchanges")


def with_checksum(body: bytes) -> bytes:
    return HEADER.pack(b"QFCS", FORMAT_VERSION, zlib.crc32(body)) + body


# Live transfers


def draw_path(rng: random.Random) -> Path:
    return Path(
        delay=rng.uniform(0.002, 0.03),
        rate=rng.choice((None, 2e7)),
        loss=rng.choice((0.0, rng.uniform(0, 0.05))),
        jitter=rng.choice((0.0, 0.003)),
        reordering=rng.choice((0.0, 0.05)),
        duplication=rng.choice((0.0, 0.05)),
    )


def draw_lane(rng: random.Random) -> tuple[Exchange, ...]:
    return tuple(
        Exchange(
            rng.randrange(30_000),
            rng.randrange(30_000),
            pause=rng.choice((0.0, rng.uniform(0, 0.1))),
            think=rng.choice((0.0, rng.uniform(0, 0.05))),
            answer=rng.choice(list(Answer)),
        )
        for _ in range(rng.randrange(1, 3))
    )


def carry_at_any_moment(it: Pair, rng: random.Random) -> None:
    """Replace the connection by its copy now and then, whatever goes on just then."""
    for _ in range(rng.randrange(1, 5)):
        when = rng.uniform(0, 0.6)
        for _ in range(rng.choice((1, 1, 2))):  # several in a row
            it.network.call_later(when, partial(carry_now, it))


def update_keys_at_some_moment(
    it: Pair, rng: random.Random, protocol: MigrationProtocol | None
) -> None:
    """Let the sides update their keys.

    aioquic cannot read a packet of the phase before. So a client that updates while it only waits
    for the server, which has not heard of that, hears nothing any more, snapshot or not.
    """
    only_waits = protocol is not None and protocol & SYMMETRIC
    for side in (it.server,) if only_waits else (it.client, it.server):
        if rng.random() < 0.5:
            update = partial(_update_keys, side)
            it.network.call_later(rng.uniform(0, 0.5), update)


def _update_keys(side: Endpoint) -> None:
    side.connection.request_key_update()


def carry_now(it: Pair) -> None:
    if not it.host.frozen:
        replace_server(it)
        it.server.flush()


@pytest.mark.parametrize("block", range(16))
def test_nothing_of_the_exchange_differs(block: int) -> None:
    for seed in range(block, CASES, 16):
        rng = random.Random(f"snapshot {seed}")
        protocol = rng.choice((None, *MigrationProtocol))
        uses_pool = protocol is MigrationProtocol.POOL_OF_ADDRESSES
        options = ServerMigration(pool=pool(HOME, AWAY, THIRD) if uses_pool else ())
        with pair(seed, server=options, path=draw_path(rng)) as it:
            try:
                live_through(it, rng, protocol)
            except BaseException as exc:
                exc.add_note(f"seed {seed}")
                raise


def live_through(it: Pair, rng: random.Random, protocol: MigrationProtocol | None) -> None:
    stable_id = it.server.migrating.stable_id
    carry_at_any_moment(it, rng)
    update_keys_at_some_moment(it, rng, protocol)
    it.requests.start([draw_lane(rng) for _ in range(rng.randrange(1, 4))])
    it.network.run_for(rng.uniform(0, 0.1))
    if protocol is not None:
        for number, destination in enumerate((AWAY, HOME, THIRD)[: rng.randrange(1, 4)], 1):
            explicit = protocol is MigrationProtocol.EXPLICIT
            it.imminent(protocol, destination if explicit else None)
            it.network.run_for(rng.choice((0.0, rng.uniform(0, 0.1))))
            relocate(it, destination, frozen=rng.choice((0.0, rng.uniform(0, 0.2))))
            wait_for_completion(it, number)
    wait_for_exchanges(it)
    it.network.run_for(1)
    it.exchange()
    it.network.run_for(1)
    for side in (it.client, it.server):
        side.flush()
        assert side.connection._streams == {}  # nothing is waited for on either side
    assert it.server.terminated is None
    assert it.client.terminated is None
    assert it.server.migrating.stable_id == stable_id
    assert it.server.migrating.migration_state == "idle"


@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_every_protocol_finds_the_copy_at_its_new_address(protocol: MigrationProtocol) -> None:
    uses_pool = protocol is MigrationProtocol.POOL_OF_ADDRESSES
    with pair(server=ServerMigration(pool=pool(AWAY) if uses_pool else ())) as it:
        it.imminent(protocol, AWAY if protocol is MigrationProtocol.EXPLICIT else None)
        it.requests.start([[BOTH_WAYS]])
        it.network.run_for(0.02)
        relocate(it, AWAY, frozen=0.1)
        wait_for_completion(it)
        wait_for_exchanges(it)
        assert it.client.connection.get_peer_address() == AWAY


def carry_and_note(it: Pair, states: set[str]) -> None:
    if not it.host.frozen:
        states.add(it.server.migrating.migration_state)
        carry_now(it)


@pytest.mark.parametrize("protocol", [MigrationProtocol.EXPLICIT, MigrationProtocol.SYMMETRIC])
def test_a_migration_goes_on_where_it_was(protocol: MigrationProtocol) -> None:
    """Carried while it prepares, when it is ready, and after the switch."""
    states: set[str] = set()
    for step in range(0, 100, 3):
        with pair() as it:
            explicit = protocol is MigrationProtocol.EXPLICIT
            it.requests.start([[Exchange(20_000, 100)]])
            it.network.call_later(step / 1000, partial(carry_and_note, it, states))
            it.imminent(protocol, AWAY if explicit else None)
            it.network.run_for(0.01)
            it.relocate(AWAY, frozen=0.01)
            wait_for_completion(it)
            wait_for_exchanges(it)
            assert len(events_of(it.server, MigrationReady)) == 1
    assert states >= {"ready", "switched", "idle"} | ({"preparing"} if explicit else set())


def test_a_connection_without_migration_is_carried_too() -> None:
    with pair(server=None, client=None) as it:
        it.network.call_later(0.03, lambda: carry_now(it))
        it.exchange(BOTH_WAYS)
        assert it.server.migrating.negotiated is None


@pytest.mark.parametrize("updates", [0, 1, 2, 3])
def test_key_updates_before_and_after(updates: int) -> None:
    with pair() as it:
        for _ in range(updates):
            it.server.connection.request_key_update()
            it.exchange()
        replace_server(it)
        it.exchange()
        for side in (it.server, it.client):
            side.connection.request_key_update()
            it.exchange()
            replace_server(it)
        it.exchange()


def test_a_requested_key_update_is_carried() -> None:
    with pair() as it:
        crypto = it.server.connection._cryptos[Epoch.ONE_RTT]
        it.server.connection.request_key_update()
        replace_server(it)
        it.exchange()
        assert it.server.connection._cryptos[Epoch.ONE_RTT].send.secret != crypto.send.secret
        assert it.client.connection._cryptos[Epoch.ONE_RTT].key_phase == 1


def test_a_probe_that_was_in_flight_is_sent_again() -> None:
    """Else a client that has not heard of a key update would never be understood again."""
    with pair() as it:
        connection = it.server.connection
        connection.request_key_update()
        connection._probe_pending = True
        connection.datagrams_to_send(it.network.now)  # lost
        carry_now(it)
        it.exchange()


def test_streams_in_every_state() -> None:
    """Resets, stops, ends and a gap, whose frames are all lost or under way at the freeze."""
    with pair() as it:
        client, server = it.client.connection, it.server.connection
        it.client.application = it.server.application = None
        seen: list[events.QuicEvent] = []
        for endpoint in (it.client, it.server):
            endpoint.application = _Recorder(seen)
        for stream_id in (0, 4, 8):
            client.send_stream_data(stream_id, b"request")
        it.client.flush()
        it.network.run_for(0.1)
        server.reset_stream(0, 7)
        server.stop_stream(4, 8)
        server.send_stream_data(8, b"x" * 3000, end_stream=True)
        for stream_id in (1, 3):
            server.send_stream_data(stream_id, b"pushed", end_stream=True)
        server.datagrams_to_send(it.network.now)  # lost, all of them
        server.send_ping(77)
        seen.clear()
        carry_now(it)
        it.network.run_for(0.5)
        data = dict.fromkeys((1, 3, 8), b"")
        for event in seen:
            if isinstance(event, events.StreamDataReceived):
                data[event.stream_id] += event.data
        assert data == {1: b"pushed", 3: b"pushed", 8: b"x" * 3000}
        assert events.StreamReset(error_code=7, stream_id=0) in seen
        assert events.StopSendingReceived(error_code=8, stream_id=4) in seen
        assert events.StreamReset(error_code=8, stream_id=4) in seen
        assert events.PingAcknowledged(uid=77) in seen


class _Recorder:
    def __init__(self, seen: list[events.QuicEvent]) -> None:
        self._seen = seen

    def handle_event(self, event: events.QuicEvent) -> None:
        self._seen.append(event)


def test_events_and_datagrams_that_wait_are_carried() -> None:
    with pair() as it:
        client, server = it.client.connection, it.server.migrating
        client.send_stream_data(0, b"hello", end_stream=True)
        client.send_stream_data(4, b"hello")
        for data, _ in client.datagrams_to_send(it.network.now):
            server.receive_datagram(data, it.client.external, it.network.now)
        client.reset_stream(4, 9)
        for data, _ in client.datagrams_to_send(it.network.now):
            server.receive_datagram(data, it.client.external, it.network.now)
        server.send_datagram_frame(b"datagram")
        copy = copy_of(it, freeze(server, now=it.network.now))
        assert copy.next_event() is None  # before it is active
        activate(copy, now=it.network.now)
        waiting = [copy.next_event() for _ in range(4)]
        assert waiting == [
            events.StreamDataReceived(data=b"hello", end_stream=True, stream_id=0),
            events.StreamDataReceived(data=b"hello", end_stream=False, stream_id=4),
            events.StreamReset(error_code=9, stream_id=4),
            None,
        ]
        assert list(copy._datagrams_pending) == [b"datagram"]


def test_a_datagram_that_the_source_has_read_is_not_read_again() -> None:
    with pair() as it:
        it.client.connection.send_ping(1)
        copied: list[bytes] = []
        it.network.taps.append(
            lambda datagram: copied.append(datagram.data) if datagram.destination == HOME else None
        )
        it.client.flush()
        it.network.run_for(0.1)
        replace_server(it)
        space = it.server.connection._spaces[Epoch.ONE_RTT]
        assert copied
        for data in copied:
            it.server.connection.receive_datagram(data, it.client.external, it.network.now)
        assert space.ack_at is None


def test_times_are_those_of_the_destination() -> None:
    with pair() as it:
        server, now = it.server.migrating, it.network.now
        timer = server.get_timer()
        assert timer is not None
        configuration = server.configuration
        copy = thaw(freeze(server, now=now), configuration=configuration, now=5.0)
        activate(copy, now=500.0)  # it was silent for longer than any timeout
        assert copy.get_timer() == pytest.approx(timer - now + 500.0)


def test_what_the_client_was_told_outlives_another_configuration() -> None:
    with pair() as it:
        server = it.server.migrating
        other = dataclasses.replace(
            server.configuration, idle_timeout=1.0, max_datagram_frame_size=1000, max_data=5
        )
        copy = thaw(freeze(server, now=0), configuration=other, now=0)
        assert copy.configuration.idle_timeout == server.configuration.idle_timeout
        assert copy.configuration.max_datagram_frame_size is None
        assert copy._local_max_data.value == server._local_max_data.value


# The handshake, which the copy has not made


OF_THE_HANDSHAKE = {
    *("_crypto_buffers", "_crypto_frame_type", "_crypto_packet_version"),
    *("_remote_initial_source_connection_id", "_remote_version_information"),
    "_version_negotiated_compatible",
}
"""What aioquic's connection knows of its handshake, and does not look at any more after it."""


def test_a_copy_has_all_that_a_connection_has() -> None:
    with pair() as it:
        source = it.server.migrating
        known = {name for name, value in vars(source).items() if value}
        copy = copy_of(it, freeze(source, now=it.network.now))
        assert vars(copy).keys() == vars(source).keys()
        assert known - {name for name, value in vars(copy).items() if value} == OF_THE_HANDSHAKE


@pytest.mark.parametrize("seed", range(24))
def test_the_copy_of_a_copy_is_the_same(seed: int) -> None:
    """Whatever is under way, and also what is there for a moment only."""
    rng = random.Random(f"copies {seed}")
    protocol = rng.choice((None, *MigrationProtocol))
    options = ServerMigration(pool=pool(AWAY) if protocol is POOL else ())
    with pair(seed, path=draw_path(rng), server=options) as it:
        source = it.server.migrating
        if protocol is not None:
            it.imminent(protocol, AWAY if protocol is MigrationProtocol.EXPLICIT else None)
        it.requests.start([draw_lane(rng) for _ in range(3)])
        it.network.run_for(rng.uniform(0, 0.2))
        source._retire_connection_ids = [seed]
        source._client_cid_is_new = source._handshake_done_pending = True
        source._probe_pending = source._streams_blocked_pending = True
        source._peer_retire_prior_to = 1
        source.send_ping(seed)
        if protocol is not None and rng.random() < 0.5:
            source.network_switch(AWAY, now=it.network.now)
        collect_events(it)
        first = freeze(source, now=it.network.now)
        copy = copy_of(it, first)
        assert copy.stable_id == source.stable_id
        activate(copy, now=it.network.now)
        commit(copy)
        assert decode(freeze(copy, now=it.network.now), Snapshot) == decode(first, Snapshot)


def collect_events(it: Pair) -> None:
    while it.server.migrating.next_migration_event() is not None:
        pass


def test_what_is_left_of_the_handshake_on_the_network_is_dropped() -> None:
    sent: list[Datagram] = []
    with pair(tap=sent.append) as it:
        replace_server(it)
        of_handshake = [d.data for d in sent if d.destination == HOME and d.data[0] & 0x80]
        assert of_handshake
        for data in of_handshake:
            it.deliver(it.server, data, it.client.external)
        it.exchange()
        assert it.server.terminated is None


def test_tls_messages_of_the_client_end_the_copy_as_any_connection() -> None:
    with pair() as it:
        replace_server(it)
        key_update = bytes([0x06, 0, 5, 24, 0, 0, 1, 0])  # CRYPTO; forbidden by RFC 9001 6
        it.deliver(it.server, genuine(it.client, key_update), it.client.external)
        it.network.run_for(1)
        assert it.client.terminated is not None
        assert it.client.terminated.error_code == 0x100 + AlertDescription.unexpected_message


# Size


def test_an_idle_connection_takes_little_room() -> None:
    with pair() as it:
        for _ in range(20):
            it.exchange()
        it.network.run_for(10)
        assert replace_server(it) <= 2048  # 4096, and room for HTTP/3


def test_a_lossy_connection_takes_little_more_than_its_data() -> None:
    with pair(path=Path(delay=0.01, loss=0.1)) as it:
        it.requests.start([[Exchange(100, 50_000)]])
        it.network.run_for(0.05)
        assert replace_server(it) <= 50_000 + 4096


def test_too_much_data_is_not_frozen() -> None:
    with pair() as it:
        server = it.server.migrating
        server.send_stream_data(1, bytes(MAX_SNAPSHOT_SIZE))
        with pytest.raises(SnapshotError, match="more than a snapshot can carry"):
            freeze(server, now=it.network.now)
        assert not server.is_sealed


# Never two of it


def test_a_frozen_connection_is_dead() -> None:
    with pair() as it:
        server = it.server.migrating
        it.client.connection.send_stream_data(0, b"hello")
        (hello, _), *_ = it.client.connection.datagrams_to_send(it.network.now)
        server.send_stream_data(1, b"hello")
        data = freeze(server, now=it.network.now)
        assert server.is_sealed
        assert server.datagrams_to_send(it.network.now) == []
        assert server.get_timer() is None
        server.receive_datagram(hello, it.client.external, it.network.now)
        assert server.next_event() is None
        server.handle_timer(it.network.now + 1000)
        assert server._state is QuicConnectionState.CONNECTED
        with pytest.raises(SnapshotError, match="frozen already"):
            freeze(server, now=it.network.now)
        assert data


def test_a_rollback_goes_on_at_the_source() -> None:
    with pair(path=Path(delay=0.01, loss=0.02)) as it:
        it.requests.start([[BOTH_WAYS]])
        for _ in range(3):
            it.network.run_for(0.05)
            server = it.server.migrating
            copy_of(it, freeze(server, now=it.network.now))
            it.network.run_for(0.1)
            resume_after_freeze(server, now=it.network.now)
            it.server.flush()
        wait_for_exchanges(it)


@pytest.mark.parametrize("block", range(4))
def test_rollbacks_at_any_moment(block: int) -> None:
    for seed in range(block, 60, 4):
        rng = random.Random(f"rollback {seed}")
        with pair(seed, path=draw_path(rng)) as it:
            for _ in range(rng.randrange(1, 4)):
                roll_back = partial(freeze_and_resume, it, rng.uniform(0, 0.15))
                it.network.call_later(rng.uniform(0, 0.5), roll_back)
            it.requests.start([draw_lane(rng) for _ in range(3)])
            wait_for_exchanges(it)


def freeze_and_resume(it: Pair, duration: float) -> None:
    server = it.server.migrating

    def resume() -> None:
        resume_after_freeze(server, now=it.network.now)
        it.server.flush()

    try:
        freeze(server, now=it.network.now)
    except SnapshotError:
        return  # it is frozen already, or the last jump is not acknowledged
    it.network.call_later(duration, resume)


def test_after_a_rollback_the_migration_can_be_given_up() -> None:
    with pair() as it:
        server = it.server.migrating
        it.imminent(MigrationProtocol.EXPLICIT, AWAY)
        freeze_and_resume(it, 0.5)
        it.requests.start([[BOTH_WAYS]])
        it.network.run_for(0.6)
        server.abort_migration(now=it.network.now)
        wait_for_exchanges(it)
        assert it.client.connection.get_peer_address() == HOME
        it.imminent(MigrationProtocol.EXPLICIT, AWAY)
        relocate(it, AWAY, frozen=0.05)
        wait_for_completion(it)
        it.exchange()


def test_the_switch_may_come_before_the_copy_is_active() -> None:
    with pair() as it:
        it.imminent(MigrationProtocol.SYMMETRIC)
        it.requests.start([[BOTH_WAYS]])
        it.network.run_for(0.02)
        it.network.detach(HOME)
        copy = copy_of(it, freeze(it.server.migrating, now=it.network.now))
        copy.network_switch(AWAY, now=it.network.now)
        assert copy.datagrams_to_send(it.network.now) == []
        activate(copy, now=it.network.now)
        it.server.connection = copy
        it.host.address = AWAY
        it.network.attach(AWAY, it.host.receive)
        it.server.flush()
        wait_for_completion(it)
        wait_for_exchanges(it)


def test_no_packet_number_is_used_by_both() -> None:
    """A copy that was active, and a source that was resumed all the same."""
    with pair() as it:
        source = it.server.migrating
        it.requests.start([[Exchange(100, 20_000)]])
        it.network.run_until(lambda: bool(source._streams), limit=1, what="the request")
        now = it.network.now
        copy = copy_of(it, freeze(source, now=now))
        activate(copy, now=it.network.now)
        start = len(it.simulation.observer.packets)
        assert copy.datagrams_to_send(now)
        resume_after_freeze(source, now=now)
        it.server.flush()
        wait_for_exchanges(it)
        sent = [p for p in it.simulation.observer.packets[start:] if p.sender == it.server.name]
        numbers = [(p.secret, p.number) for p in sent]
        assert len(set(numbers)) == len(numbers)  # the observer checks it too
        # And the client understood the jump.
        acknowledged = source._spaces[Epoch.ONE_RTT].largest_acked_packet
        assert acknowledged >= min(n for _, n in numbers) + RESERVED_NUMBERS


def test_a_copy_holds_back_at_the_end_of_its_reserve() -> None:
    with pair() as it:
        source = it.server.migrating
        copy = copy_of(it, freeze(source, now=it.network.now))
        activate(copy, now=it.network.now)
        base, end = copy._packet_number, copy._packet_number + RESERVED_NUMBERS
        copy._packet_number = end - 5  # as if it had sent all the time
        it.server.connection = copy
        it.requests.start([[BOTH_WAYS]])
        it.network.run_for(1)
        assert not it.requests.done
        assert end - 1 <= copy._packet_number <= end
        assert base < copy._packet_number
        commit(copy)
        it.server.flush()
        wait_for_exchanges(it)
        assert copy._packet_number > end


@pytest.mark.parametrize("left", range(1, 5))
def test_the_reserve_is_kept_on_paths_that_are_only_answered(left: int) -> None:
    """Each further path has a packet of its own, whatever the one in use has left."""
    with wired_pair() as (it, wire):
        source = it.server.migrating
        copy = copy_of(it, freeze(source, now=it.network.now))
        activate(copy, now=it.network.now)
        end = copy._packet_number + RESERVED_NUMBERS
        copy._packet_number = end - left
        it.server.connection = copy
        for number in range(1, 4):
            challenge = genuine(it.client, b"\x1a" + bytes([number]) * 8)
            copy.receive_datagram(challenge, (f"203.0.113.{number}", 777), it.network.now)
        it.server.flush()
        it.network.run_for(1)
        used = [sent.number for sent in wire.select(source=HOME)]
        assert max(used, default=0) < end
        # The last is kept for a packet that has been begun when it is noticed.
        assert bool(used) == (left > 1)
        commit(copy)
        it.server.flush()
        it.network.run_for(1)
        answers = wire.select(QuicFrameType.PATH_RESPONSE, source=HOME)
        assert len({sent.destination for sent in answers}) == 3
        it.exchange()


@pytest.mark.parametrize("seed", range(20))
def test_the_reserve_is_kept_whatever_is_sent(seed: int) -> None:
    rng = random.Random(seed)
    with pair(seed, path=draw_path(rng)) as it:
        it.imminent(MigrationProtocol.SYMMETRIC)
        it.host.freeze()
        copy = copy_of(it, freeze(it.server.migrating, now=it.network.now))
        activate(copy, now=it.network.now)
        end = copy._packet_number + RESERVED_NUMBERS
        copy._packet_number = end - rng.randrange(1, 30)
        it.server.connection = copy
        it.host.resume(AWAY)
        it.requests.start([draw_lane(rng) for _ in range(3)])
        it.network.run_for(2)
        used = [p.number for p in it.simulation.observer.packets if p.sender == it.server.name]
        assert max(used) < end
        commit(copy)
        it.server.flush()
        wait_for_exchanges(it)


def test_one_jump_at_a_time() -> None:
    with pair() as it:
        server = it.server.migrating
        for _ in range(6):  # more than 16 bits of packet numbers
            freeze(server, now=it.network.now)
            resume_after_freeze(server, now=it.network.now)
            with pytest.raises(SnapshotError, match="try again in a round trip"):
                freeze(server, now=it.network.now)
            it.server.flush()
            it.network.run_for(1)
        it.exchange()


def test_a_source_ends_when_its_client_has_dealt_with_the_copy() -> None:
    with pair() as it:
        source = it.server.migrating
        copy = copy_of(it, freeze(source, now=it.network.now))
        activate(copy, now=it.network.now)
        copy.send_ping(1)
        it.server.connection = copy
        it.server.flush()
        it.network.run_for(1)
        it.server.connection = source  # the copy is dead
        resume_after_freeze(source, now=it.network.now)
        it.server.flush()
        it.network.run_for(1)
        assert source.close_reason is not None
        assert "another host" in source.close_reason.reason_phrase
        assert it.client.terminated is not None


def test_a_source_goes_on_when_its_client_has_not() -> None:
    with pair() as it:
        source = it.server.migrating
        activate(copy_of(it, freeze(source, now=it.network.now)), now=it.network.now)
        resume_after_freeze(source, now=it.network.now)
        it.server.flush()
        it.exchange()
        assert source.close_reason is None


def test_only_one_order_of_calls() -> None:
    with pair() as it:
        source, now = it.server.migrating, it.network.now
        for call in (partial(activate, source, now=now), partial(commit, source)):
            with pytest.raises(SnapshotError, match="the connection is open, not"):
                call()
        with pytest.raises(SnapshotError, match="is open, not frozen"):
            resume_after_freeze(source, now=now)
        copy = copy_of(it, freeze(source, now=now))
        with pytest.raises(SnapshotError, match="thawed already"):
            freeze(copy, now=now)
        with pytest.raises(SnapshotError, match="is thawed, not provisional"):
            commit(copy)
        activate(copy, now=it.network.now)
        with pytest.raises(SnapshotError, match="commit it first"):
            freeze(copy, now=now)
        commit(copy)
        assert freeze(copy, now=now)


# What is not frozen


def test_a_clients_connection_is_not_frozen() -> None:
    with pair() as it, pytest.raises(SnapshotError, match="only servers move"):
        freeze(it.client.migrating, now=it.network.now)


def test_an_unconfirmed_connection_is_not_frozen() -> None:
    with pair(until=Until.CLIENT_HELLO) as it:
        with pytest.raises(SnapshotError, match="not confirmed"):
            freeze(it.server.migrating, now=it.network.now)
        it.exchange()


def test_a_closing_connection_is_not_frozen() -> None:
    with pair() as it:
        server = it.server.migrating
        server.close()
        with pytest.raises(SnapshotError, match="being closed"):
            freeze(server, now=it.network.now)
        it.server.flush()
        it.network.run_for(1)
        assert it.client.terminated is not None
        with pytest.raises(SnapshotError, match="being closed"):
            freeze(server, now=it.network.now)


def test_events_of_migrations_are_collected_before() -> None:
    with pair() as it:
        server = it.server.migrating
        server.imminent_migration(MigrationProtocol.SYMMETRIC, now=it.network.now)
        with pytest.raises(SnapshotError, match="migration events"):
            freeze(server, now=it.network.now)
        assert server.next_migration_event() is not None


# What is not thawed


@contextmanager
def snapshot_and_copy() -> Iterator[tuple[bytes, Callable[[bytes], Connection]]]:
    with pair(server=ServerMigration(pool=pool(AWAY)), path=Path(delay=0.01, loss=0.05)) as it:
        it.requests.start([[BOTH_WAYS], [BOTH_WAYS]])
        it.network.run_for(0.12)
        it.client.connection.send_stream_data(400, b"gap")
        yield freeze(it.server.migrating, now=it.network.now), lambda data: copy_of(it, data)


def test_what_cannot_be_a_snapshot() -> None:
    with snapshot_and_copy() as (data, copy):
        for wrong, text in (
            (b"", "not a connection snapshot"),
            (b"PK\3\4" + data[4:], "not a connection snapshot"),
            (data[:4] + b"\0\1" + data[6:], "format version 1"),
            (data[:-1], "damaged or incomplete"),
            (data + b"\0", "damaged or incomplete"),
            (data[:100] + bytes([data[100] ^ 1]) + data[101:], "damaged or incomplete"),
            (bytes(MAX_SNAPSHOT_SIZE + 1), "at most"),
            (with_checksum(b"\xc1"), "fields of a connection"),
            (with_checksum(msgpack.packb([])), "fields of a connection"),
            (with_checksum(msgpack.packb({})), "fields of a connection"),
            (with_checksum(b"\xdf\xff\xff\xff\xff"), "fields of a connection"),
        ):
            with pytest.raises(SnapshotError, match=text):
                copy(wrong)
        assert copy(data).is_sealed


def test_a_server_that_does_not_fit() -> None:
    with snapshot_and_copy() as (data, copy):
        configuration: Any = copy(data).configuration
        for change, text in (
            ({"connection_id_length": 12}, "connection_id_length"),
            ({"server_migration": None}, "server_migration"),
        ):
            with pytest.raises(SnapshotError, match=text):
                thaw(data, configuration=dataclasses.replace(configuration, **change), now=0)


def test_errors_quote_no_secret() -> None:
    with snapshot_and_copy() as (data, copy):
        content = msgpack.unpackb(data[HEADER.size :])
        secret = content["keys"][3]
        for place, value in ((3, secret + b"!"), (3, secret.hex()), (0, secret)):
            keys = list(content["keys"])
            keys[place] = value
            with pytest.raises(SnapshotError, match="keys") as caught:
                copy(with_checksum(msgpack.packb(content | {"keys": keys})))
            error: BaseException | None = caught.value
            while error is not None:
                assert str(secret)[2:-1] not in str(error)
                assert secret.hex() not in str(error)
                error = error.__cause__ or error.__context__


def test_every_field_is_documented() -> None:
    page = (FilePath(__file__).parents[2] / "docs/reference/snapshot.md").read_text("utf-8")
    documented = {
        section.split(None, 1)[0]: re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        for section in page.split("\n### ")[1:]
    }
    assert documented == {
        name: [item.name for item in dataclasses.fields(record)]
        for name, record in vars(snapshot_records).items()
        if dataclasses.is_dataclass(record) and record.__module__ == snapshot_records.__name__
    }


def test_no_representation_holds_a_secret() -> None:
    with snapshot_and_copy() as (data, copy):
        snapshot = decode(data, Snapshot)
        assert copy(data).is_sealed
        for record in (snapshot, snapshot.keys, snapshot.host_cids, snapshot.streams):
            assert "\\x" not in repr(record)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in a snapshot's content."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        if isinstance(item, dict | list):
            yield from places(item)


def shortened(value: Any) -> Iterator[tuple[Any, Any]]:
    """The same, with only the first items of long lists."""
    return ((holder, key) for holder, key in places(value) if not isinstance(key, int) or key < 20)


WRONG: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 5, 2**14, 2**60, 2**62 - 1, 2**64 - 1, -1, 0.0, -1.5, 1e9),
    *(float("inf"), float("nan"), b"", b"x" * 8, b"y" * 24, bytes(48), "", "x", [], [1, 2], {}),
)


def test_no_field_can_hold_anything_that_breaks_the_connection() -> None:
    """Whatever passes makes a connection that can be used, if only until its client gives up."""
    with snapshot_and_copy() as (data, copy):
        configuration = copy(data).configuration
    content = msgpack.unpackb(data[HEADER.size :])
    accepted = 0
    for holder, key in shortened(content):
        right = holder[key]
        for wrong in WRONG:
            holder[key] = wrong
            try:
                connection = thaw(
                    with_checksum(msgpack.packb(content)), configuration=configuration, now=5
                )
            except SnapshotError:
                continue
            accepted += 1
            activate(connection, now=5)
            connection.get_timer()
            connection.datagrams_to_send(6)
            connection.handle_timer(70)
            connection.datagrams_to_send(70)
        holder[key] = right
    assert accepted


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([0, 1, 2**14, 2**62 - 1]),
    st.floats(),
    st.binary(max_size=60),
    st.text(max_size=5),
    st.lists(st.integers(0, 1000), max_size=4),
    st.just({}),
)


def test_a_mutated_snapshot_is_refused_or_makes_a_connection() -> None:
    with snapshot_and_copy() as (data, copy):
        body = data[HEADER.size :]

        @settings(
            max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        @given(st.data())
        def mutate(choices: st.DataObject) -> None:
            content = msgpack.unpackb(body)
            for _ in range(choices.draw(st.integers(1, 3))):
                container, key = choices.draw(st.sampled_from(list(places(content))))
                container[key] = choices.draw(VALUES)
            attempt(with_checksum(msgpack.packb(content)), copy)

        @settings(
            max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        @given(st.integers(0, len(body) - 1), st.binary(max_size=4), st.integers(0, 4))
        def overwrite(place: int, new: bytes, removed: int) -> None:
            attempt(with_checksum(body[:place] + new + body[place + removed :]), copy)

        @settings(
            max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None
        )
        @given(st.binary(max_size=200))
        def invent(anything: bytes) -> None:
            attempt(anything, copy)
            attempt(with_checksum(anything), copy)

        mutate()
        overwrite()
        invent()


def attempt(data: bytes, copy: Callable[[bytes], Connection]) -> None:
    try:
        connection = copy(data)
    except SnapshotError:
        return
    assert connection.is_sealed
