"""Section 8 between real connections: what frames do in which state, one table for each row."""

from __future__ import annotations

import pytest
from aioquic.quic.packet import QuicErrorCode
from quicferry_lab.simulation import SimulatedAddress
from quicferry_lab.simulation.invariants import events_of
from simulated_pair import AWAY, HOME, Pair, address
from support import (
    EXPLICIT,
    PING,
    POOL,
    SERVER_MIGRATED,
    SYMMETRIC,
    SYNCHRONIZED,
    THIRD,
    OlderClient,
    assert_works,
    error_code,
    genuine_elsewhere,
    in_state,
    inject,
    migrate,
    migration_events,
    named,
    pool_address,
    server_for,
    server_migration,
    silence,
    wired_pair,
)

from quicferry.protocol import (
    ALL_PROTOCOLS,
    ClientMigration,
    MigrationCompleted,
    MigrationProtocol,
    Policy,
    PoolAddressReceived,
    ServerMigratedReceived,
    ServerMigrationReceived,
)

HOME6: SimulatedAddress = ("2001:db8::1", 4433, 0, 0)
AWAY6: SimulatedAddress = ("2001:db8::2", 4433, 0, 0)
OTHER_PORT: SimulatedAddress = (HOME[0], HOME[1] + 1)
PROTOCOLS = pytest.mark.parametrize("protocol", MigrationProtocol)
EACH_POLICY = pytest.mark.parametrize("policy", Policy)

EXPLICIT_STATES = ("announced", "challenging", "probing", "validating_explicit")
POOL_STATES = ("pool", "pool_probing", "pool_challenging", "validating_pool")
SYNCHRONIZED_STATES = ("awaiting", "validating_synchronized")


def assert_violation(it: Pair) -> None:
    """The client closes with PROTOCOL_VIOLATION, and where it can be reached its server knows."""
    reached = not it.network.filters and not it.host.frozen
    it.network.run_for(3)
    assert error_code(it.client) == QuicErrorCode.PROTOCOL_VIOLATION
    assert error_code(it.server) == (QuicErrorCode.PROTOCOL_VIOLATION if reached else None)


def test_the_peer_sees_the_error_and_its_reason() -> None:
    with wired_pair(client_type=OlderClient) as (it, _):
        inject(it, server_migration(HOME))
        it.network.run_for(3)
        for endpoint in (it.client, it.server):
            assert endpoint.terminated is not None
            assert endpoint.terminated.error_code == QuicErrorCode.PROTOCOL_VIOLATION
            assert endpoint.terminated.frame_type == 0x32
            assert "current address" in endpoint.terminated.reason_phrase


# duplicate SERVER_MIGRATION / SERVER_MIGRATED / pool address: ignored, no second event


@pytest.mark.parametrize("state", EXPLICIT_STATES)
def test_duplicate_server_migration(state: str) -> None:
    with in_state(state) as (it, _):
        inject(it, server_migration(AWAY) * 2)
        inject(it, server_migration(AWAY))
        assert events_of(it.client, ServerMigrationReceived) == [
            ServerMigrationReceived(address(AWAY))
        ]
        assert error_code(it.client) is None


@pytest.mark.parametrize("state", SYNCHRONIZED_STATES)
def test_duplicate_server_migration_without_address(state: str) -> None:
    with in_state(state) as (it, _):
        inject(it, server_migration(None) * 2)
        assert events_of(it.client, ServerMigrationReceived) == [ServerMigrationReceived(None)]
        assert error_code(it.client) is None


@pytest.mark.parametrize("state", ["idle", "awaiting"])
def test_duplicate_server_migrated(state: str) -> None:
    with in_state(state) as (it, _):
        it.imminent(SYMMETRIC) if state == "idle" else None
        it.relocate(AWAY)
        for _ in range(3):
            it.network.run_for(0.01)
            inject(it, SERVER_MIGRATED * 2)
        assert events_of(it.client, ServerMigratedReceived) == [ServerMigratedReceived()]
        assert_works(it, AWAY)


@pytest.mark.parametrize("state", POOL_STATES)
def test_duplicate_pool_address(state: str) -> None:
    with in_state(state) as (it, _):
        inject(it, pool_address(AWAY) * 2)
        assert events_of(it.client, PoolAddressReceived) == [PoolAddressReceived(address(AWAY))]
        assert error_code(it.client) is None


def test_duplicate_pool_address_after_a_migration() -> None:
    with in_state("pool") as (it, _):
        migrate(it, POOL, AWAY)
        inject(it, pool_address(AWAY))
        assert_works(it, AWAY)


# SERVER_MIGRATION(address) while Explicit not negotiated, or another protocol's state is in place


@pytest.mark.parametrize("protocols", [POOL, SYMMETRIC, SYNCHRONIZED, ALL_PROTOCOLS & ~EXPLICIT])
def test_explicit_not_negotiated(protocols: MigrationProtocol) -> None:
    with in_state("idle", protocols=protocols) as (it, _):
        inject(it, server_migration(AWAY))
        assert_violation(it)
        assert events_of(it.client, ServerMigrationReceived) == []


@pytest.mark.parametrize("state", [*POOL_STATES, *SYNCHRONIZED_STATES, "validating_symmetric"])
def test_server_migration_with_other_state_in_place(state: str) -> None:
    with in_state(state) as (it, _):
        inject(it, server_migration(THIRD))
        assert_violation(it)


# SERVER_MIGRATION(all zero) while Synchronized Symmetric not negotiated, or other state in place


@pytest.mark.parametrize("protocols", [EXPLICIT, POOL, SYMMETRIC, ALL_PROTOCOLS & ~SYNCHRONIZED])
def test_synchronized_symmetric_not_negotiated(protocols: MigrationProtocol) -> None:
    with in_state("idle", protocols=protocols) as (it, _):
        inject(it, server_migration(None))
        assert_violation(it)
        assert events_of(it.client, ServerMigrationReceived) == []


@pytest.mark.parametrize("state", [*EXPLICIT_STATES, *POOL_STATES, "validating_symmetric"])
def test_server_migration_without_address_with_other_state_in_place(state: str) -> None:
    with in_state(state) as (it, _):
        inject(it, server_migration(None))
        assert_violation(it)


# two SERVER_MIGRATION with different addresses in one migration


@pytest.mark.parametrize("target", [THIRD, (AWAY[0], AWAY[1] + 1)], ids=["host", "port"])
@pytest.mark.parametrize("state", EXPLICIT_STATES)
def test_two_different_addresses(state: str, target: SimulatedAddress) -> None:
    with in_state(state) as (it, _):
        inject(it, server_migration(target))
        assert_violation(it)


def test_two_different_addresses_in_one_packet() -> None:
    with in_state("idle") as (it, _):
        inject(it, server_migration(AWAY) + server_migration(THIRD))
        assert_violation(it)


# SERVER_MIGRATION naming the current server address: violation, ignored while probing it


@EACH_POLICY
@pytest.mark.parametrize("home", [HOME, HOME6], ids=["ipv4", "ipv6"])
def test_announcement_of_the_current_address(policy: Policy, home: SimulatedAddress) -> None:
    options = ClientMigration(policy=policy)
    with wired_pair(client=options, client_type=OlderClient, home=home) as (it, _):
        inject(it, server_migration(home))
        assert_violation(it)


def test_announcement_of_the_current_address_after_a_migration() -> None:
    with wired_pair(client_type=OlderClient) as (it, _):
        migrate(it, SYMMETRIC, AWAY)
        inject(it, server_migration(AWAY))
        assert_violation(it)


@pytest.mark.parametrize("state", ["probing", "challenging"])
def test_announcement_of_the_current_address_while_probing_it(state: str) -> None:
    """It is where everything goes just now, and yet it is only a guess."""
    with in_state(state) as (it, _):
        if state == "probing":
            assert it.client.connection.get_peer_address() == AWAY
        inject(it, server_migration(AWAY), AWAY)
        assert error_code(it.client) is None
        assert named(it.client).count("ServerMigrationReceived") == 1


# address without the family in use (SERVER_MIGRATION, pool)


@pytest.mark.parametrize(
    ("home", "frame"),
    [
        (HOME, server_migration(AWAY6)),
        (HOME, pool_address(AWAY6)),
        (HOME6, server_migration(AWAY)),
        (HOME6, pool_address(AWAY)),
        (HOME, pool_address(None)),
        (HOME6, pool_address(None)),
    ],
    ids=["migration-6", "pool-6", "migration-4", "pool-4", "pool-none-4", "pool-none-6"],
)
def test_address_without_the_family_in_use(home: SimulatedAddress, frame: bytes) -> None:
    with wired_pair(home=home) as (it, _):
        inject(it, frame)
        assert_violation(it)


# pool address during or after a migration, or Pool of Addresses not negotiated


@pytest.mark.parametrize("protocols", [EXPLICIT, SYMMETRIC, SYNCHRONIZED, ALL_PROTOCOLS & ~POOL])
def test_pool_of_addresses_not_negotiated(protocols: MigrationProtocol) -> None:
    with in_state("idle", protocols=protocols) as (it, _):
        inject(it, pool_address(AWAY))
        assert_violation(it)


@pytest.mark.parametrize(
    "state", [*EXPLICIT_STATES, *SYNCHRONIZED_STATES, "validating_pool", "validating_symmetric"]
)
def test_pool_address_during_a_migration(state: str) -> None:
    with in_state(state) as (it, _):
        inject(it, pool_address(THIRD))
        assert_violation(it)


@PROTOCOLS
def test_pool_address_after_a_migration(protocol: MigrationProtocol) -> None:
    with wired_pair(server=server_for(protocol, AWAY)) as (it, _):
        migrate(it, protocol, AWAY)
        inject(it, pool_address(THIRD))
        assert_violation(it)


# pool address while probing after a false alarm: accepted


@pytest.mark.parametrize("state", ["pool_probing", "pool_challenging"])
def test_pool_address_while_probing_after_a_false_alarm(state: str) -> None:
    with in_state(state) as (it, _):
        inject(it, pool_address(THIRD))
        assert PoolAddressReceived(address(THIRD)) in migration_events(it.client)
        assert it.client.migrating.migration_state == "idle"
        assert error_code(it.client) is None


# SERVER_MIGRATED from the current server address: ignored


@pytest.mark.parametrize("state", ["idle", "announced", "challenging", "pool", "awaiting"])
def test_server_migrated_from_the_current_address(state: str) -> None:
    with in_state(state) as (it, _):
        inject(it, SERVER_MIGRATED)
        assert it.client.migrating.migration_state == ("idle" if state == "pool" else state)
        assert events_of(it.client, ServerMigratedReceived) == []
        assert_works(it, HOME)


# SERVER_MIGRATED from a new address, with Symmetric not negotiated and no state, or with state of
# Explicit or Pool of Addresses in place


def test_server_migrated_symmetric_not_negotiated_and_no_state() -> None:
    with in_state("idle", protocols=ALL_PROTOCOLS & ~SYMMETRIC) as (it, _):
        inject(it, SERVER_MIGRATED, AWAY)
        assert_violation(it)


@pytest.mark.parametrize("state", ["announced", "challenging", "probing", *POOL_STATES[:3]])
def test_server_migrated_with_state_of_another_protocol(state: str) -> None:
    with in_state(state) as (it, _):
        inject(it, SERVER_MIGRATED, AWAY)
        assert_violation(it)


# SERVER_MIGRATED arriving after the migration was already detected (reordering): ignored


@pytest.mark.parametrize("completed", [False, True])
@pytest.mark.parametrize("state", ["idle", "awaiting"])
def test_server_migrated_after_detection(state: str, completed: bool) -> None:
    with in_state(state) as (it, _):
        late = genuine_elsewhere(it, SERVER_MIGRATED)
        if not completed:
            silence(it, AWAY)
        inject(it, PING, AWAY)
        if completed:
            it.imminent(SYMMETRIC) if state == "idle" else None
            it.relocate(AWAY)
            it.network.run_for(0.2)
            assert events_of(it.client, MigrationCompleted)
        before = migration_events(it.client)
        it.network.send(late, AWAY, it.client.external)
        it.network.run_for(0.02)
        assert migration_events(it.client) == before
        assert error_code(it.client) is None
