"""Schedulers: in which order the addresses of a pool are tried (section 4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicferry.protocol import Address, Scheduler
from quicferry.protocol.schedulers import Schedule

HOME, A, B, C, D = (Address.parse(f"192.0.2.{n}:4433") for n in range(1, 6))


def take(schedule: Schedule, count: int, pool: list[Address]) -> list[Address]:
    return [schedule.next_address(HOME, pool) for _ in range(count)]


def test_cyclic_takes_the_current_address_first_then_the_pool_in_order() -> None:
    schedule = Schedule(Scheduler.CYCLIC, 0)
    assert take(schedule, 8, [A, B, C]) == [HOME, A, B, C, HOME, A, B, C]


def test_cyclic_skips_the_current_address_in_the_pool() -> None:
    assert take(Schedule(Scheduler.CYCLIC, 0), 6, [A, HOME, B]) == [HOME, A, B, HOME, A, B]


@pytest.mark.parametrize("scheduler", [Scheduler.CYCLIC, Scheduler.RANDOM])
def test_addresses_received_while_a_cycle_runs_join_the_next(scheduler: Scheduler) -> None:
    schedule = Schedule(scheduler, 3)
    pool = [A, B]
    first = take(schedule, 1, pool)
    pool += [C, D]
    first += take(schedule, 2, pool)
    assert sorted(map(str, first)) == sorted(map(str, [HOME, A, B]))
    assert set(take(schedule, 5, pool)) == {HOME, A, B, C, D}


@pytest.mark.parametrize("scheduler", [Scheduler.CYCLIC, Scheduler.RANDOM])
def test_restart(scheduler: Scheduler) -> None:
    schedule = Schedule(scheduler, 0)
    take(schedule, 2, [A, B, C])
    schedule.restart()
    assert set(take(schedule, 4, [A, B, C])) == {HOME, A, B, C}


def test_restarted_cycle_begins_with_the_current_address() -> None:
    schedule = Schedule(Scheduler.CYCLIC, 0)
    take(schedule, 2, [A, B])
    schedule.restart()
    assert take(schedule, 3, [A, B]) == [HOME, A, B]


@given(st.integers(), st.integers(1, 40))
def test_random_is_seeded(seed: int, count: int) -> None:
    one, other = (Schedule(Scheduler.RANDOM, seed) for _ in range(2))
    assert take(one, count, [A, B, C, D]) == take(other, count, [A, B, C, D])


@given(st.integers())
def test_each_random_round_has_every_address_once(seed: int) -> None:
    schedule = Schedule(Scheduler.RANDOM, seed)
    for _ in range(3):
        addresses = take(schedule, 4, [A, B, C])
        assert set(addresses) == {HOME, A, B, C}


def test_random_orders_differ() -> None:
    seeds = {tuple(take(Schedule(Scheduler.RANDOM, seed), 5, [A, B, C, D])) for seed in range(20)}
    assert len(seeds) > 10
    schedule = Schedule(Scheduler.RANDOM, 0)
    rounds = {tuple(take(schedule, 5, [A, B, C, D])) for _ in range(20)}
    assert len(rounds) > 10
