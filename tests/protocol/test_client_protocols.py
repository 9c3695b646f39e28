"""The client's side of each protocol, policy and scheduler (sections 4 to 6), on its machine."""

from __future__ import annotations

import pytest
from driven import (
    AWAY,
    ELSEWHERE,
    EXPLICIT,
    FOURTH,
    HOME,
    MIGRATED,
    POOL,
    SYMMETRIC,
    SYNCHRONIZED,
    THIRD,
    UNKNOWN,
    DrivenClient,
    announced,
    pooled,
    violates,
)

from quicferry.protocol import (
    Address,
    ConnectionErrorCode,
    MigrationCompleted,
    MigrationFrame,
    MigrationProtocol,
    PeerError,
    Policy,
    PoolAddressReceived,
    ProbingStarted,
    Scheduler,
    ServerMigratedReceived,
    ServerMigrationReceived,
)
from quicferry.protocol.client import (
    Action,
    AskHome,
    Challenge,
    Commit,
    Move,
    Redirect,
    ReturnHome,
    SetProbeTimer,
)
from quicferry.protocol.options import MAX_POOL_SIZE

PROBING_EXPLICIT = ProbingStarted(EXPLICIT, AWAY)


def probing_of(*addresses: Address) -> list[ProbingStarted]:
    return [ProbingStarted(POOL, address) for address in addresses]


def redirects(client: DrivenClient) -> list[Address]:
    return [action.address for action in client.actions if isinstance(action, Redirect)]


def challenged(actions: list[Action]) -> list[Address]:
    return [
        address
        for action in actions
        if isinstance(action, Challenge)
        for address in action.addresses
    ]


# Explicit


def test_reactive_waits_for_a_timeout() -> None:
    client = DrivenClient(policy=Policy.REACTIVE)
    assert client.receive(announced(AWAY)) == []
    assert client.events == [ServerMigrationReceived(AWAY)]
    client.receive()
    client.probe_due()
    assert client.actions == []
    assert Redirect(AWAY) in client.timeout()
    assert client.events[1:] == [PROBING_EXPLICIT]


@pytest.mark.parametrize("policy", Policy)
def test_timeout_without_announcement_means_nothing(policy: Policy) -> None:
    client = DrivenClient(policy=policy)
    assert client.timeout() == []
    assert client.state == "IDLE"


def test_eager_asks_from_the_announcement_on() -> None:
    client = DrivenClient(policy=Policy.EAGER)
    actions = client.receive(announced(AWAY))
    assert challenged(actions) == [AWAY]
    assert client.events == [ServerMigrationReceived(AWAY), PROBING_EXPLICIT]
    for _ in range(5):
        assert challenged(client.probe_due()) == [AWAY]
    assert redirects(client) == []
    assert client.machine.server_address == HOME


def test_eager_keeps_its_data_at_home() -> None:
    client = DrivenClient(policy=Policy.EAGER)
    client.receive(announced(AWAY))
    for happens in (client.timeout, client.receive, client.probe_due, client.timeout):
        happens()
    assert redirects(client) == []
    assert not [action for action in client.actions if isinstance(action, Move)]


def test_eager_moves_when_the_new_address_answers() -> None:
    client = DrivenClient(policy=Policy.EAGER)
    client.receive(announced(AWAY))
    actions = client.answered(AWAY)
    assert Move(AWAY) in actions
    assert Commit() in actions
    assert client.events[-1] == MigrationCompleted(EXPLICIT, AWAY)
    assert client.machine.home == AWAY


@pytest.mark.parametrize("policy", Policy)
def test_a_packet_from_the_new_address_moves_at_any_time(policy: Policy) -> None:
    client = DrivenClient(policy=policy)
    client.receive(announced(AWAY))
    assert Move(AWAY) in client.receive(source=AWAY)
    assert client.machine.server_address == AWAY
    assert client.events[-1] != MigrationCompleted(EXPLICIT, AWAY)
    assert Commit() in client.answered(AWAY)
    assert client.events[-1] == MigrationCompleted(EXPLICIT, AWAY)


def test_the_probe_timer_is_set_while_probing_and_cleared_after() -> None:
    client = DrivenClient()
    client.receive(announced(AWAY))
    client.timeout()
    assert SetProbeTimer(0.02) in client.actions
    assert Redirect(AWAY) in client.probe_due()
    assert SetProbeTimer(None) in client.receive(source=AWAY)


@pytest.mark.parametrize("policy", [Policy.REACTIVE, Policy.EAGER])
def test_probing_is_bounded(policy: Policy) -> None:
    """At a short interval, then a longer one; a server that vanished is not probed for ever."""
    client = DrivenClient(policy=policy)
    client.receive(announced(AWAY))
    client.timeout()
    delays = []
    for _ in range(10_000):
        timers = [a.delay for a in client.probe_due() if isinstance(a, SetProbeTimer)]
        if policy is Policy.EAGER and timers == [None]:
            break
        assert len(timers) == 1
        assert timers[0] is not None
        delays.append(timers[0])
        if len(delays) > 4000:
            break
    assert delays[0] == 0.02
    assert delays == sorted(delays)
    assert delays[:100] == [0.02] * 100
    assert max(delays) == 2
    assert sum(delay < 2 for delay in delays) < 550
    if policy is Policy.EAGER:
        assert len(delays) < 4000
        assert Redirect(AWAY) in client.timeout(), "after that it is reactive"


def test_rollback_and_probing_at_the_next_timeout() -> None:
    client = DrivenClient()
    client.receive(announced(AWAY))
    for _ in range(3):
        client.timeout()
        assert client.receive()[-1] == ReturnHome()
        assert client.machine.server_address == HOME
    assert redirects(client) == [AWAY] * 3
    assert client.events == [ServerMigrationReceived(AWAY), PROBING_EXPLICIT]


def test_late_packets_from_home_roll_nothing_back() -> None:
    client = DrivenClient()
    client.receive(announced(AWAY))
    client.timeout()
    client.receive(number=0)
    assert client.state == "PROBING"


def test_while_probing_home_is_asked_as_well() -> None:
    """A server at home that has nothing to say would never be heard again."""
    client = DrivenClient()
    client.receive(announced(AWAY))
    client.timeout()
    asked = [AskHome() in client.probe_due() for _ in range(6)]
    assert asked.count(True) == 3
    assert challenged(client.actions) == []
    assert ReturnHome() in client.receive()
    assert client.state == "ANNOUNCED"


@pytest.mark.parametrize("state", ["ANNOUNCED", "PROBING"])
def test_a_challenge_that_someone_else_answers_counts_for_nothing(state: str) -> None:
    client = DrivenClient()
    client.receive(announced(AWAY))
    if state == "PROBING":
        client.timeout()
    client.answered(ELSEWHERE)
    client.answered(HOME, source=AWAY)
    assert client.state == state


@pytest.mark.parametrize("protocol", [EXPLICIT, POOL])
def test_only_an_answer_from_the_new_address_itself_counts(protocol: MigrationProtocol) -> None:
    """The server at home may answer for it, where both addresses lead to one host."""
    client = DrivenClient(
        policy=Policy.EAGER,
        scheduler=Scheduler.PARALLEL,
        pool=[AWAY] if protocol is POOL else [],
    )
    if protocol is EXPLICIT:
        client.receive(announced(AWAY))
    client.timeout()
    client.answered(AWAY, source=HOME)
    assert client.machine.home == client.machine.server_address == HOME
    client.answered(AWAY)
    assert client.machine.home == AWAY


# Pool of Addresses


def test_pool_addresses_are_told_of_once_each() -> None:
    client = DrivenClient(pool=[AWAY, THIRD, AWAY])
    assert client.events == [PoolAddressReceived(AWAY), PoolAddressReceived(THIRD)]


def test_cyclic_pool() -> None:
    client = DrivenClient(pool=[AWAY, HOME, THIRD])
    client.timeout()
    for _ in range(5):
        client.probe_due()
    assert redirects(client) == [HOME, AWAY, THIRD, HOME, AWAY, THIRD]
    assert client.events[3:] == probing_of(AWAY, THIRD)


def test_addresses_received_while_a_cycle_runs_join_the_next() -> None:
    client = DrivenClient(pool=[AWAY])
    client.timeout()
    client.receive(pooled(THIRD), number=0)
    for _ in range(4):
        client.probe_due()
    assert redirects(client) == [HOME, AWAY, HOME, AWAY, THIRD]


def test_random_pool_is_seeded() -> None:
    def order(seed: int) -> list[Address]:
        client = DrivenClient(scheduler=Scheduler.RANDOM, seed=seed, pool=[AWAY, THIRD, FOURTH])
        client.timeout()
        for _ in range(7):
            client.probe_due()
        return redirects(client)

    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(10)}) > 5
    assert set(order(1)[:4]) == set(order(1)[4:]) == {HOME, AWAY, THIRD, FOURTH}


def test_parallel_pool_asks_all_at_once() -> None:
    client = DrivenClient(scheduler=Scheduler.PARALLEL, pool=[AWAY, HOME, THIRD, FOURTH])
    assert sorted(map(str, challenged(client.timeout()))) == sorted(map(str, [AWAY, THIRD, FOURTH]))
    assert challenged(client.probe_due()) == challenged(client.probe_due()) != []
    assert redirects(client) == []
    assert client.events[4:] == probing_of(AWAY, THIRD, FOURTH)


def test_parallel_pool_moves_to_the_first_that_answers() -> None:
    client = DrivenClient(scheduler=Scheduler.PARALLEL, pool=[AWAY, THIRD])
    client.timeout()
    client.answered(THIRD)
    client.answered(AWAY)
    assert client.machine.home == THIRD
    completed = [event for event in client.events if isinstance(event, MigrationCompleted)]
    assert completed == [MigrationCompleted(POOL, THIRD)]


def test_an_address_that_the_schedule_has_passed_may_still_answer() -> None:
    client = DrivenClient(pool=[AWAY, THIRD])
    client.timeout()
    for _ in range(2):
        client.probe_due()
    assert redirects(client)[-1] == THIRD
    assert Move(AWAY) in client.receive(source=AWAY)
    client.answered(AWAY)
    assert client.events[-1] == MigrationCompleted(POOL, AWAY)


def test_rollback_restarts_the_schedule() -> None:
    client = DrivenClient(pool=[AWAY, THIRD])
    client.timeout()
    client.probe_due()
    client.receive()
    assert client.actions[-1] == ReturnHome()
    client.timeout()
    client.probe_due()
    assert redirects(client) == [HOME, AWAY, HOME, AWAY]


def test_after_a_migration_the_schedule_starts_at_the_new_address() -> None:
    client = DrivenClient(pool=[AWAY, THIRD])
    client.migrate(POOL, THIRD)
    client.timeout()
    for _ in range(2):
        client.probe_due()
    assert redirects(client) == [THIRD, AWAY, THIRD]


@pytest.mark.parametrize("scheduler", Scheduler)
def test_a_pool_of_home_alone_is_none(scheduler: Scheduler) -> None:
    client = DrivenClient(scheduler=scheduler, pool=[HOME])
    assert client.timeout() == []


@pytest.mark.parametrize("policy", Policy)
def test_a_packet_from_the_pool_moves_without_a_timeout(policy: Policy) -> None:
    client = DrivenClient(policy=policy, pool=[AWAY, THIRD])
    assert Move(THIRD) in client.receive(source=THIRD)


def test_pool_size_is_bounded() -> None:
    client = DrivenClient()
    for number in range(1, MAX_POOL_SIZE + 1):
        client.receive(pooled(Address.parse(f"198.51.100.{number}:4433")))
    violates(client, pooled(AWAY))
    assert len(client.pool) == MAX_POOL_SIZE


# Symmetric, Synchronized Symmetric


@pytest.mark.parametrize(
    ("protocol", "frames", "events"),
    [
        (SYMMETRIC, (), []),
        (SYMMETRIC, (MIGRATED,), [ServerMigratedReceived()]),
        (SYNCHRONIZED, (), []),
        (SYNCHRONIZED, (MIGRATED,), [ServerMigratedReceived()]),
    ],
    ids=["symmetric-data", "symmetric-frame", "synchronized-data", "synchronized-frame"],
)
def test_symmetric(
    protocol: MigrationProtocol, frames: tuple[MigrationFrame, ...], events: list[object]
) -> None:
    client = DrivenClient()
    if protocol is SYNCHRONIZED:
        client.receive(UNKNOWN)
        events = [ServerMigrationReceived(None), *events]
    assert Move(AWAY) in client.receive(*frames, source=AWAY)
    assert client.events == events
    client.answered(AWAY)
    assert client.events == [*events, MigrationCompleted(protocol, AWAY)]


@pytest.mark.parametrize("negotiated", [SYMMETRIC, SYNCHRONIZED])
def test_symmetric_needs_no_timer(negotiated: MigrationProtocol) -> None:
    client = DrivenClient(negotiated)
    if negotiated is SYNCHRONIZED:
        client.receive(UNKNOWN)
    assert client.timeout() == []
    assert client.probe_due() == []


def test_an_unannounced_address_is_not_believed_before_it_is_validated() -> None:
    client = DrivenClient()
    actions = client.receive(source=AWAY)
    assert AskHome() in actions
    assert challenged(actions) == []
    assert client.machine.home == HOME


def test_a_late_packet_from_a_new_address_moves_nothing() -> None:
    client = DrivenClient()
    client.receive()
    client.receive(source=AWAY, number=0)
    client.receive(MIGRATED, source=AWAY, number=0)
    assert client.state == "IDLE"
    assert client.actions == []


def test_mixed_protocols_in_a_row() -> None:
    client = DrivenClient()
    for protocol, to in (
        (EXPLICIT, AWAY),
        (SYMMETRIC, THIRD),
        (SYNCHRONIZED, HOME),
        (EXPLICIT, THIRD),
    ):
        client.migrate(protocol, to)
        assert client.events[-1] == MigrationCompleted(protocol, to)


# Section 5: addresses that must be refused


@pytest.mark.parametrize(
    "text",
    [
        "224.0.0.1:4433",
        "255.255.255.255:4433",
        "0.0.0.0:4433",
        "192.0.2.9:0",
        "192.0.2.9:53",
        "127.0.0.1:4433",
        "169.254.1.1:4433",
        "10.0.0.1:4433",
        "100.64.0.1:4433",
        "198.18.0.1:4433",
        "240.0.0.1:4433",
    ],
)
@pytest.mark.parametrize("policy", Policy)
def test_refused_address(text: str, policy: Policy) -> None:
    for frame in (announced(Address.parse(text)), pooled(Address.parse(text))):
        client = DrivenClient(policy=policy)
        with pytest.raises(PeerError) as caught:
            client.receive(frame)
        assert caught.value.code is ConnectionErrorCode.PROTOCOL_VIOLATION
        assert client.events == []
        assert client.actions == []


@pytest.mark.parametrize(
    "text",
    [
        "224.0.0.1:4433",
        "192.0.2.9:0",
        "192.0.2.9:53",
        "127.0.0.1:4433",
        "169.254.1.1:4433",
        "192.168.1.1:4433",
    ],
)
@pytest.mark.parametrize("frames", [(), (MIGRATED,)], ids=["data", "migrated"])
def test_refused_source(text: str, frames: tuple[MigrationFrame, ...]) -> None:
    """A forged source address must not turn the client's data there either."""
    client = DrivenClient()
    assert client.receive(*frames, source=Address.parse(text)) == []
    assert client.machine.server_address == HOME


@pytest.mark.parametrize("home", ["10.0.0.1:4433", "[fd00::1]:4433", "127.0.0.1:4433"])
def test_what_a_server_may_name_does_not_change_with_its_moves(home: str) -> None:
    """It comes back from a public address to where the client has found it."""
    near = Address.parse(home)
    far = Address.parse("8.0.0.1:4433" if near.family == 4 else "[2600::1]:4433")
    client = DrivenClient(home=near)
    for to in (far, near, far):
        client.migrate(EXPLICIT, to)
    client.migrate(SYMMETRIC, near)
    client = DrivenClient(home=far)
    client.migrate(EXPLICIT, Address(far.host, 443))
    violates(client, announced(near))
    assert client.receive(source=near) == []


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("frame", [announced(AWAY), UNKNOWN], ids=["explicit", "synchronized"])
def test_an_announcement_overtaken_by_copies(
    frame: MigrationFrame, policy: Policy, copies: int
) -> None:
    """Who announces is at home, and goes nowhere before that was acknowledged."""
    client = DrivenClient(policy=policy)
    overtaken = client.number = client.number + 1
    for _ in range(copies):
        client.receive(source=ELSEWHERE)
    assert client.state == "VALIDATING_SYMMETRIC"
    client.receive(frame, source=HOME, number=overtaken)
    assert client.machine.server_address == HOME
    assert client.events[0] == ServerMigrationReceived(None if frame is UNKNOWN else AWAY)
    client.receive(source=AWAY)
    client.answered(AWAY)
    expected = SYNCHRONIZED if frame is UNKNOWN else EXPLICIT
    assert client.events[-1] == MigrationCompleted(expected, AWAY)


def test_an_announcement_after_copies_from_elsewhere() -> None:
    """It comes in when the copies have turned out to be that, and is older than they."""
    client = DrivenClient()
    overtaken = client.number = client.number + 1
    client.receive(source=ELSEWHERE)
    client.receive(source=HOME)
    client.receive(announced(AWAY), source=HOME, number=overtaken)
    assert ServerMigrationReceived(AWAY) in client.events
