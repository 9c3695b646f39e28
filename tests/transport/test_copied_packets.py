"""Section 8, last row: copies of genuine packets from forged addresses (RFC 9000 9.3.2)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from quicferry_lab.simulation import Datagram, Exchange, SimulatedAddress
from quicferry_lab.simulation.invariants import events_of
from simulated_pair import AWAY, ELSEWHERE, HOME, Pair, genuine
from support import (
    EXPLICIT,
    PING,
    POOL,
    SYMMETRIC,
    SYNCHRONIZED,
    THIRD,
    assert_works,
    genuine_elsewhere,
    in_state,
    migrate,
    ping,
    server_for,
    thaw,
    wait_for_state,
    wired_pair,
)

from quicferry.protocol import (
    ClientMigration,
    MigrationCompleted,
    MigrationProtocol,
    Policy,
    Scheduler,
)


def genuine_of_home(it: Pair, payload: bytes) -> bytes:
    return genuine(it.server, payload)


@pytest.mark.parametrize("state", ["idle", "announced", "challenging", "pool", "awaiting"])
@pytest.mark.parametrize("forged", [ELSEWHERE, AWAY], ids=["elsewhere", "away"])
@pytest.mark.parametrize("make", [genuine_of_home, genuine_elsewhere])
def test_copied_packet(
    state: str, forged: SimulatedAddress, make: Callable[[Pair, bytes], bytes]
) -> None:
    """Also one that might have come from a new address by its connection ID."""
    with in_state(state) as (it, _):
        copied = make(it, PING)
        it.deliver(it.client, copied, forged)
        it.network.send(copied, HOME, it.client.external)
        assert_works(it, HOME)
        assert events_of(it.client, MigrationCompleted) == []


@pytest.mark.parametrize("state", ["probing", "pool_probing", "pool_challenging"])
def test_copies_do_not_hide_that_the_server_is_at_home(state: str) -> None:
    """During a false alarm every packet from home is overtaken by a copy from elsewhere."""
    with in_state(state) as (it, _):
        it.network.taps.append(
            lambda datagram: (
                it.network.call_later(
                    0.001, lambda: it.deliver(it.client, datagram.data, ELSEWHERE)
                )
                if datagram.source == HOME
                else None
            )
        )
        thaw(it)
        wait_for_state(it, "announced" if state == "probing" else "idle")
        assert_works(it, HOME)


@pytest.mark.parametrize("forged", [HOME, ELSEWHERE], ids=["former-home", "elsewhere"])
def test_copied_announcement(forged: SimulatedAddress) -> None:
    """What is acknowledged has been understood, wherever the copy that came first came from."""
    client = ClientMigration(protocols=EXPLICIT, policy=Policy.REACTIVE)
    with wired_pair(client=client) as (it, wire):
        migrate(it, EXPLICIT, AWAY)

        def copy(datagram: Datagram) -> None:
            if 0x32 in wire.read(datagram.data) and datagram.source == AWAY:
                it.network.call_later(0.001, lambda: it.deliver(it.client, datagram.data, forged))

        it.network.taps.append(copy)
        migrate(it, EXPLICIT, THIRD)


def test_copies_do_not_use_up_the_connection_ids() -> None:
    """Many forged addresses, and right after them the server moves."""
    with wired_pair() as (it, _):
        it.imminent(SYMMETRIC)
        for number in range(1, 20):
            it.deliver(it.client, genuine(it.server, PING), (f"10.0.2.{number}", 6666))
        ping(it.client)
        it.relocate(AWAY, frozen=0.05)
        assert_works(it, AWAY)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_copies_from_the_old_address_at_the_switch(
    protocol: MigrationProtocol, policy: Policy, count: int
) -> None:
    """The first packets from the new address seem to come from the old one."""
    with wired_pair(client=ClientMigration(policy=policy), server=server_for(protocol, AWAY)) as (
        it,
        _,
    ):
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        left = iter(range(count))

        def copy(datagram: Datagram) -> None:
            if datagram.source == AWAY and next(left, None) is not None:
                it.network.call_later(0.001, lambda: it.deliver(it.client, datagram.data, HOME))

        it.network.taps.append(copy)
        it.requests.start([[Exchange(10, 10)]])
        it.relocate(AWAY, frozen=0.3)
        it.network.run_until(lambda: it.requests.done, limit=10, what="the request")
        assert_works(it, AWAY)


@pytest.mark.parametrize("protocol", [SYMMETRIC, SYNCHRONIZED])
def test_copies_from_many_addresses_at_the_switch(protocol: MigrationProtocol) -> None:
    """They overtake the first packets from the new address, each from an address of its own."""
    with wired_pair() as (it, _):
        it.imminent(protocol)
        numbers = iter(range(1, 6))

        def copy(datagram: Datagram) -> None:
            if datagram.source == AWAY and (number := next(numbers, None)) is not None:
                forged = (f"10.0.2.{number}", 6666)
                it.network.call_later(0.001, lambda: it.deliver(it.client, datagram.data, forged))

        it.network.taps.append(copy)
        it.relocate(AWAY, frozen=0.05)
        assert_works(it, AWAY)
        assert len(events_of(it.client, MigrationCompleted)) == 1


def test_copies_from_a_pool_leave_no_deadline_behind() -> None:
    """A later search comes by an address that was once taken for the server's, but was not it."""
    client = ClientMigration(policy=Policy.REACTIVE, scheduler=Scheduler.CYCLIC)
    server = server_for(POOL, AWAY, THIRD)
    with wired_pair(client=client, server=server) as (it, _):
        it.imminent(POOL)
        it.requests.start([[Exchange(10, 10)]])
        it.host.freeze()
        wait_for_state(it, "pool_probing")
        for forged in (AWAY, THIRD):
            it.deliver(it.client, genuine_elsewhere(it, PING), forged)
            assert it.client.migrating.migration_state == "validating_pool"
        it.host.resume(THIRD)
        assert_works(it, THIRD)
        it.network.run_for(5)  # longer than the validation of a path may take
        it.imminent(POOL)
        it.requests.start([[Exchange(10, 10)]])
        it.host.freeze()
        wait_for_state(it, "pool_probing")
        it.network.run_for(2)
        it.host.resume(AWAY)
        assert_works(it, AWAY)
