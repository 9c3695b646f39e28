"""Our client with a double of the thesis's server, and our server with one of its client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicFrameType
from quicferry_lab.simulation import (
    Datagram,
    Exchange,
    NatKind,
    Path,
    SimulatedAddress,
    ThesisClient,
    ThesisServer,
)
from quicferry_lab.simulation.invariants import check_alive, events_of
from quicferry_lab.simulation.play import play
from quicferry_lab.simulation.scenario import Peer, client_address, draw
from simulated_pair import AWAY, HOME, Pair, pair
from support import (
    EXPLICIT,
    POOL,
    SYMMETRIC,
    SYNCHRONIZED,
    THIRD,
    assert_works,
    ping,
    server_for,
    wired_pair,
)

from quicferry.protocol import (
    ClientMigration,
    MigrationCompleted,
    MigrationProtocol,
    Policy,
    Scheduler,
)

TRAFFIC = [[Exchange(3000, 3000)] * 3]
EAGER = ClientMigration()
REACTIVE = ClientMigration(policy=Policy.REACTIVE, scheduler=Scheduler.CYCLIC)
PROACTIVE = ClientMigration(policy=Policy.PROACTIVE, scheduler=Scheduler.RANDOM)

PROTOCOLS = pytest.mark.parametrize("protocol", MigrationProtocol)
CLIENTS = pytest.mark.parametrize(
    "client", [EAGER, REACTIVE, PROACTIVE], ids=["eager", "reactive", "proactive"]
)
ROUND_TRIPS = pytest.mark.parametrize("round_trip", [0.018, 0.06, 0.15, 0.25])


@contextmanager
def thesis_pair(*, round_trip: float = 0.018, **options: Any) -> Iterator[Pair]:
    """A pair one side of which may be a double, and both may use connection IDs again."""
    with pair(3, path=Path(delay=round_trip / 2), **options) as it:
        it.simulation.observer.may_reuse = lambda sender: True
        it.network.run_for(2)  # until a pool is acknowledged
        yield it


def move(
    it: Pair,
    protocol: MigrationProtocol,
    to: SimulatedAddress,
    *,
    frozen: float = 0.1,
    asks: bool = False,
) -> float:
    """Move the server under traffic; return the time from the switch until both are complete.

    What was asked for the move before has to be answered by then: any acknowledged PATH_RESPONSE
    ends a migration of the thesis's server.
    """
    it.exchange(*[Exchange(100, 100)] * 8)  # until the variance of the round trip is small
    it.network.run_for(1)
    before = len(events_of(it.client, MigrationCompleted))
    it.imminent(protocol, to if protocol is EXPLICIT else None)
    it.requests.start(TRAFFIC)
    it.network.run_for(0.01)
    it.relocate(to, frozen=frozen)
    switched = it.network.now
    if asks:
        it.client.migrating.probe_server_address(now=switched)
        it.client.flush()

    def completed() -> bool:
        check_alive(it.client, it.server)
        return all(
            len(events_of(side, MigrationCompleted)) > before for side in (it.client, it.server)
        )

    it.network.run_until(completed, limit=20, what="completion")
    duration = it.network.now - switched
    it.network.run_until(lambda: it.requests.done, limit=20, what="the requests")
    assert it.client.connection.get_peer_address() == to
    return duration


def ten_moves(
    protocol: MigrationProtocol,
    client: ClientMigration,
    round_trip: float,
    stops: tuple[SimulatedAddress, ...] = (AWAY, HOME),
    **types: type[QuicConnection],
) -> list[float]:
    server = server_for(protocol, *stops, THIRD)
    with thesis_pair(round_trip=round_trip, server=server, client=client, **types) as it:
        asks = client.policy is Policy.PROACTIVE
        return [move(it, protocol, stops[n % len(stops)], asks=asks) for n in range(10)]


@PROTOCOLS
@CLIENTS
@ROUND_TRIPS
def test_ten_moves_of_the_server(
    protocol: MigrationProtocol, client: ClientMigration, round_trip: float
) -> None:
    """They take as long as those of a server of ours, within one round trip."""
    theirs = ten_moves(protocol, client, round_trip, server_type=ThesisServer)
    ours = ten_moves(protocol, client, round_trip)
    assert median(theirs) - median(ours) <= round_trip


@PROTOCOLS
@CLIENTS
@pytest.mark.parametrize("round_trip", [0.018, 0.25])
def test_ten_moves_with_its_client(
    protocol: MigrationProtocol, client: ClientMigration, round_trip: float
) -> None:
    """It replaces no connection IDs: the server goes on with the last one."""
    ten_moves(protocol, client, round_trip, client_type=ThesisClient)


@pytest.mark.parametrize("protocol", [EXPLICIT, POOL])
@CLIENTS
def test_its_client_is_answered_behind_a_nat_that_rebinds(
    protocol: MigrationProtocol, client: ClientMigration
) -> None:
    """It has left no connection ID for its new address: the one in use has to do (RFC 9000 9.5)."""
    with thesis_pair(
        server=server_for(protocol, HOME, AWAY),
        client=client,
        client_type=ThesisClient,
        nat=NatKind.FULL_CONE,
    ) as it:
        for number in range(9):
            move(it, protocol, (AWAY, HOME)[number % 2])
        assert not it.server.migrating.spare_connection_ids
        it.imminent(protocol, HOME if protocol is EXPLICIT else None)
        it.host.freeze()
        it.client.rebind(client_address(4, 9), grace=0)
        it.requests.start(TRAFFIC)
        it.network.run_for(0.1)
        it.host.resume(HOME)
        assert_works(it, HOME)
        assert it.server.connection.get_peer_address() == client_address(4, 9)


@pytest.mark.parametrize("protocol", [EXPLICIT, SYMMETRIC, SYNCHRONIZED])
@CLIENTS
def test_ten_moves_to_other_ports(protocol: MigrationProtocol, client: ClientMigration) -> None:
    stops = tuple((HOME[0], 5000 + number) for number in range(10))
    ten_moves(protocol, client, 0.018, stops, server_type=ThesisServer)


@CLIENTS
def test_protocols_in_turn(client: ClientMigration) -> None:
    with thesis_pair(client=client, server_type=ThesisServer) as it:
        for number, protocol in enumerate((EXPLICIT, SYMMETRIC, SYNCHRONIZED) * 3):
            move(it, protocol, (AWAY, HOME)[number % 2])


@PROTOCOLS
@CLIENTS
@pytest.mark.parametrize("duration", [0.1, 0.5])
def test_false_alarm_before_the_switch(
    protocol: MigrationProtocol, client: ClientMigration, duration: float
) -> None:
    """Home is not asked by PATH_CHALLENGE: its answer would end a migration not begun."""
    server = server_for(protocol, AWAY)
    with thesis_pair(client=client, server=server, server_type=ThesisServer) as it:
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        it.requests.start(TRAFFIC)
        it.network.filters[:] = [lambda datagram: False]
        it.network.run_for(duration)
        it.network.filters.clear()
        it.network.run_until(lambda: it.requests.done, limit=10, what="the requests")
        assert not events_of(it.server, MigrationCompleted)
        it.requests.start(TRAFFIC)
        it.relocate(AWAY, frozen=0.1)
        it.network.run_until(lambda: it.requests.done, limit=10, what="the requests")
        assert_works(it, AWAY)
        assert len(events_of(it.server, MigrationCompleted)) == 1


@PROTOCOLS
@CLIENTS
@pytest.mark.parametrize("held_up", [0.3, 1.0])
def test_a_server_whose_answers_are_held_up(
    protocol: MigrationProtocol, client: ClientMigration, held_up: float
) -> None:
    """By congestion, or its limit against amplification; it is heard meanwhile, again and again."""
    with wired_pair(client=client, server=server_for(protocol, AWAY), server_type=ThesisServer) as (
        it,
        wire,
    ):
        it.simulation.observer.may_reuse = lambda sender: True
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        it.requests.start([[Exchange(100, 2000, pause=0.01)] * 20, [Exchange(50_000, 50_000)]])
        it.network.run_for(0.01)
        it.relocate(AWAY, frozen=0.2)
        end = it.network.now + held_up

        def passes(sent: Datagram) -> bool:
            answers = QuicFrameType.PATH_RESPONSE in wire.read(sent.data)
            return it.network.now > end or sent.source != AWAY or not answers

        it.network.filters[:] = [passes]
        it.network.run_until(lambda: it.requests.done, limit=20, what="the requests")
        assert_works(it, AWAY)


@pytest.mark.parametrize("round_trip", [0.06, 0.15, 0.25, 0.45])
@pytest.mark.parametrize("frozen", [0.5, 3.0])
@pytest.mark.parametrize("protocol", [EXPLICIT, POOL])
def test_a_first_move_to_a_much_longer_path(
    protocol: MigrationProtocol, frozen: float, round_trip: float
) -> None:
    """Nobody knows how long the new path is, nor that the server spends connection IDs."""
    server = server_for(protocol, AWAY, THIRD)
    with thesis_pair(server=server, server_type=ThesisServer) as it:
        for end in ({"source": AWAY}, {"destination": AWAY}):
            it.network.set_path(Path(delay=round_trip / 2), **end)
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        it.host.freeze()
        it.requests.start(TRAFFIC)
        it.network.run_for(frozen)
        it.host.resume(AWAY)
        it.network.run_until(lambda: it.requests.done, limit=5, what="the requests")
        assert_works(it, AWAY)


@pytest.mark.parametrize("round_trip", [0.15, 0.25, 0.3])
@pytest.mark.parametrize("protocol", [EXPLICIT, POOL])
def test_challenges_do_not_use_up_the_connection_ids(
    protocol: MigrationProtocol, round_trip: float
) -> None:
    """Seven arrive before the first answer comes back, if one is sent every 20 ms."""
    server = server_for(protocol, AWAY, THIRD)
    with thesis_pair(round_trip=round_trip, server=server, server_type=ThesisServer) as it:
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        it.host.freeze()
        ping(it.client)
        it.network.run_for(5)
        it.host.resume(AWAY)
        assert_works(it, AWAY)


def test_a_client_that_waits_for_long_goes_on_asking() -> None:
    with wired_pair(path=Path(delay=0.125), server_type=ThesisServer) as (it, wire):
        it.simulation.observer.may_reuse = lambda sender: True
        it.imminent(EXPLICIT, AWAY)
        it.host.freeze()
        for _ in range(10):
            wire.clear()
            it.network.run_for(2)
            assert 3 <= len(wire.select(QuicFrameType.PATH_CHALLENGE, destination=AWAY)) <= 24
        it.host.resume(AWAY)
        assert_works(it, AWAY)


# Seeds that have failed once, and a few more.
SERVER_SEEDS = [
    1,
    56,
    124,
    183,
    280,
    377,
    419,
    470,
    472,
    569,
    674,
    711,
    801,
    805,
    951,
    1057,
    1127,
    5292,
    10059,
    10978,
    11074,
    11700,
    30001498,
    30003212,
    30003500,
    30004404,
    30005025,
    30005992,
    30008088,
    30008243,
    30008832,
    31000196,
    31000760,
    31000901,
    31000990,
    32007498,
]
CLIENT_SEEDS = [12, 14, 22, 25, 77, 87, 5052, 5116, 5378, 11246]


@pytest.mark.parametrize("seed", [*range(2000, 2020), *SERVER_SEEDS])
def test_drawn_moves_of_its_server(seed: int) -> None:
    play(draw(seed, Peer.THESIS_SERVER))


@pytest.mark.parametrize("seed", [*range(2000, 2020), *CLIENT_SEEDS])
def test_drawn_moves_with_its_client(seed: int) -> None:
    play(draw(seed, Peer.THESIS_CLIENT))


def test_drawn_moves_cover_what_they_should() -> None:
    scenarios = [draw(seed, Peer.THESIS_SERVER) for seed in range(500)]
    assert {len(scenario.moves) for scenario in scenarios} >= {1, 2, 3, 10}
    assert max(len(scenario.pool) for scenario in scenarios) > 7
    assert max(scenario.copies for scenario in scenarios) > 20
    assert any(
        len({move.protocol for move in scenario.moves}) == 3 and move.alarm
        for scenario in scenarios
        for move in scenario.moves
    )
