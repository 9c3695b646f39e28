"""Pool of Addresses between real connections: schedulers, false alarms, and what the pool costs."""

from __future__ import annotations

from typing import Any

import pytest
from aioquic.quic.packet import QuicFrameType
from quicferry_lab.simulation import Exchange, NatKind, Path, SimulatedAddress
from quicferry_lab.simulation.invariants import events_of
from simulated_pair import AWAY, ELSEWHERE, HOME, RTT, Pair, address, pool
from support import POOL, THIRD, Wire, inject, lose, named, ping, thaw, wait_for_state, wired_pair

from quicferry.protocol import (
    ClientMigration,
    MigrationCompleted,
    ProbingStarted,
    Scheduler,
    ServerMigration,
)

CHALLENGE, PING = QuicFrameType.PATH_CHALLENGE, QuicFrameType.PING
OTHERS: list[SimulatedAddress] = [(f"10.0.0.{number}", 4433) for number in range(10, 16)]
SCHEDULERS = pytest.mark.parametrize("scheduler", Scheduler)
SMALL = Exchange(100, 100)


def options(scheduler: Scheduler, *addresses: SimulatedAddress, seed: int = 0) -> dict[str, Any]:
    return {
        "client": ClientMigration(scheduler=scheduler, seed=seed),
        "server": ServerMigration(pool=pool(*addresses)),
    }


def looked_at(it: Pair, wire: Wire) -> list[SimulatedAddress]:
    """The addresses that the client sent to, in order, each run of one address once."""
    order: list[SimulatedAddress] = []
    for sent in wire.select(source=it.client.external):
        if not order or order[-1] != sent.destination:
            order.append(sent.destination)
    return order


@SCHEDULERS
def test_ready_at_once(scheduler: Scheduler) -> None:
    with wired_pair(**options(scheduler, AWAY)) as (it, wire):
        before = it.network.now
        it.imminent(POOL)
        assert it.network.now == before
        assert wire.sent == []


@SCHEDULERS
@pytest.mark.parametrize("target", [AWAY, THIRD, OTHERS[0]])
def test_the_server_need_not_say_where_it_goes(
    scheduler: Scheduler, target: SimulatedAddress
) -> None:
    with wired_pair(**options(scheduler, AWAY, THIRD, OTHERS[0])) as (it, wire):
        it.imminent(POOL)
        wire.clear()
        it.relocate(target, frozen=0.1)
        it.network.run_for(0.5)
        assert wire.sent == [], "nothing at the network switch"
        it.exchange(SMALL)
        it.network.run_for(0.5)
        completed = MigrationCompleted(POOL, address(target))
        assert events_of(it.client, MigrationCompleted) == [completed]
        assert events_of(it.server, MigrationCompleted) == [completed]


def test_cyclic_order_on_the_wire() -> None:
    with wired_pair(**options(Scheduler.CYCLIC, AWAY, HOME, THIRD)) as (it, wire):
        it.host.freeze()
        wire.clear()
        ping(it.client)
        it.network.run_for(0.5)
        assert looked_at(it, wire)[:6] == [HOME, AWAY, THIRD, HOME, AWAY, THIRD]
        assert events_of(it.client, ProbingStarted) == [
            ProbingStarted(POOL, address(AWAY)),
            ProbingStarted(POOL, address(THIRD)),
        ]


def test_random_order_is_seeded() -> None:
    def order(seed: int) -> list[SimulatedAddress]:
        with wired_pair(**options(Scheduler.RANDOM, *OTHERS, seed=seed)) as (it, wire):
            it.host.freeze()
            ping(it.client)
            it.network.run_for(1)
            return looked_at(it, wire)

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert set(order(1)) == {HOME, *OTHERS}


def test_parallel_asks_all_at_once_and_keeps_its_data_at_home() -> None:
    with wired_pair(**options(Scheduler.PARALLEL, *OTHERS)) as (it, wire):
        it.host.freeze()
        it.requests.start([[Exchange(3_000, 10)]])
        it.network.run_for(1)
        for other in OTHERS:
            probes = wire.select(destination=other)
            assert {kind for sent in probes for kind in sent.types} == {CHALLENGE, PING}
            assert probes[0].time == wire.select(destination=OTHERS[0])[0].time
        assert len({sent.time for sent in wire.select(CHALLENGE)}) >= 10


@pytest.mark.parametrize("rtt", [0.018, 0.1])
def test_parallel_does_not_grow_with_the_pool(rtt: float) -> None:
    def first_response(*addresses: SimulatedAddress) -> float:
        with wired_pair(**options(Scheduler.PARALLEL, *addresses), path=Path(delay=rtt / 2)) as (
            it,
            _,
        ):
            it.imminent(POOL)
            it.relocate(addresses[-1], frozen=0.2)
            return it.exchange(SMALL)

    assert first_response(*OTHERS) <= first_response(OTHERS[-1]) * 1.01


@SCHEDULERS
@pytest.mark.parametrize("rtt", [0.004, 0.018, 0.3])
def test_found_over_any_distance(scheduler: Scheduler, rtt: float) -> None:
    """Also where the answer takes longer than the schedule stays at one address."""
    with wired_pair(**options(scheduler, AWAY, THIRD, *OTHERS[:2]), path=Path(delay=rtt / 2)) as (
        it,
        _,
    ):
        it.exchange(SMALL)
        it.imminent(POOL)
        it.relocate(THIRD, frozen=0.5)
        assert it.exchange(SMALL) < 8 * rtt + 0.3
        it.network.run_for(4 * rtt)
        for side in (it.client, it.server):
            assert events_of(side, MigrationCompleted) == [MigrationCompleted(POOL, address(THIRD))]


@SCHEDULERS
def test_a_pool_as_large_as_it_may_be(scheduler: Scheduler) -> None:
    """There is a connection ID for each address, and others come for those that were used."""
    addresses = [*OTHERS, AWAY]
    with wired_pair(**options(scheduler, *addresses)) as (it, _):
        for target in (*addresses, *addresses):
            it.imminent(POOL)
            it.relocate(target, frozen=0.3)
            it.exchange(SMALL)
            it.network.run_for(1)
            assert it.client.connection.get_peer_address() == target
            assert named(it.server)[-1] == "MigrationCompleted"


# False alarms


@SCHEDULERS
def test_false_alarm_rolls_back_and_restarts_the_schedule(scheduler: Scheduler) -> None:
    with wired_pair(**options(scheduler, AWAY, THIRD)) as (it, wire):
        for _ in range(3):
            it.host.freeze()
            wire.clear()
            ping(it.client)
            it.network.run_for(0.3)
            assert it.client.migrating.migration_state != "idle"
            if scheduler is Scheduler.CYCLIC:
                assert looked_at(it, wire)[:3] == [HOME, AWAY, THIRD]
            thaw(it)
            it.exchange(SMALL)
            it.network.run_for(0.3)
            assert it.client.migrating.migration_state == "idle"
            assert it.client.connection.get_peer_address() == HOME
        assert events_of(it.client, MigrationCompleted) == []


@SCHEDULERS
def test_the_pool_outlives_migrations_and_false_alarms(scheduler: Scheduler) -> None:
    with wired_pair(**options(scheduler, AWAY, THIRD, HOME)) as (it, wire):
        for target in (THIRD, HOME, AWAY):
            lose(it.network, lambda datagram: datagram.source == it.client.external, 1)
            it.exchange(SMALL)
            it.imminent(POOL)
            it.relocate(target, frozen=0.2)
            it.exchange(SMALL)
            it.network.run_for(1)
            assert it.client.connection.get_peer_address() == target
        assert wire.select(0x34) == [], "it is not sent again"


@SCHEDULERS
def test_behind_a_nat_that_lets_nobody_in(scheduler: Scheduler) -> None:
    with wired_pair(**options(scheduler, AWAY, THIRD), nat=NatKind.PORT_RESTRICTED) as (it, _):
        it.imminent(POOL)
        it.relocate(AWAY, frozen=0.1)
        it.exchange(SMALL)
        it.network.run_for(0.5)
        assert named(it.server)[-1] == "MigrationCompleted"


# Who may be at the other end


@SCHEDULERS
def test_packets_from_elsewhere_change_nothing(scheduler: Scheduler) -> None:
    with wired_pair(**options(scheduler, AWAY)) as (it, wire):
        inject(it, b"\x01", ELSEWHERE)
        it.host.freeze()
        ping(it.client)
        it.network.run_for(0.3)
        state = it.client.migrating.migration_state
        inject(it, b"\x01", ELSEWHERE)
        assert it.client.migrating.migration_state == state
        assert wire.select(destination=ELSEWHERE) == []


def test_a_server_that_speaks_first_is_followed() -> None:
    with wired_pair(**options(Scheduler.CYCLIC, AWAY, THIRD)) as (it, _):
        it.imminent(POOL)
        it.relocate(THIRD)
        ping(it.server)
        wait_for_state(it, "validating_pool", limit=RTT)
        it.network.run_for(0.2)
        assert events_of(it.client, ProbingStarted) == []
        assert it.client.connection.get_peer_address() == THIRD


@SCHEDULERS
def test_a_third_party_gets_little(scheduler: Scheduler) -> None:
    """A hostile server fills the pool with its victim's ports, and falls silent."""
    victims: list[SimulatedAddress] = [("10.0.0.66", port) for port in range(1, 8)]
    with wired_pair(**options(scheduler, *victims)) as (it, wire):
        it.host.freeze()
        it.requests.start([[Exchange(100_000, 10)]])
        it.network.run_for(120)
        assert it.client.terminated is not None
        sent = sum(sent.size for victim in victims for sent in wire.select(destination=victim))
        assert sent <= 7 * 60_000
