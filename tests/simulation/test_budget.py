"""What a hostile server can make its clients send to addresses that never answer.

A bucket of 600 packets and 66,000 bytes, which one packet and 100 bytes a second fill: 660 packets
and 72,000 bytes in any minute, whatever is announced, and to however many addresses. What seems to
come from an address may be answered by three times its bytes besides (RFC 9000 8.1).
"""

from __future__ import annotations

import gc
import itertools
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from quicferry_lab.simulation import Datagram, Exchange, SimulatedAddress
from quicferry_lab.simulation.invariants import check_alive
from simulated_pair import AWAY, HOME, RTT, Pair, genuine, pair
from support import (
    EXPLICIT,
    PING,
    SYNCHRONIZED,
    genuine_elsewhere,
    migrate,
    ping,
    pool_address,
    server_migration,
)

from quicferry.protocol import ClientMigration, Policy, Scheduler

BURST, PER_SECOND = (600, 66_000), (1, 100)
LAST_PROBE = (5, 180)
"""A probe is allowed as long as anything is left, and may be five small packets."""
POLICIES = pytest.mark.parametrize("policy", Policy)
VICTIMS = [(f"10.0.3.{number}", 4433) for number in range(1, 33)]


class Toll:
    """What was sent to anywhere but the server's own address."""

    def __init__(self, it: Pair) -> None:
        self.packets = self.bytes = 0
        self.last = 0.0
        self._it = it
        self._since = it.network.now
        it.network.taps.append(self._tap)

    def _tap(self, sent: Datagram) -> None:
        if sent.source == self._it.client.external and sent.destination != HOME:
            self.packets += 1
            self.bytes += len(sent.data)
            self.last = sent.time

    def check(self, *, answers: int = 0) -> None:
        seconds = self._it.network.now - self._since
        check_alive(self._it.client)
        assert 0 < self.packets <= BURST[0] + PER_SECOND[0] * seconds + LAST_PROBE[0] + answers
        limit = BURST[1] + PER_SECOND[1] * seconds + LAST_PROBE[1] + answers
        assert self.bytes <= limit


def tell(it: Pair, frame: bytes) -> None:
    it.deliver(it.client, genuine(it.server, frame), HOME)


@contextmanager
def hostile(
    policy: Policy = Policy.EAGER, scheduler: Scheduler = Scheduler.PARALLEL
) -> Iterator[tuple[Pair, Toll]]:
    with pair(21, client=ClientMigration(policy=policy, scheduler=scheduler)) as it:
        # There are more addresses than connection IDs.
        it.simulation.observer.may_reuse = lambda sender: True
        yield it, Toll(it)


def come_and_go(it: Pair, seconds: float, *, silent: float) -> None:
    """Let the server at home be heard, and then not, while its client has much to send."""
    end = it.network.now + seconds
    it.requests.start([[Exchange(100_000, 0)]])
    while it.network.now < end:
        it.network.filters[:] = [lambda sent: sent.destination != HOME]
        it.network.run_for(silent)
        it.network.filters.clear()
        ping(it.server)
        it.network.run_for(4 * RTT)
        ping(it.client)
        it.client.migrating.probe_server_address(now=it.network.now)
        it.client.flush()


@POLICIES
@pytest.mark.parametrize("silent", [0.2, 2.0, 20.0])
def test_an_announced_address_that_never_answers(policy: Policy, silent: float) -> None:
    with hostile(policy) as (it, toll):
        tell(it, server_migration(VICTIMS[0]))
        for _ in range(2):
            come_and_go(it, 60, silent=silent)
            toll.check()


@pytest.mark.parametrize("scheduler", Scheduler)
@pytest.mark.parametrize("size", [1, 7, 32])
@pytest.mark.parametrize("silent", [0.2, 20.0])
def test_a_pool_that_never_answers(scheduler: Scheduler, size: int, silent: float) -> None:
    """It counts as one address."""
    with hostile(scheduler=scheduler) as (it, toll):
        for victim in VICTIMS[:size]:
            tell(it, pool_address(victim))
        for _ in range(2):
            come_and_go(it, 60, silent=silent)
            toll.check()


@POLICIES
@pytest.mark.parametrize("pause", [0.05, 1.0])
def test_announcements_that_are_withdrawn_and_made_anew(policy: Policy, pause: float) -> None:
    """For the same address and for others; the client is kept looking meanwhile."""
    with hostile(policy) as (it, toll):
        for number in range(120 if pause == 1.0 else 600):
            tell(it, server_migration(VICTIMS[number // 2 % 32]))
            ping(it.client)
            it.client.migrating.probe_server_address(now=it.network.now)
            it.client.flush()
            it.network.run_for(pause)
            tell(it, server_migration(HOME))
        toll.check()


@POLICIES
def test_a_server_that_seems_to_come_from_there(policy: Policy) -> None:
    """It forges the source of its packets, withdraws, and announces the next address."""
    with hostile(policy) as (it, toll):
        forged = 0
        for number in range(1000):
            victim = VICTIMS[number % 32]
            tell(it, server_migration(victim))
            packet = genuine_elsewhere(it, PING)
            forged += len(packet)
            it.deliver(it.client, packet, victim)
            it.network.run_for(0.02)
            tell(it, PING)
            tell(it, server_migration(HOME))
            it.network.run_for(0.01)
        toll.check(answers=3 * forged)


@POLICIES
def test_a_silent_address_and_a_silent_server(policy: Policy) -> None:
    """The client goes on asking until it gives the connection up, ever less often."""
    with hostile(policy) as (it, toll):
        tell(it, server_migration(VICTIMS[0]))
        it.requests.start([[Exchange(500_000, 0)]])
        it.network.run_for(0.001)
        it.host.freeze()
        packets = []
        for _ in range(5):
            before = toll.packets
            it.network.run_for(10)
            packets.append(toll.packets - before)
        toll.check()
        assert packets[0] > 200
        assert 0 < packets[-1] < 60
        assert packets == sorted(packets, reverse=True)


def test_packets_that_seem_to_come_from_anywhere() -> None:
    """Those that nobody has named have a budget of their own: 240 packets, and four a second."""
    with hostile() as (it, toll):
        it.imminent(SYNCHRONIZED)
        for number in range(3000):
            source = (f"10.9.{number >> 8}.{number & 255}", 4433)
            it.deliver(it.client, genuine(it.server, PING), source)
            it.network.run_for(0.01)
            if number % 50 == 0:
                tell(it, PING)
        assert 0 < toll.packets <= 240 + 4 * 30 + 1
        assert toll.bytes <= 16_000 + 260 * 30
        check_alive(it.client, it.server)


def test_what_an_address_was_sent_that_answers_is_given_back() -> None:
    """Servers that move often are found as fast the tenth time as the first."""
    with hostile() as (it, _):
        for number in range(10):
            target = (AWAY, HOME)[number % 2]
            it.imminent(EXPLICIT, target)
            it.host.freeze()
            ping(it.client)
            it.network.run_for(4)
            switched = it.network.now
            it.host.resume(target)
            it.exchange(limit=1)
            assert it.client.connection.get_peer_address() == target
            assert it.network.now - switched <= 0.02 + 3 * RTT
            it.network.run_for(1)


def test_a_server_that_moves_after_its_budget_is_spent_is_found_all_the_same() -> None:
    with hostile() as (it, toll):
        for victim in itertools.islice(itertools.cycle(VICTIMS), 100):
            tell(it, server_migration(victim))
            it.network.run_for(0.5)
            tell(it, server_migration(HOME))
        assert toll.packets > BURST[0]
        migrate(it, EXPLICIT, AWAY)
        assert it.client.connection.get_peer_address() == AWAY


CODE = [tracemalloc.Filter(True, f"*/{part}/*") for part in ("transport", "protocol", "aioquic")]


def memory() -> int:
    """Bytes in use that were allocated by what connections are made of, not by the simulation."""
    gc.collect()
    snapshot = tracemalloc.take_snapshot().filter_traces(CODE)
    return sum(statistic.size for statistic in snapshot.statistics("filename"))


def test_memory_is_bounded() -> None:
    """Each announcement names another address, and each is asked."""
    with hostile() as (it, toll):
        numbers = itertools.count()

        def announce() -> None:
            number = next(numbers)
            victim: SimulatedAddress = (f"10.9.0.{number % 200}", 4433)
            tell(it, server_migration(victim))
            it.network.run_for(0.001)
            tell(it, server_migration(HOME))

        def repeat(times: int) -> None:
            for _ in range(times):
                announce()
            it.client.migration_events.clear()
            it.simulation.observer.forget()

        tracemalloc.start()
        try:
            repeat(400)
            before = memory()
            repeat(900)
            assert memory() - before < 60_000
        finally:
            tracemalloc.stop()
        toll.check()
