"""How long two hosts wait for each other, by a clock that goes on while a machine sleeps."""

from __future__ import annotations

import asyncio

import pytest

from quicferry.relocation.ownership import lease as module
from quicferry.relocation.ownership.lease import Lease


class Clock:
    """What the machine says that the time is, whatever the timers of the event loop say."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.later: list[float] = []

    def __call__(self) -> float:
        if self.later:
            self.now = self.later.pop(0)
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "_now", made)
    return made


class Ends:
    """Counts how often a time is over."""

    def __init__(self) -> None:
        self.count = 0
        self.once = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.once.set()


async def test_a_timer_sees_to_it_that_it_ends() -> None:
    ends = Ends()
    lease = Lease(ends)
    lease.start(0.01)
    lease.check()
    assert ends.count == 0
    await ends.once.wait()
    lease.check()
    assert ends.count == 1


async def test_who_has_slept_through_it_notices_before_anything_else(clock: Clock) -> None:
    """The timer of the event loop has slept as well."""
    ends = Ends()
    lease = Lease(ends)
    lease.start(20)
    clock.now += 19.9
    lease.check()
    assert ends.count == 0
    clock.now += 0.1
    lease.check()
    assert ends.count == 1
    lease.check()
    assert ends.count == 1


async def test_a_timer_that_comes_too_early_is_set_again(clock: Clock) -> None:
    ends = Ends()
    lease = Lease(ends)
    clock.later = [1000.0, 1000.005, 1000.009, 1000.02]
    lease.start(0.01)
    await ends.once.wait()
    assert not clock.later
    assert ends.count == 1


async def test_once_stopped_it_does_not_end(clock: Clock) -> None:
    ends = Ends()
    lease = Lease(ends)
    lease.stop()
    lease.start(0.01)
    lease.stop()
    clock.now += 100
    lease.check()
    later = asyncio.Event()
    asyncio.get_running_loop().call_later(0.02, later.set)
    await later.wait()
    assert ends.count == 0


async def test_it_can_begin_again(clock: Clock) -> None:
    ends = Ends()
    lease = Lease(ends)
    lease.start(10)
    clock.now += 9
    lease.start(10)
    clock.now += 9
    lease.check()
    assert ends.count == 0
    clock.now += 1
    lease.check()
    assert ends.count == 1
