"""Section 3 on real connections: in which packets the frames travel, and what is refused."""

from __future__ import annotations

import pytest
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import Epoch
from hypothesis import given, settings
from hypothesis import strategies as st
from quicferry_lab.simulation import SimulatedAddress
from simulated_pair import AWAY, ELSEWHERE, HOME, RTT, address, genuine, pair, pool
from support import (
    EXPLICIT,
    PING,
    SERVER_MIGRATED,
    SYMMETRIC,
    SYNCHRONIZED,
    error_code,
    handshake_under_way,
    in_state,
    inject,
    lose,
    named,
    pool_address,
    server_migration,
    wired_pair,
)

from quicferry.protocol import FrameType, MigrationProtocol, ServerMigration

HOME6: SimulatedAddress = ("2001:db8::1", 4433, 0, 0)
AWAY6: SimulatedAddress = ("2001:db8::2", 4433, 0, 0)
FRAMES = pytest.mark.parametrize(
    "frame",
    [server_migration(AWAY), server_migration(None), SERVER_MIGRATED, pool_address(AWAY)],
    ids=["migration", "migration-unknown", "migrated", "pool"],
)


# What is sent, byte by byte


@pytest.mark.parametrize(
    ("home", "target", "body"),
    [
        (HOME, AWAY, "0a000002 1151" + 18 * "00"),
        (HOME6, AWAY6, 6 * "00" + "20010db8 00000000 00000000 00000002 1151"),
    ],
    ids=["ipv4", "ipv6"],
)
def test_server_migration_on_the_wire(
    home: SimulatedAddress, target: SimulatedAddress, body: str
) -> None:
    with wired_pair(home=home) as (it, wire):
        it.imminent(EXPLICIT, target)
        (sent,) = wire.select(0x32)
        assert sent.frames == ((0x32, bytes.fromhex(body)),)
        assert (sent.source, sent.destination) == (home, it.client.external)


def test_server_migration_without_address_on_the_wire() -> None:
    with wired_pair() as (it, wire):
        it.imminent(SYNCHRONIZED)
        assert wire.select(0x32)[0].frames == ((0x32, bytes(24)),)


def test_pool_and_server_migrated_on_the_wire() -> None:
    with wired_pair() as (it, wire):
        it.imminent(SYMMETRIC)
        it.relocate(AWAY)
        (sent,) = wire.select(0x33)
        assert (0x33, b"") in sent.frames
        assert sent.source == AWAY


def test_each_pool_address_is_sent_once_right_after_the_handshake() -> None:
    both = pool(AWAY, ELSEWHERE)
    with handshake_under_way(ServerMigration(pool=both)) as (simulation, _, server, wire):
        simulation.network.run_until(lambda: bool(named(server)), limit=1, what="handshake")
        now = simulation.network.now
        sent = [frame for sent in wire.select(0x34) for frame in sent.frames if frame[0] == 0x34]
        assert sent == [(0x34, item.encode()) for item in both]
        assert {sent.time for sent in wire.select(0x34)} == {now}
        simulation.network.run_for(2)
        assert {sent.time for sent in wire.select(0x34)} == {now}


def test_frames_are_in_flight_until_they_are_acknowledged() -> None:
    """Ack-eliciting and congestion-controlled."""
    with wired_pair() as (it, wire):
        loss = it.server.connection._loss
        assert loss.bytes_in_flight == 0
        it.server.migrating.imminent_migration(EXPLICIT, address(AWAY), now=it.network.now)
        it.server.flush()
        (sent,) = wire.select(0x32)
        assert loss.bytes_in_flight == sent.size
        it.network.run_for(RTT)
        assert loss.bytes_in_flight == 0


def test_frames_wait_for_the_congestion_window() -> None:
    with wired_pair() as (it, wire):
        control = it.server.connection._loss._cc
        window, control.congestion_window = control.congestion_window, 0
        it.server.migrating.imminent_migration(EXPLICIT, address(AWAY), now=it.network.now)
        it.server.flush()
        assert wire.select(0x32) == []
        control.congestion_window = window
        it.server.flush()
        assert len(wire.select(0x32)) == 1


def test_frames_are_not_probing() -> None:
    """A packet with nothing else shows that the server is at home."""
    with in_state("probing") as (it, _):
        inject(it, server_migration(AWAY))
        assert it.client.migrating.migration_state == "announced"
        assert it.client.connection.get_peer_address() == HOME


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("protocol", [EXPLICIT, SYNCHRONIZED])
def test_lost_server_migration_is_sent_again(protocol: MigrationProtocol, count: int) -> None:
    with wired_pair() as (it, wire):
        lose(it.network, lambda datagram: 0x32 in wire.read(datagram.data), count)
        target = AWAY if protocol is EXPLICIT else None
        it.imminent(protocol, target)
        copies = wire.select(0x32)
        assert len({sent.number for sent in copies}) == count + 1
        assert all((0x32, server_migration(target)[1:]) in sent.frames for sent in copies)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_lost_pool_address_is_sent_again(count: int) -> None:
    with handshake_under_way(ServerMigration(pool=pool(AWAY))) as (
        simulation,
        client,
        server,
        wire,
    ):
        lose(simulation.network, lambda datagram: 0x34 in wire.read(datagram.data), count)
        simulation.network.run_for(5)
        copies = wire.select(0x34)
        assert len({sent.number for sent in copies}) == count + 1
        assert all((0x34, pool_address(AWAY)[1:]) in sent.frames for sent in copies)
        assert named(client).count("PoolAddressReceived") == 1
        assert named(server).count("PoolAddressAcknowledged") == 1


@pytest.mark.parametrize("protocol", [SYMMETRIC, SYNCHRONIZED])
def test_lost_server_migrated_is_not_sent_again(protocol: MigrationProtocol) -> None:
    with wired_pair() as (it, wire):
        it.imminent(protocol)
        lose(it.network, lambda datagram: 0x33 in wire.read(datagram.data))
        it.relocate(AWAY)
        it.network.run_for(2)
        assert len(wire.select(0x33)) == 1
        assert it.client.connection.get_peer_address() == AWAY, "any other packet does as well"
        assert "ServerMigratedReceived" not in named(it.client)
        assert "ServerMigratedAcknowledged" not in named(it.server)
        assert "MigrationCompleted" in named(it.client)
        assert "MigrationCompleted" in named(it.server)


# What is refused


@FRAMES
@pytest.mark.parametrize("state", ["idle", "ready", "switched"])
def test_frames_from_a_client(frame: bytes, state: str) -> None:
    with wired_pair() as (it, _):
        if state != "idle":
            it.imminent(SYMMETRIC)
        if state == "switched":
            lose(it.network, lambda datagram: datagram.destination == it.client.external, 10)
            it.relocate(AWAY)
        it.deliver(it.server, genuine(it.client, frame), it.client.external)
        it.network.filters.clear()
        it.network.run_for(3)
        assert error_code(it.server) == QuicErrorCode.PROTOCOL_VIOLATION
        assert error_code(it.client) == (
            None if state == "switched" else QuicErrorCode.PROTOCOL_VIOLATION
        )


@FRAMES
@pytest.mark.parametrize("sender", ["client", "server"])
def test_frames_in_handshake_packets(frame: bytes, sender: str) -> None:
    with handshake_under_way(ServerMigration()) as (simulation, client, server, _):
        simulation.network.run_until(
            lambda: client.handshake_complete, limit=1, what="the client's end of the handshake"
        )
        if sender == "server":
            client.receive(genuine(server, frame, epoch=Epoch.HANDSHAKE), HOME)
        else:
            server.receive(genuine(client, frame, epoch=Epoch.HANDSHAKE), client.external)
        simulation.network.run_for(5)
        victim = client if sender == "server" else server
        assert error_code(victim) == QuicErrorCode.PROTOCOL_VIOLATION


@pytest.mark.parametrize("size", [0, 1, 6, 23])
@pytest.mark.parametrize("frame_type", [0x32, 0x34])
def test_truncated_frames(frame_type: int, size: int) -> None:
    with wired_pair() as (it, _):
        body = wire_body()[:size]
        data = PING * max(0, 3 - size) + bytes([frame_type]) + body
        it.deliver(it.client, genuine(it.server, data), HOME)
        it.network.run_for(3)
        assert error_code(it.client) == QuicErrorCode.FRAME_ENCODING_ERROR
        assert error_code(it.server) == QuicErrorCode.FRAME_ENCODING_ERROR
        assert named(it.client) == ["ConnectionClosed"]


def wire_body() -> bytes:
    return server_migration(AWAY)[1:]


def test_a_frame_is_followed_by_the_next() -> None:
    with wired_pair() as (it, wire):
        inject(it, PING + server_migration(AWAY) + server_migration(AWAY) + PING)
        assert named(it.client)[0] == "ServerMigrationReceived"
        assert len(wire.select(0x02, source=it.client.external)) == 1


FRAME = st.builds(
    lambda kind, body: bytes([kind]) + body,
    st.sampled_from(FrameType),
    st.sampled_from([b"", bytes(24), wire_body(), bytes(18) + b"\1" * 6])
    | st.binary(max_size=24).map(lambda body: body.rjust(24, b"\0"))
    | st.integers(0, 23).map(bytes),
)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(st.lists(FRAME, min_size=1, max_size=3), st.sampled_from([HOME, AWAY])),
        max_size=4,
    )
)
def test_only_defined_errors_come_out(
    packets: list[tuple[list[bytes], SimulatedAddress]],
) -> None:
    with pair() as it:
        for frames, source in packets:
            it.deliver(it.client, genuine(it.server, b"".join(frames)), source)
        it.network.run_for(5)
        # A frame can be a CONNECTION_CLOSE by chance: then the code is what the server has said.
        may_be_closed = any({0x1C, 0x1D} & set(b"".join(frames)) for frames, _ in packets)
        defined = {None, *QuicErrorCode} - {QuicErrorCode.INTERNAL_ERROR}
        assert error_code(it.client) in defined or may_be_closed
