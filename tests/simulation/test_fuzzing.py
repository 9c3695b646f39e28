"""Whatever a peer with the right keys sends, only defined connection errors come out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from aioquic.quic.packet import QuicErrorCode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quicferry_lab.simulation import Endpoint, Exchange, SimulatedAddress
from simulated_pair import AWAY, ELSEWHERE, HOME, Pair, genuine, pair, pool

from quicferry.protocol import (
    ClientMigration,
    FrameType,
    MigrationProtocol,
    Policy,
    Scheduler,
    ServerMigration,
)

DEFINED = {
    QuicErrorCode.FLOW_CONTROL_ERROR,
    QuicErrorCode.STREAM_LIMIT_ERROR,
    QuicErrorCode.STREAM_STATE_ERROR,
    QuicErrorCode.FINAL_SIZE_ERROR,
    QuicErrorCode.FRAME_ENCODING_ERROR,
    QuicErrorCode.CONNECTION_ID_LIMIT_ERROR,
    QuicErrorCode.PROTOCOL_VIOLATION,
    QuicErrorCode.CRYPTO_BUFFER_EXCEEDED,
}
"""Connection errors that a peer can cause by what it sends; INTERNAL_ERROR is none of them."""

WELL_KNOWN = [
    bytes.fromhex("0a0000021151") + bytes(18),  # AWAY
    bytes.fromhex("0a0000011151") + bytes(18),  # HOME
    bytes.fromhex("e00000011151") + bytes(18),  # multicast
    bytes.fromhex("0a0000020000") + bytes(18),  # port 0
    bytes(6) + bytes.fromhex("20010db8000000000000000000000001") + b"\x11\x51",
    bytes(24),
]

addresses = st.one_of(st.sampled_from(WELL_KNOWN), st.binary(min_size=24, max_size=24))
frames = st.one_of(
    st.builds(
        lambda kind, body: bytes([kind]) + body,
        st.sampled_from([FrameType.SERVER_MIGRATION, FrameType.POOL_MIGRATION_ADDRESS]),
        addresses,
    ),
    st.just(bytes([FrameType.SERVER_MIGRATED])),
    st.just(b"\x01"),
    st.binary(min_size=8, max_size=8).map(lambda data: b"\x1a" + data),
    st.binary(min_size=8, max_size=8).map(lambda data: b"\x1b" + data),
)
whole_frames = st.lists(frames, min_size=1, max_size=5).map(b"".join)
garbage = st.one_of(
    whole_frames,
    # Cut short, or with anything behind.
    st.builds(lambda frame, cut: frame[:cut], frames, st.integers(1, 24)),
    st.builds(lambda frame, rest: frame + rest, frames, st.binary(max_size=30)),
    # A frame type in more bytes than it takes (RFC 9000 12.4).
    addresses.map(lambda body: b"\x40\x32" + body),
    st.builds(
        lambda kind, body: bytes([kind]) + body,
        st.sampled_from(list(FrameType)),
        st.binary(max_size=40),
    ),
    # A peer that says goodbye (CONNECTION_CLOSE) may give any reason for it.
).filter(lambda payload: not {0x1C, 0x1D} & set(payload))
sources: st.SearchStrategy[SimulatedAddress] = st.sampled_from([HOME, HOME, AWAY, ELSEWHERE])
Packets = list[tuple[bytes, SimulatedAddress, float]]


def packets(payloads: st.SearchStrategy[bytes]) -> st.SearchStrategy[Packets]:
    pauses = st.sampled_from([0.0, 0.001, 0.3])
    return st.lists(st.tuples(payloads, sources, pauses), min_size=1, max_size=6)


fuzz = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
policies = pytest.mark.parametrize("policy", Policy)
preparations = pytest.mark.parametrize("protocol", [None, *MigrationProtocol])


@contextmanager
def prepared(protocol: MigrationProtocol | None, policy: Policy) -> Iterator[Pair]:
    """A connection in a state that a migration begins with."""
    scheduler = Scheduler.PARALLEL if policy is Policy.EAGER else Scheduler.CYCLIC
    with pair(
        1,
        server=ServerMigration(
            pool=pool(AWAY) if protocol is MigrationProtocol.POOL_OF_ADDRESSES else ()
        ),
        client=ClientMigration(policy=policy, scheduler=scheduler),
    ) as it:
        if protocol is not None:
            it.imminent(protocol, AWAY if protocol is MigrationProtocol.EXPLICIT else None)
        if policy is Policy.PROACTIVE:
            it.client.migrating.probe_server_address(now=it.network.now)
            it.client.flush()
        yield it


def send_all(it: Pair, sender: Endpoint, receiver: Endpoint, packets: Packets) -> None:
    for payload, source, pause in packets:
        if sender.connection._close_event is not None:
            return
        it.deliver(receiver, genuine(sender, payload), source)
        it.network.run_for(pause)
    it.network.run_for(1)


def is_alive(it: Pair) -> bool:
    """Whether the connection is still open; if not, it was closed with a defined error."""
    closed = [side.connection._close_event for side in (it.client, it.server)]
    for event in closed:
        assert event is None or event.error_code in DEFINED, event
    return closed == [None, None]


@policies
@preparations
@given(packets=packets(whole_frames))
@fuzz
def test_frames_to_client(
    protocol: MigrationProtocol | None, policy: Policy, packets: Packets
) -> None:
    """From every kind of address, in any order; what is no violation leaves a connection intact."""
    with prepared(protocol, policy) as it:
        send_all(it, it.server, it.client, packets)
        if is_alive(it):
            it.exchange(Exchange(2000, 2000), limit=60)


@policies
@preparations
@given(packets=packets(garbage))
@fuzz
def test_garbage_to_client(
    protocol: MigrationProtocol | None, policy: Policy, packets: Packets
) -> None:
    with prepared(protocol, policy) as it:
        # Garbage may look like stream data.
        it.client.application = None
        send_all(it, it.server, it.client, packets)
        is_alive(it)


@given(packets=packets(garbage))
@fuzz
def test_garbage_to_server(packets: Packets) -> None:
    with prepared(MigrationProtocol.EXPLICIT, Policy.EAGER) as it:
        it.server.application = None
        elsewhere = ("10.1.0.9", 9)
        it.simulation.observer.address_changed(it.client.external, elsewhere)
        at_client = [
            (payload, it.client.external if source == HOME else elsewhere, pause)
            for payload, source, pause in packets
        ]
        send_all(it, it.client, it.server, at_client)
        is_alive(it)


@given(datagrams=st.lists(st.tuples(st.binary(min_size=1, max_size=1300), sources), max_size=20))
@fuzz
def test_anything_at_all(datagrams: list[tuple[bytes, SimulatedAddress]]) -> None:
    """Without the keys nothing changes."""
    with pair(3) as it:
        it.imminent(MigrationProtocol.SYNCHRONIZED_SYMMETRIC)
        for data, source in datagrams:
            it.deliver(it.client, data, source)
            it.host.receive(data, source)
        it.exchange()
        assert it.client.connection.get_peer_address() == HOME
