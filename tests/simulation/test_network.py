"""The simulated network itself, with stock aioquic connections where connections are needed."""

from __future__ import annotations

import hashlib

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoContext
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import CipherSuite
from quicferry_lab.simulation import (
    Exchange,
    Guard,
    InvariantError,
    Nat,
    NatKind,
    Network,
    Observer,
    Path,
    Requests,
    Responder,
    Sharing,
    SimulatedAddress,
    Simulation,
    SimulationError,
    stock_configuration,
)
from quicferry_lab.simulation.coincidences import Loss, Losses, Moment
from quicferry_lab.simulation.network import START, Datagram

A: SimulatedAddress = ("10.0.0.1", 1)
B: SimulatedAddress = ("10.0.0.2", 2)
C: SimulatedAddress = ("10.0.0.3", 3)

Arrivals = list[tuple[float, bytes, SimulatedAddress]]


def listen(network: Network, address: SimulatedAddress) -> Arrivals:
    arrivals: Arrivals = []
    network.attach(
        address, lambda data, source: arrivals.append((network.now - START, data, source))
    )
    return arrivals


def test_datagrams_arrive_after_delay() -> None:
    network = Network(default_path=Path(delay=0.25))
    arrivals = listen(network, B)
    network.send(b"x", A, B)
    network.run_for(1)
    assert arrivals == [(0.25, b"x", A)]
    assert network.now == START + 1


def test_clients_of_one_host_can_share_its_paths() -> None:
    second = (A[0], A[1] + 1)
    arrivals = {}
    for sharing in Sharing:
        network = Network(sharing=sharing)
        network.set_path(Path(delay=0, rate=1000), destination=B)
        arrivals[sharing] = listen(network, B)
        for source in (A, second):
            network.send(bytes(97), source, B)  # 125 bytes with the headers
        network.run_for(10)
    assert [at for at, *_ in arrivals[Sharing.PER_ADDRESS]] == [1, 1]
    assert [at for at, *_ in arrivals[Sharing.PER_HOST]] == [1, 2]


def test_most_specific_path_wins() -> None:
    network = Network(default_path=Path(delay=1))
    network.set_path(Path(delay=2), destination=B)
    network.set_path(Path(delay=3), source=A)
    network.set_path(Path(delay=4), source=A, destination=B)
    assert network.path(C, A).delay == 1
    assert network.path(C, B).delay == 2
    assert network.path(A, C).delay == 3
    assert network.path(A, B).delay == 4


def test_path_can_change_while_in_use() -> None:
    network = Network(default_path=Path(delay=1))
    arrivals = listen(network, B)
    network.send(b"1", A, B)
    network.set_path(Path(delay=2), destination=B)
    network.send(b"2", A, B)
    network.run_for(3)
    assert [(when, data) for when, data, _ in arrivals] == [(1, b"1"), (2, b"2")]


def test_rate_and_queue() -> None:
    # 8000 bit/s are 1000 bytes a second; 72 bytes and their headers take 0.1 s.
    network = Network(default_path=Path(delay=0, rate=8000, queue=180))
    arrivals = listen(network, B)
    for _ in range(3):
        network.send(bytes(72), A, B)
    network.run_for(1)
    assert [when for when, _, _ in arrivals] == pytest.approx([0.1, 0.2])
    assert network.counters.overflowed == 1


def test_loss_duplication_and_order() -> None:
    network = Network(7, default_path=Path(delay=0.1, loss=0.1, jitter=0.05, duplication=0.0))
    arrivals = listen(network, B)
    for number in range(1000):
        network.send(number.to_bytes(2, "big"), A, B)
    network.run_for(1)
    numbers = [data for _, data, _ in arrivals]
    assert 850 < len(numbers) < 950
    assert numbers == sorted(numbers)

    network.set_path(Path(delay=0.1, duplication=0.1, reordering=0.1, reordering_delay=0.1))
    arrivals.clear()
    for number in range(1000):
        network.send(number.to_bytes(2, "big"), A, B)
    network.run_for(1)
    numbers = [data for _, data, _ in arrivals]
    assert 1050 < len(numbers) < 1150
    assert len(set(numbers)) == 1000
    assert numbers != sorted(numbers)


def test_datagrams_to_nobody_vanish() -> None:
    network = Network()
    network.send(b"x", A, B)
    listen(network, C)
    network.detach(C)
    network.send(b"x", A, C)
    network.run_for(1)
    assert network.counters.unreachable == 2


def test_address_in_use() -> None:
    network = Network()
    listen(network, A)
    with pytest.raises(SimulationError, match="in use"):
        listen(network, A)


def test_run_until_gives_up() -> None:
    with pytest.raises(SimulationError, match="rain: not within 5 s"):
        Network().run_until(lambda: False, limit=5, what="rain")


def test_time_must_not_stand_still() -> None:
    network = Network()

    def again() -> None:
        network.call_later(0, again)

    again()
    with pytest.raises(SimulationError, match="time stands still"):
        network.run_for(1)


@pytest.mark.parametrize(
    ("kind", "from_peer", "from_other_port", "from_other_host"),
    [
        (NatKind.FULL_CONE, True, True, True),
        (NatKind.ADDRESS_RESTRICTED, True, True, False),
        (NatKind.PORT_RESTRICTED, True, False, False),
    ],
)
def test_nat_filters(
    kind: NatKind, from_peer: bool, from_other_port: bool, from_other_host: bool
) -> None:
    network = Network()
    nat = Nat(network, kind, ("192.0.2.1", 1000))
    received: list[SimulatedAddress] = []
    nat.attach(lambda data, source: received.append(source))
    at_peer = listen(network, B)
    nat.send(b"out", B)
    network.run_for(1)
    assert at_peer[0][2] == ("192.0.2.1", 1000)
    for source in (B, (B[0], 99), C):
        network.send(b"in", source, nat.external)
    network.run_for(1)
    expected = {B: from_peer, (B[0], 99): from_other_port, C: from_other_host}
    assert {source: source in received for source in expected} == expected


def test_nat_rebinding_and_grace() -> None:
    network = Network(default_path=Path(delay=0))
    nat = Nat(network, NatKind.FULL_CONE, ("192.0.2.1", 1000))
    received: list[bytes] = []
    nat.attach(lambda data, source: received.append(data))
    nat.rebind(("192.0.2.1", 2000), grace=1)
    network.send(b"to old", B, ("192.0.2.1", 1000))
    network.send(b"to new", B, ("192.0.2.1", 2000))
    network.run_for(2)
    network.send(b"too late", B, ("192.0.2.1", 1000))
    network.run_for(1)
    assert received == [b"to old", b"to new"]


def test_connection_id_between_two_addresses_is_noticed() -> None:
    observer = Observer()
    datagram = b"\x40" + bytes(30)
    observer.datagram_sent("x", A, B, datagram)
    observer.datagram_sent("y", A, C, datagram)
    with pytest.raises(InvariantError, match="connection ID"):
        observer.datagram_sent("x", A, C, datagram)


def test_nat_rebinding_is_no_second_address() -> None:
    observer = Observer()
    datagram = b"\x40" + bytes(30)
    observer.datagram_sent("x", A, B, datagram)
    observer.address_changed(B, C)
    observer.datagram_sent("x", A, C, datagram)


def test_client_that_moves_gets_a_new_connection_id() -> None:
    observer = Observer()
    before, after = b"\x40" + bytes(30), b"\x40" + bytes(8 * [1]) + bytes(22)
    observer.datagram_sent("x", A, B, before)
    observer.client_moved(B, C)
    # The peer does not know yet.
    observer.datagram_sent("x", A, B, before)
    observer.datagram_received("x", C)
    observer.datagram_sent("x", A, C, after)
    observer.datagram_sent("x", A, B, after)
    with pytest.raises(InvariantError, match="connection ID"):
        observer.datagram_sent("x", A, C, before)


TROUBLED = Path(delay=0.01, rate=10e6, loss=0.02, jitter=0.002, reordering=0.02, duplication=0.02)


def transfer(seed: int, nat: NatKind | None = None) -> tuple[str, float]:
    """A digest of everything on the wire, and how long it took."""
    digest = hashlib.sha256()
    with Simulation(seed, path=TROUBLED) as simulation:
        network = simulation.network
        network.taps.append(lambda datagram: digest.update(repr(datagram).encode()))
        simulation.server(
            A,
            stock_configuration(is_client=False),
            connection_type=QuicConnection,
            application=Responder,
        )
        client = simulation.client(
            B,
            stock_configuration(is_client=True),
            connection_type=QuicConnection,
            nat=nat,
            external=C,
        )
        requests = Requests(client)
        client.connect(A)
        network.run_until(lambda: client.handshake_complete, limit=10, what="handshake")
        requests.start([[Exchange(30_000, 20_000)], [Exchange(10, 500), Exchange(500, 10)]])
        network.run_until(lambda: requests.done, limit=60, what="transfer")
        assert requests.completed == 3
        return digest.hexdigest(), network.now


def test_stock_connections_on_a_troubled_network() -> None:
    first = transfer(1)
    assert transfer(1) == first
    assert transfer(2) != first


@pytest.mark.parametrize("nat", NatKind)
def test_stock_connections_behind_nat(nat: NatKind) -> None:
    transfer(3, nat)


def test_a_guard_notices_a_packet_number_that_was_used() -> None:
    guard = Guard()
    crypto = CryptoContext()
    crypto.setup(
        cipher_suite=CipherSuite.AES_128_GCM_SHA256,
        secret=bytes(32),
        version=QuicProtocolVersion.VERSION_1,
    )
    with guard.watching():
        for number in (1, 3):
            crypto.encrypt_packet(bytes(20), bytes(20), number)
        for number in (3, 2):
            with pytest.raises(InvariantError, match=f"packet number {number} "):
                crypto.encrypt_packet(bytes(20), bytes(20), number)
    assert not guard.packets


def test_losses_are_counted_from_their_moment() -> None:
    losses = Losses(
        (
            Loss(Moment.SWITCH, by_client=True, skipped=1, count=2),
            Loss(Moment.READINESS, by_client=False, skipped=0, count=1),
        )
    )

    def fates(source: SimulatedAddress) -> list[bool]:
        datagram = Datagram(START, source, C, b"")
        return [losses.allows(datagram, B) for _ in range(4)]

    assert fates(A) == fates(B) == [True] * 4
    losses.now(Moment.SWITCH)
    assert fates(A) == [True, False, False, True]
    assert fates(B) == [True] * 4
    losses.now(Moment.READINESS)
    assert fates(B) == [False, True, True, True]
    assert fates(A) == [True] * 4
