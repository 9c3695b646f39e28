"""Attackers on and off the path, hostile peers, and floods."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from ipaddress import ip_address

import pytest
from aioquic.quic.connection import MAX_NETWORK_PATHS
from aioquic.quic.packet import QuicErrorCode, QuicProtocolVersion
from aioquic.tls import CipherSuite, Epoch
from quicferry_lab.simulation import Answer, Datagram, Endpoint, Exchange, SimulatedAddress
from quicferry_lab.simulation.invariants import events_of
from simulated_pair import (
    AWAY,
    ELSEWHERE,
    HOME,
    Pair,
    Until,
    address,
    genuine,
    pair,
    pool,
)

from quicferry.protocol import (
    Address,
    FrameType,
    MigrationAddress,
    MigrationCompleted,
    MigrationProtocol,
    PoolAddressReceived,
    ServerMigration,
)
from quicferry.protocol.options import MAX_POOL_SIZE

EXPLICIT = MigrationProtocol.EXPLICIT
POOL = MigrationProtocol.POOL_OF_ADDRESSES
SYMMETRIC = MigrationProtocol.SYMMETRIC
SYNCHRONIZED = MigrationProtocol.SYNCHRONIZED_SYMMETRIC

PING = b"\x01"
PATH_CHALLENGE = b"\x1a" + bytes(8)
TRANSFER = Exchange(30_000, 30_000, answer=Answer.AT_ONCE)


def server_migration(target: SimulatedAddress | None) -> bytes:
    body = MigrationAddress() if target is None else MigrationAddress.of(address(target))
    return bytes([FrameType.SERVER_MIGRATION]) + body.encode()


def pool_address(target: SimulatedAddress) -> bytes:
    body = MigrationAddress.of(address(target))
    return bytes([FrameType.POOL_MIGRATION_ADDRESS]) + body.encode()


SERVER_MIGRATED = bytes([FrameType.SERVER_MIGRATED])


def sent_to(it: Pair, destination: SimulatedAddress) -> list[Datagram]:
    """Every datagram that goes to `destination` from now on."""
    log: list[Datagram] = []

    def tap(datagram: Datagram) -> None:
        if datagram.destination == destination:
            log.append(datagram)

    it.network.taps.append(tap)
    return log


def total(datagrams: list[Datagram]) -> int:
    return sum(len(datagram.data) for datagram in datagrams)


def assert_unharmed(it: Pair, server: SimulatedAddress = HOME) -> None:
    """The connection works, and both sides know where the other is."""
    it.exchange(TRANSFER)
    it.network.run_for(0.5)
    assert it.client.terminated is None
    assert it.server.terminated is None
    assert it.client.connection.get_peer_address() == server
    assert it.server.connection.get_peer_address() == it.client.external


def closed_with(endpoint: Endpoint) -> int:
    endpoint_state = endpoint.connection._close_event
    assert endpoint_state is not None, f"{endpoint.name} did not close"
    return endpoint_state.error_code


# Forged frames from an off-path sender, who has no keys.


@pytest.mark.parametrize("source", [HOME, AWAY, ELSEWHERE])
@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_forged_packets_change_nothing(
    source: SimulatedAddress, protocol: MigrationProtocol
) -> None:
    configuration = ServerMigration(pool=pool(AWAY)) if protocol is POOL else ServerMigration()
    with pair(1, server=configuration) as it:
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        it.network.run_for(0.2)
        events = list(it.client.migration_events)
        paths = [path.addr for path in it.client.connection._network_paths]
        rng = random.Random(1)
        it.requests.start([[TRANSFER]])
        # The worst case: the attacker has guessed a valid connection ID.
        connection_id = it.client.connection.host_cid
        for number in range(200):
            forged = bytes([0x40 | rng.randrange(32)]) + connection_id
            forged += rng.randbytes(rng.randrange(100))
            it.network.call_later(
                number / 10_000,
                partial(it.network.send, forged, source, it.client.external),
            )
        it.network.run_until(lambda: it.requests.done, limit=10, what="transfer")
        assert it.client.migration_events == events
        assert [path.addr for path in it.client.connection._network_paths] == paths
        assert_unharmed(it)


@pytest.mark.parametrize("frame", [server_migration(ELSEWHERE), SERVER_MIGRATED])
def test_forged_initial_packets_change_nothing(frame: bytes) -> None:
    """Anyone who saw the handshake can make Initial packets, whose keys are no secret."""
    with pair(2) as it:
        forged = genuine(it.server, frame, epoch=Epoch.ONE_RTT)
        initial = b"\xc0" + (1).to_bytes(4, "big") + b"\x08" + it.client.connection.host_cid
        initial += b"\x08" + it.server.connection.host_cid + b"\x00" + b"\x44\xb0"
        it.deliver(it.client, (initial + forged).ljust(1200, b"\0"), HOME)
        assert_unharmed(it)


# A genuine packet, copied from another address (RFC 9000 9.3.2).


@dataclass
class Copier:
    """Sends copies of the packets to `victim` from a forged address, faster than the network."""

    it: Pair
    victim: Endpoint
    forged: SimulatedAddress
    packets: int
    seconds: float = 1.0
    sent_bytes: int = 0

    def start(self) -> None:
        end = self.it.network.now + self.seconds

        def tap(datagram: Datagram) -> None:
            if (
                datagram.destination == self.address
                and datagram.source != self.forged
                and self.packets
                and self.it.network.now < end
            ):
                self.packets -= 1
                self.sent_bytes += len(datagram.data)
                self.it.network.call_later(
                    0.001, lambda: self.it.deliver(self.victim, datagram.data, self.forged)
                )

        self.it.network.taps.append(tap)

    @property
    def address(self) -> SimulatedAddress:
        return self.it.client.external if self.victim is self.it.client else self.it.host.address


COPIES = [1, 5, 1000]


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("protocol", [None, *MigrationProtocol])
def test_packets_copied_to_client(protocol: MigrationProtocol | None, copies: int) -> None:
    """The connection ends on the genuine path, and the forged address gets little."""
    configuration = ServerMigration(pool=pool(AWAY)) if protocol is POOL else ServerMigration()
    with pair(3, server=configuration) as it:
        if protocol is not None:
            it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        towards_forged = sent_to(it, ELSEWHERE)
        attacker = Copier(it, it.client, ELSEWHERE, copies)
        attacker.start()
        it.exchange(TRANSFER)
        assert attacker.sent_bytes
        assert not events_of(it.client, MigrationCompleted)
        it.network.run_for(5)
        assert_unharmed(it)
        assert total(towards_forged) <= 3 * attacker.sent_bytes


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_packets_copied_to_client_at_network_switch(
    protocol: MigrationProtocol, copies: int
) -> None:
    """The attacker copies what comes from the new address; the migration is completed there."""
    configuration = ServerMigration(pool=pool(AWAY)) if protocol is POOL else ServerMigration()
    with pair(4, server=configuration) as it:
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        attacker = Copier(it, it.client, ELSEWHERE, copies)
        attacker.start()
        it.requests.start([[TRANSFER]])
        it.network.run_for(0.01)
        it.relocate(AWAY, frozen=0.05)
        it.network.run_until(lambda: it.requests.done, limit=30, what="transfer")
        assert attacker.sent_bytes
        it.network.run_for(5)
        assert_unharmed(it, AWAY)
        assert len(events_of(it.client, MigrationCompleted)) == 1
        assert len(events_of(it.server, MigrationCompleted)) == 1


@pytest.mark.parametrize("copies", COPIES)
@pytest.mark.parametrize("relocated", [False, True])
def test_packets_copied_to_server(relocated: bool, copies: int) -> None:
    with pair(5) as it:
        it.imminent(EXPLICIT, AWAY)
        # To the server this is a NAT rebinding, for which RFC 9000 9.5 makes an exception.
        it.simulation.observer.address_changed(it.client.external, ELSEWHERE)
        towards_forged = sent_to(it, ELSEWHERE)
        it.requests.start([[TRANSFER]])
        if relocated:
            it.network.run_for(0.01)
            it.relocate(AWAY, frozen=0.05)
        attacker = Copier(it, it.server, ELSEWHERE, copies)
        attacker.start()
        it.network.run_until(lambda: it.requests.done, limit=30, what="transfer")
        assert attacker.sent_bytes
        it.network.run_for(5)
        assert_unharmed(it, it.host.address)
        assert total(towards_forged) <= 3 * attacker.sent_bytes


# An address that must be refused, from a server that is hostile.


@pytest.mark.parametrize(
    "host",
    ["224.0.0.1", "255.255.255.255", "0.0.0.0", "127.0.0.1", "169.254.1.1"],
)
@pytest.mark.parametrize(
    "frame_type", [FrameType.SERVER_MIGRATION, FrameType.POOL_MIGRATION_ADDRESS]
)
def test_refused_addresses(host: str, frame_type: FrameType) -> None:
    with pair(6) as it:
        target = Address(ip_address(host), 4433)
        frame = bytes([frame_type]) + MigrationAddress.of(target).encode()
        towards_target = sent_to(it, (host, 4433))
        it.deliver(it.client, genuine(it.server, frame), HOME)
        it.network.run_for(5)
        assert towards_target == []
        assert closed_with(it.client) == QuicErrorCode.PROTOCOL_VIOLATION


@pytest.mark.parametrize(
    "host", ["ff02::1", "::ffff:10.0.0.9", "::1", "fe80::1", "::ffff:127.0.0.1"]
)
def test_refused_ipv6_addresses(host: str) -> None:
    home: SimulatedAddress = ("2001:db8::1", 4433, 0, 0)
    with pair(7, home=home) as it:
        target = Address(ip_address(host), 4433)
        frame = bytes([FrameType.SERVER_MIGRATION]) + MigrationAddress.of(target).encode()
        towards_target = sent_to(it, (host, 4433, 0, 0))
        it.deliver(it.client, genuine(it.server, frame), home)
        it.network.run_for(5)
        assert towards_target == []
        assert closed_with(it.client) == QuicErrorCode.PROTOCOL_VIOLATION


# Amplification: what a hostile server can make its clients send is in test_budget.py.

CHALLENGE_SIZE = 36


def test_amplification_ends() -> None:
    """A client whose server lives, but never moves, stops asking after ten minutes."""
    with pair(10) as it:
        towards_victim = sent_to(it, AWAY)
        it.imminent(EXPLICIT, AWAY)
        for _ in range(20):
            it.network.run_for(40)
            it.exchange()
        assert len(towards_victim) <= 700
        assert it.network.now - towards_victim[-1].time > 100
        # Should the server move after all, a timeout starts it again.
        it.relocate(AWAY)
        it.exchange()
        assert_unharmed(it, AWAY)


def test_amplification_by_forged_packets() -> None:
    """Who cannot make packets cannot make the client send anything anywhere."""
    with pair(11) as it:
        it.imminent(MigrationProtocol.SYNCHRONIZED_SYMMETRIC)
        towards_victim = sent_to(it, ELSEWHERE)
        rng = random.Random(1)
        for _ in range(500):
            forged = b"\x40" + it.client.connection.host_cid + rng.randbytes(1100)
            it.deliver(it.client, forged, ELSEWHERE)
        it.network.run_for(5)
        assert towards_victim == []
        assert_unharmed(it)


# Frames from a client, and frames in the wrong packet type.

FRAMES = [server_migration(AWAY), server_migration(None), SERVER_MIGRATED, pool_address(AWAY)]


@pytest.mark.parametrize("frame", FRAMES)
def test_frames_from_client(frame: bytes) -> None:
    with pair(12) as it:
        it.deliver(it.server, genuine(it.client, frame), it.client.external)
        assert closed_with(it.server) == QuicErrorCode.PROTOCOL_VIOLATION


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize(
    ("epoch", "until"),
    [(Epoch.INITIAL, Until.CLIENT_HELLO), (Epoch.HANDSHAKE, Until.SERVER_HELLO)],
)
def test_frames_in_handshake_packets(epoch: Epoch, until: Until, frame: bytes) -> None:
    with pair(13, until=until) as it:
        it.deliver(it.client, genuine(it.server, frame, epoch=epoch), HOME)
        assert closed_with(it.client) == QuicErrorCode.PROTOCOL_VIOLATION


@pytest.mark.parametrize("frame", FRAMES)
def test_frames_in_early_data(frame: bytes) -> None:
    with pair(14, until=Until.SERVER_HELLO) as it:
        # The keys of a resumed session; how the two sides came by them does not matter here.
        for crypto in (
            it.client.connection._cryptos[Epoch.ZERO_RTT].send,
            it.server.connection._cryptos[Epoch.ZERO_RTT].recv,
        ):
            crypto.setup(
                cipher_suite=CipherSuite.AES_128_GCM_SHA256,
                secret=bytes(32),
                version=QuicProtocolVersion.VERSION_1,
            )
        early = genuine(it.client, frame, epoch=Epoch.ZERO_RTT)
        it.deliver(it.server, early, it.client.external)
        assert closed_with(it.server) == QuicErrorCode.PROTOCOL_VIOLATION


# Floods.


def test_flood_of_pool_addresses() -> None:
    with pair(15) as it:
        for number in range(1, 5000):
            target = (f"10.9.{number >> 8}.{number & 255}", 4433)
            it.deliver(it.client, genuine(it.server, pool_address(target)), HOME)
        assert closed_with(it.client) == QuicErrorCode.PROTOCOL_VIOLATION
        assert len(events_of(it.client, PoolAddressReceived)) <= MAX_POOL_SIZE
        assert len(it.client.connection._network_paths) <= MAX_NETWORK_PATHS


@pytest.mark.parametrize("frame", [*FRAMES, SERVER_MIGRATED + PATH_CHALLENGE])
def test_flood_of_repeated_frames(frame: bytes) -> None:
    """The same again and again changes nothing, and is paid for by the memory of one packet."""
    with pair(16) as it:
        it.deliver(it.client, genuine(it.server, frame * 30), HOME)
        it.network.run_for(1)
        events = len(it.client.migration_events)
        grown = memory_growth(
            it, lambda: it.deliver(it.client, genuine(it.server, frame * 30), HOME), 200
        )
        assert len(it.client.migration_events) == events <= 2
        assert grown < 200_000
        assert_unharmed(it)


def test_flood_of_genuine_packets_from_many_addresses() -> None:
    """Only somebody with the keys can do this; paths stay few, and the connection goes on."""
    with pair(17) as it:
        numbers = iter(range(10_000))

        def deliver() -> None:
            number = next(numbers)
            source = (f"10.9.{number >> 8}.{number & 255}", 4433)
            it.deliver(it.client, genuine(it.server, PING), source)

        grown = memory_growth(it, deliver, 2000)
        assert len(it.client.connection._network_paths) <= MAX_NETWORK_PATHS
        assert grown < 500_000
        it.network.run_for(10)
        assert_unharmed(it)


def test_flood_of_copies_from_many_addresses() -> None:
    """Each could be the server's; four are asked in a probe timeout, and home is asked as well."""
    with pair(19) as it:
        it.imminent(SYMMETRIC)
        challenges = {True: 0, False: 0}

        def tap(datagram: Datagram) -> None:
            if datagram.source == it.client.external and len(datagram.data) <= CHALLENGE_SIZE:
                challenges[datagram.destination == HOME] += 1

        it.network.taps.append(tap)
        sources = [(f"10.9.{number >> 8}.{number & 255}", 4433) for number in range(2000)]
        started = it.network.now
        for number, source in enumerate(sources):
            copy = genuine(it.server, PING)
            it.deliver(it.client, copy, source)
            if number % 4 == 0:
                it.network.run_for(0.001)
        timeout = it.client.connection._loss.get_probe_timeout()
        asked = 4 * (1 + (it.network.now - started) / min(timeout, 0.02))
        assert 0 < challenges[False] <= asked
        assert len(it.client.connection._network_paths) <= MAX_NETWORK_PATHS
        assert not events_of(it.client, MigrationCompleted)
        it.network.run_for(1)
        assert_unharmed(it)
        it.relocate(AWAY)
        it.network.run_for(1)
        assert_unharmed(it, AWAY)


def test_flood_of_garbage_from_many_addresses() -> None:
    with pair(18) as it:
        rng = random.Random(1)
        numbers = iter(range(10_000))

        def deliver() -> None:
            number = next(numbers)
            source = (f"10.9.{number >> 8}.{number & 255}", 4433)
            garbage = b"\x40" + it.client.connection.host_cid + rng.randbytes(100)
            it.deliver(it.client, garbage, source)

        grown = memory_growth(it, deliver, 2000)
        assert len(it.client.connection._network_paths) <= 2
        assert grown < 100_000
        assert_unharmed(it)


def memory_growth(it: Pair, action: Callable[[], None], times: int) -> int:
    """Bytes that the connections still use after an action was repeated, more than after 100."""
    for _ in range(100):
        action()
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(times):
            action()
        # What the simulation remembers is not theirs.
        it.simulation.observer.forget()
        it.client.heard.clear()
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
