"""The rows of section 8 that concern the client, one test or table for each, on its machine."""

from __future__ import annotations

import pytest
from driven import (
    AWAY,
    AWAY6,
    ELSEWHERE,
    EXPLICIT,
    HOME,
    HOME6,
    MIGRATED,
    POOL,
    SYMMETRIC,
    SYNCHRONIZED,
    THIRD,
    UNKNOWN,
    DrivenClient,
    announced,
    ignores,
    pooled,
    violates,
)

from quicferry.protocol import (
    ALL_PROTOCOLS,
    Address,
    MigrationCompleted,
    MigrationFrame,
    MigrationProtocol,
    Policy,
    PoolAddressReceived,
    Scheduler,
    ServerMigratedReceived,
    ServerMigrationReceived,
)
from quicferry.protocol.client import Commit, Move, Redirect, ReturnHome

EACH_POLICY = pytest.mark.parametrize("policy", Policy)


def in_state(
    state: str, negotiated: MigrationProtocol = ALL_PROTOCOLS, *, home: Address = HOME
) -> DrivenClient:
    """A client that has come to a state in the ordinary way."""
    policy = Policy.EAGER if state == "CHALLENGING" else Policy.REACTIVE
    scheduler = Scheduler.PARALLEL if state == "POOL_CHALLENGING" else Scheduler.CYCLIC
    pool = [AWAY] if "POOL" in state else []
    client = DrivenClient(negotiated, policy=policy, scheduler=scheduler, pool=pool, home=home)
    if state in ("ANNOUNCED", "CHALLENGING", "PROBING", "VALIDATING_EXPLICIT"):
        client.receive(announced(AWAY))
    elif state in ("AWAITING", "VALIDATING_SYNCHRONIZED"):
        client.receive(UNKNOWN)
    if state in ("PROBING", "POOL_PROBING", "POOL_CHALLENGING"):
        client.timeout()
    elif state.startswith("VALIDATING"):
        client.receive(source=AWAY)
    assert client.state == ("IDLE" if state == "POOL" else state)
    return client


EXPLICIT_STATES = ("ANNOUNCED", "CHALLENGING", "PROBING", "VALIDATING_EXPLICIT")
POOL_STATES = ("POOL", "POOL_PROBING", "POOL_CHALLENGING", "VALIDATING_POOL")
SYNCHRONIZED_STATES = ("AWAITING", "VALIDATING_SYNCHRONIZED")
OTHER_THAN_EXPLICIT = (*POOL_STATES, *SYNCHRONIZED_STATES, "VALIDATING_SYMMETRIC")
OTHER_THAN_SYNCHRONIZED = (*EXPLICIT_STATES, *POOL_STATES, "VALIDATING_SYMMETRIC")


# duplicate SERVER_MIGRATION / SERVER_MIGRATED / pool address: ignored, no second event


@pytest.mark.parametrize("state", EXPLICIT_STATES)
def test_duplicate_server_migration(state: str) -> None:
    client = in_state(state)
    ignores(client, announced(AWAY), source=client.machine.server_address, number=client.number)
    assert client.events.count(ServerMigrationReceived(AWAY)) == 1


@pytest.mark.parametrize("state", SYNCHRONIZED_STATES)
def test_duplicate_server_migration_without_address(state: str) -> None:
    client = in_state(state)
    ignores(client, UNKNOWN, source=client.machine.server_address)
    assert client.events.count(ServerMigrationReceived(None)) == 1


def test_duplicate_in_one_packet() -> None:
    client = DrivenClient()
    client.receive(announced(AWAY), announced(AWAY))
    assert client.events == [ServerMigrationReceived(AWAY)]


def test_duplicate_server_migration_that_arrives_after_completion() -> None:
    """Sent again because an acknowledgement was late, and held up on the way."""
    client = DrivenClient()
    client.receive(announced(AWAY))
    duplicate = client.number = client.number + 1
    client.receive(source=AWAY)
    client.answered(AWAY)
    ignores(client, announced(AWAY), source=HOME, number=duplicate)


def test_duplicate_announcement_of_a_former_migration_starts_none() -> None:
    client = DrivenClient()
    client.receive(announced(AWAY))
    duplicate = client.number = client.number + 1
    client.receive(source=AWAY)
    client.answered(AWAY)
    client.migrate(EXPLICIT, HOME)
    ignores(client, announced(AWAY), source=HOME, number=duplicate)


@pytest.mark.parametrize("negotiated", [SYMMETRIC, ALL_PROTOCOLS])
def test_duplicate_server_migrated(negotiated: MigrationProtocol) -> None:
    client = DrivenClient(negotiated)
    client.receive(MIGRATED, source=AWAY)
    ignores(client, MIGRATED, source=AWAY)
    client.answered(AWAY)
    ignores(client, MIGRATED)
    assert client.events.count(ServerMigratedReceived()) == 1


@pytest.mark.parametrize("state", [*POOL_STATES, "MIGRATED"])
def test_duplicate_pool_address(state: str) -> None:
    client = in_state("POOL" if state == "MIGRATED" else state)
    if state == "MIGRATED":
        client.migrate(POOL, AWAY)
    ignores(client, pooled(AWAY), source=client.machine.server_address, number=1)
    assert client.events.count(PoolAddressReceived(AWAY)) == 1
    assert client.pool == (AWAY,)


# SERVER_MIGRATION(address) while Explicit not negotiated, or another protocol's state is in place


@pytest.mark.parametrize("negotiated", [POOL, SYMMETRIC, SYNCHRONIZED, ALL_PROTOCOLS & ~EXPLICIT])
@EACH_POLICY
def test_explicit_not_negotiated(negotiated: MigrationProtocol, policy: Policy) -> None:
    violates(DrivenClient(negotiated, policy=policy), announced(AWAY))


@pytest.mark.parametrize("state", OTHER_THAN_EXPLICIT)
def test_server_migration_with_other_state_in_place(state: str) -> None:
    client = in_state(state)
    violates(client, announced(THIRD), source=client.machine.server_address)


# SERVER_MIGRATION(all zero) while Synchronized Symmetric not negotiated, or other state in place


@pytest.mark.parametrize("negotiated", [EXPLICIT, POOL, SYMMETRIC, ALL_PROTOCOLS & ~SYNCHRONIZED])
def test_synchronized_symmetric_not_negotiated(negotiated: MigrationProtocol) -> None:
    violates(DrivenClient(negotiated), UNKNOWN)


@pytest.mark.parametrize("state", OTHER_THAN_SYNCHRONIZED)
def test_server_migration_without_address_with_other_state_in_place(state: str) -> None:
    client = in_state(state)
    violates(client, UNKNOWN, source=client.machine.server_address)


# two SERVER_MIGRATION with different addresses in one migration


@pytest.mark.parametrize("state", EXPLICIT_STATES)
@pytest.mark.parametrize("target", [THIRD, Address(AWAY.host, AWAY.port + 1)], ids=["host", "port"])
def test_two_different_addresses(state: str, target: Address) -> None:
    client = in_state(state)
    violates(client, announced(target), source=client.machine.server_address)


# SERVER_MIGRATION naming the current server address: violation, ignored while probing it


@EACH_POLICY
def test_announcement_of_the_current_address(policy: Policy) -> None:
    violates(DrivenClient(policy=policy, knows_withdrawals=False), announced(HOME))


@EACH_POLICY
def test_announcement_of_the_current_address_after_a_migration(policy: Policy) -> None:
    client = DrivenClient(policy=policy, knows_withdrawals=False)
    client.migrate(SYMMETRIC, AWAY)
    violates(client, announced(AWAY))


@pytest.mark.parametrize("state", ["PROBING", "CHALLENGING"])
def test_announcement_of_the_current_address_while_probing_it(state: str) -> None:
    client = in_state(state)
    ignores(client, announced(AWAY), source=AWAY, number=client.number)


# address without the family in use (SERVER_MIGRATION, pool)


@pytest.mark.parametrize("frame", [announced(AWAY6), pooled(AWAY6), pooled()], ids=str)
def test_no_ipv4_address(frame: MigrationFrame) -> None:
    violates(DrivenClient(), frame)


@pytest.mark.parametrize("frame", [announced(AWAY), pooled(AWAY)], ids=str)
def test_no_ipv6_address(frame: MigrationFrame) -> None:
    violates(DrivenClient(home=HOME6), frame)


@pytest.mark.parametrize(("home", "expected"), [(HOME, AWAY), (HOME6, AWAY6)], ids=str)
def test_of_two_families_the_one_in_use_counts(home: Address, expected: Address) -> None:
    client = DrivenClient(home=home)
    client.receive(pooled(AWAY, AWAY6))
    assert client.pool == (expected,)
    client = DrivenClient(home=home)
    client.receive(announced(AWAY, AWAY6))
    assert client.events == [ServerMigrationReceived(expected)]


# pool address during or after a migration, or Pool of Addresses not negotiated


@pytest.mark.parametrize("negotiated", [EXPLICIT, SYMMETRIC, SYNCHRONIZED, ALL_PROTOCOLS & ~POOL])
def test_pool_of_addresses_not_negotiated(negotiated: MigrationProtocol) -> None:
    violates(DrivenClient(negotiated), pooled(AWAY))


@pytest.mark.parametrize(
    "state",
    [*EXPLICIT_STATES, *SYNCHRONIZED_STATES, "VALIDATING_POOL", "VALIDATING_SYMMETRIC"],
)
def test_pool_address_during_a_migration(state: str) -> None:
    client = in_state(state)
    violates(client, pooled(THIRD), source=client.machine.server_address)


@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_pool_address_after_a_migration(protocol: MigrationProtocol) -> None:
    client = DrivenClient(pool=[AWAY] if protocol is POOL else [])
    client.migrate(protocol, AWAY)
    violates(client, pooled(THIRD))


# pool address while probing after a false alarm: accepted


@pytest.mark.parametrize("state", ["POOL_PROBING", "POOL_CHALLENGING"])
@pytest.mark.parametrize("late", [False, True])
def test_pool_address_while_probing_after_a_false_alarm(state: str, late: bool) -> None:
    client = in_state(state)
    client.receive(pooled(THIRD), number=client.number if late else None, source=HOME)
    assert client.pool == (AWAY, THIRD)
    assert client.events.count(PoolAddressReceived(THIRD)) == 1
    client.receive()
    assert client.state == "IDLE"


# SERVER_MIGRATED from the current server address: ignored


@pytest.mark.parametrize(
    "state", ["IDLE", "ANNOUNCED", "CHALLENGING", "POOL", "AWAITING", "VALIDATING_SYMMETRIC"]
)
def test_server_migrated_from_the_current_address(state: str) -> None:
    client = in_state(state)
    ignores(client, MIGRATED, source=client.machine.server_address)


# SERVER_MIGRATED from a new address, with Symmetric not negotiated and no state, or with state of
# Explicit or Pool of Addresses in place


def test_server_migrated_from_a_new_address_symmetric_not_negotiated_and_no_state() -> None:
    client = DrivenClient(ALL_PROTOCOLS & ~SYMMETRIC)
    assert client.machine.expects(AWAY), "it must be read to be found out"
    violates(client, MIGRATED, source=AWAY)


@pytest.mark.parametrize("state", ["ANNOUNCED", "CHALLENGING", "PROBING", *POOL_STATES[:3]])
def test_server_migrated_from_a_new_address_with_other_state(state: str) -> None:
    violates(in_state(state), MIGRATED, source=AWAY)


# SERVER_MIGRATED arriving after the migration was already detected (reordering): ignored


@pytest.mark.parametrize("protocol", [SYMMETRIC, SYNCHRONIZED])
@pytest.mark.parametrize("completed", [False, True])
def test_server_migrated_after_detection(protocol: MigrationProtocol, completed: bool) -> None:
    client = DrivenClient()
    if protocol is SYNCHRONIZED:
        client.receive(UNKNOWN)
    late = client.number = client.number + 1
    client.receive(source=AWAY)
    if completed:
        client.answered(AWAY)
    ignores(client, MIGRATED, source=AWAY, number=late)
    assert ServerMigratedReceived() not in client.events


# packet from an unknown address, neither symmetric protocol possible: dropped, never an error


@pytest.mark.parametrize("negotiated", [EXPLICIT, POOL, EXPLICIT | POOL])
def test_unknown_address_symmetric_not_negotiated(negotiated: MigrationProtocol) -> None:
    client = DrivenClient(negotiated)
    assert not client.machine.expects(ELSEWHERE), "it must not even be read"
    ignores(client, source=ELSEWHERE)


@pytest.mark.parametrize("state", [*EXPLICIT_STATES, *POOL_STATES])
def test_unknown_address_with_other_state_in_place(state: str) -> None:
    ignores(in_state(state), source=ELSEWHERE)


def test_unknown_address_synchronized_symmetric_not_announced() -> None:
    ignores(DrivenClient(SYNCHRONIZED), source=ELSEWHERE)


# PTO that was mere loss, no relocation (false alarm): rolled back as if it had not happened


def test_false_alarm_explicit() -> None:
    client = in_state("PROBING")
    assert client.receive()[-1] == ReturnHome()
    assert client.state == "ANNOUNCED"
    assert client.machine.server_address == HOME
    assert Redirect(AWAY) in client.timeout()


@pytest.mark.parametrize("state", ["POOL_PROBING", "POOL_CHALLENGING"])
def test_false_alarm_pool(state: str) -> None:
    client = in_state(state)
    assert client.receive()[-1] == ReturnHome()
    assert client.state == "IDLE"
    assert client.pool == (AWAY,)


# a migration that moves only the port: works like any other


@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_port_only(protocol: MigrationProtocol) -> None:
    other_port = Address(HOME.host, HOME.port + 1)
    client = DrivenClient(pool=[other_port] if protocol is POOL else [])
    client.migrate(protocol, other_port)
    assert client.events[-1] == MigrationCompleted(protocol, other_port)


# several migrations in a row; A -> B -> A: works


@pytest.mark.parametrize("second", [EXPLICIT, SYMMETRIC, SYNCHRONIZED])
@pytest.mark.parametrize("first", [EXPLICIT, SYMMETRIC, SYNCHRONIZED])
@EACH_POLICY
def test_there_and_back(
    first: MigrationProtocol, second: MigrationProtocol, policy: Policy
) -> None:
    client = DrivenClient(policy=policy)
    for _ in range(2):
        client.migrate(first, AWAY)
        client.migrate(second, HOME)
    completed = [event for event in client.events if isinstance(event, MigrationCompleted)]
    assert completed == 2 * [MigrationCompleted(first, AWAY), MigrationCompleted(second, HOME)]


@pytest.mark.parametrize("scheduler", Scheduler)
def test_there_and_back_with_a_pool(scheduler: Scheduler) -> None:
    client = DrivenClient(scheduler=scheduler, pool=[AWAY, HOME, THIRD])
    for target in (AWAY, HOME, THIRD, AWAY):
        client.migrate(POOL, target)
    assert client.pool == (AWAY, HOME, THIRD)


# off-path copy of a genuine packet from a forged address: ends on the genuine path


@pytest.mark.parametrize("state", ["IDLE", "AWAITING"])
def test_copy_from_an_unknown_address(state: str) -> None:
    client = in_state(state)
    assert Move(ELSEWHERE) in client.receive(source=ELSEWHERE)
    assert client.receive() == [*client.actions[-2:]]
    assert client.actions[-1] == ReturnHome()
    assert client.state == state


@pytest.mark.parametrize("state", ["ANNOUNCED", "CHALLENGING", "POOL"])
def test_copy_from_an_announced_address(state: str) -> None:
    client = in_state(state)
    assert Move(AWAY) in client.receive(source=AWAY)
    client.receive()
    assert client.actions[-1] == ReturnHome()
    assert client.machine.server_address == HOME
    assert not [action for action in client.actions if isinstance(action, Commit)]


@pytest.mark.parametrize(
    "state", ["VALIDATING_EXPLICIT", "VALIDATING_POOL", *SYNCHRONIZED_STATES[1:]]
)
def test_forged_path_is_left_when_it_cannot_be_validated(state: str) -> None:
    client = in_state(state)
    assert client.validation_failed()[-1] == ReturnHome()
    assert client.machine.server_address == HOME


@pytest.mark.parametrize("state", ["IDLE", "AWAITING"])
def test_copies_from_many_addresses_do_not_keep_the_genuine_one_away(state: str) -> None:
    client = in_state(state)
    for number in range(1, 100):
        client.receive(source=Address.parse(f"198.51.100.{number}:4433"))
    client.receive(source=AWAY)
    client.answered(AWAY)
    assert client.machine.home == AWAY


# sections 2 and 3: nothing negotiated


@pytest.mark.parametrize("frame", [announced(AWAY), UNKNOWN, MIGRATED, pooled(AWAY)], ids=str)
def test_nothing_negotiated(frame: MigrationFrame) -> None:
    client = DrivenClient(MigrationProtocol(0))
    violates(client, frame)
    assert not client.machine.expects(ELSEWHERE)


# section 2: once there is a pool, every migration uses Pool of Addresses


@pytest.mark.parametrize("frame", [announced(THIRD), UNKNOWN, announced(AWAY)], ids=str)
def test_pool_rules_out_announcements(frame: MigrationFrame) -> None:
    violates(in_state("POOL"), frame)


def test_pool_rules_out_symmetric() -> None:
    client = in_state("POOL")
    ignores(client, source=ELSEWHERE)
    client.migrate(POOL, AWAY)
    ignores(client, source=ELSEWHERE)


# section 5: a frame in a packet older than the newest one that carried migration state is ignored


def test_older_frames_are_ignored() -> None:
    client = DrivenClient()
    client.migrate(SYNCHRONIZED, AWAY)
    for frame in (announced(THIRD), UNKNOWN, announced(AWAY), MIGRATED):
        ignores(client, frame, source=HOME, number=0)


def test_older_pool_addresses_are_not_ignored() -> None:
    client = DrivenClient(pool=[AWAY])
    client.receive()
    client.receive(pooled(THIRD), number=0)
    assert client.pool == (AWAY, THIRD)
