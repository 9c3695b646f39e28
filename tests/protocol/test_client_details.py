"""The client's machine alone: what a second layer, a retransmission or a first time would hide."""

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
    ignores,
    pooled,
    violates,
)

from quicferry.protocol import (
    ALL_PROTOCOLS,
    Address,
    AnnouncementWithdrawn,
    ClientMachine,
    ClientMigration,
    MigrationCompleted,
    MigrationFrame,
    MigrationProtocol,
    Policy,
    ProbingStarted,
    Scheduler,
    ServerMigrationReceived,
)
from quicferry.protocol.client import AskHome, Challenge, Redirect, ReturnHome, SetProbeTimer

WITHDRAWAL = announced(HOME)


# Packet numbers


def test_the_first_packet_of_all_counts() -> None:
    machine = ClientMachine(ClientMigration(), ALL_PROTOCOLS, HOME)
    machine.frame_received(announced(AWAY), source=HOME, packet_number=0, is_newest=True)
    assert machine.may_probe(AWAY)


def test_every_frame_of_a_packet_counts() -> None:
    client = DrivenClient()
    client.receive(announced(AWAY))
    client.receive(WITHDRAWAL, announced(THIRD))
    assert client.events[1:] == [AnnouncementWithdrawn(AWAY), ServerMigrationReceived(THIRD)]


def test_an_answer_makes_what_is_older_a_late_copy() -> None:
    """Nothing else has come from the new address."""
    client = DrivenClient(policy=Policy.EAGER)
    client.receive(announced(AWAY))
    late = client.number = client.number + 1
    client.answered(AWAY)
    assert client.machine.home == AWAY
    ignores(client, announced(THIRD), source=HOME, number=late)


def test_a_packet_makes_what_is_older_a_late_copy() -> None:
    """Also if the answer comes in an older packet."""
    client = DrivenClient()
    client.receive(announced(AWAY))
    older, late = client.number + 1, client.number + 2
    client.number += 2
    client.receive(source=AWAY)
    client.machine.path_answered(AWAY, AWAY, older)
    assert client.machine.home == AWAY
    ignores(client, announced(THIRD), source=HOME, number=late)


def test_a_pool_address_makes_nothing_a_late_copy() -> None:
    client = DrivenClient()
    late = client.number = client.number + 1
    client.receive(pooled(AWAY))
    with pytest.raises(Exception, match="has sent a pool"):
        client.receive(announced(THIRD), number=late)


# What brings the connection home comes before the frame, what moves it forward after


def test_a_pool_address_from_home_after_a_copy() -> None:
    client = DrivenClient(pool=[AWAY])
    client.receive(source=AWAY)
    assert client.state == "VALIDATING_POOL"
    client.receive(pooled(THIRD), source=HOME)
    assert client.pool == (AWAY, THIRD)
    assert client.machine.server_address == HOME


@pytest.mark.parametrize("frame", [announced(AWAY), UNKNOWN], ids=["explicit", "synchronized"])
def test_an_announcement_from_home_after_a_copy(frame: MigrationFrame) -> None:
    client = DrivenClient()
    client.receive(source=ELSEWHERE)
    assert client.state == "VALIDATING_SYMMETRIC"
    client.receive(frame, source=HOME)
    assert client.state in ("ANNOUNCED", "AWAITING")
    assert client.machine.server_address == HOME


def test_a_violation_moves_nothing_forward() -> None:
    client = DrivenClient(pool=[AWAY, THIRD])
    client.receive(source=AWAY)
    violates(client, announced(FOURTH), source=THIRD)
    assert client.machine.take_actions() == []
    assert client.machine.server_address == AWAY


# Probing, and the second time


def test_every_other_probe_asks_home_each_time() -> None:
    client = DrivenClient()
    client.receive(announced(AWAY))
    for _ in range(2):
        asked = [AskHome() in client.timeout()]
        asked += [AskHome() in client.probe_due() for _ in range(4)]
        assert asked == [False, True, False, True, False]
        client.receive(source=HOME)


def test_probing_gets_slow_and_ends_each_time() -> None:
    """Five seconds at the interval that is configured, then 3 % slower each time, up to 2 s."""
    client = DrivenClient(policy=Policy.EAGER)
    first = client.receive(announced(AWAY))
    for _ in range(2):
        intervals = [action.delay for action in first if isinstance(action, SetProbeTimer)]
        while len(intervals) < 5000:
            actions = client.probe_due()
            if actions == [SetProbeTimer(None)]:
                break
            assert actions[0] == Challenge((AWAY,))
            intervals += [each.delay for each in actions if isinstance(each, SetProbeTimer)]
        slow = [min(2.0, 0.02 * 1.03**step) for step in range(1, 431)]
        assert intervals == pytest.approx(250 * [0.02] + slow)
        assert 500 < sum(slow) < 700
        assert client.state == "ANNOUNCED"
        client.receive(WITHDRAWAL)
        first = client.receive(announced(AWAY))


def test_a_slow_client_does_not_get_quicker() -> None:
    machine = ClientMachine(ClientMigration(probe_interval=2), EXPLICIT, HOME)
    machine.frame_received(announced(AWAY), source=HOME, packet_number=0, is_newest=True)
    for _ in range(600):
        assert SetProbeTimer(2) in machine.probe_due()


def started(client: DrivenClient) -> list[Address]:
    return [event.address for event in client.events if isinstance(event, ProbingStarted)]


@pytest.mark.parametrize("policy", Policy)
def test_probing_is_reported_once_for_each_migration(policy: Policy) -> None:
    client = DrivenClient(policy=policy)
    for round_ in (1, 2):
        client.receive(announced(AWAY))
        client.timeout()
        client.probe_due()
        assert started(client) == round_ * [AWAY]
        client.receive(WITHDRAWAL, source=HOME)


def test_probing_is_reported_once_for_each_false_alarm_of_a_pool() -> None:
    client = DrivenClient(pool=[AWAY, THIRD])
    for round_ in (1, 2):
        client.timeout()
        for _ in range(5):
            client.probe_due()
        assert started(client) == round_ * [AWAY, THIRD]
        client.receive(source=HOME)


def test_probing_is_reported_again_after_a_move() -> None:
    client = DrivenClient()
    for to in (AWAY, HOME, AWAY, HOME):
        client.receive(announced(to))
        client.timeout()
        client.receive(source=to)
        client.answered(to)
    assert started(client) == [AWAY, HOME, AWAY, HOME]


def test_home_answers_while_the_server_is_looked_for() -> None:
    """After a move home is another address than before."""
    client = DrivenClient()
    client.migrate(SYMMETRIC, AWAY)
    client.receive(announced(THIRD))
    client.timeout()
    assert client.state == "PROBING"
    assert client.answered(AWAY) == [SetProbeTimer(None), ReturnHome()]
    assert client.machine.server_address == AWAY


# A withdrawal that is kept in mind


def kept_in_mind() -> DrivenClient:
    """The client was told that the server stays, while it validates the path to where it went."""
    client = DrivenClient()
    client.receive(announced(AWAY))
    withdrawn = client.number = client.number + 1
    client.receive(source=AWAY)
    client.receive(WITHDRAWAL, source=HOME, number=withdrawn)
    assert client.state == "VALIDATING_EXPLICIT"
    return client


def test_it_is_taken_up_once() -> None:
    client = kept_in_mind()
    client.receive(source=HOME)
    client.receive(announced(AWAY))
    client.receive(source=AWAY)
    client.receive(source=HOME)
    assert client.events.count(AnnouncementWithdrawn(AWAY)) == 1
    assert client.state == "ANNOUNCED"


def test_a_move_makes_it_void() -> None:
    client = kept_in_mind()
    client.answered(AWAY)
    assert client.events[-1] == MigrationCompleted(EXPLICIT, AWAY)
    client.receive(announced(THIRD))
    client.receive(source=THIRD)
    client.receive(source=AWAY)
    assert client.state == "ANNOUNCED"
    assert not any(isinstance(event, AnnouncementWithdrawn) for event in client.events)


# What the transport asks


@pytest.mark.parametrize(
    ("negotiated", "expected"),
    [
        (EXPLICIT, {AWAY}),
        (EXPLICIT | SYMMETRIC, {AWAY, ELSEWHERE}),
        (EXPLICIT | SYNCHRONIZED, {AWAY, ELSEWHERE}),
    ],
)
def test_which_datagrams_may_be_looked_at(
    negotiated: MigrationProtocol, expected: set[Address]
) -> None:
    client = DrivenClient(negotiated)
    client.receive(announced(AWAY))
    assert {each for each in (AWAY, ELSEWHERE) if client.machine.expects(each)} == expected
    assert client.machine.may_probe(AWAY)
    assert not client.machine.may_probe(ELSEWHERE)


def test_where_the_server_may_turn_up() -> None:
    refused = Address.parse("8.0.0.1:53")

    def possible(client: DrivenClient) -> list[bool]:
        return [client.machine.may_move_to(each) for each in (AWAY, ELSEWHERE, refused)]

    assert possible(DrivenClient()) == [True, True, False]
    assert possible(DrivenClient(EXPLICIT)) == [False, False, False]
    assert possible(DrivenClient(pool=[AWAY])) == [True, False, False]
    client = DrivenClient()
    client.receive(source=THIRD)
    assert client.state == "VALIDATING_SYMMETRIC"
    assert possible(client) == [True, True, False]
    client = DrivenClient()
    client.receive(announced(AWAY))
    assert possible(client) == [True, False, False]
    client = DrivenClient(SYNCHRONIZED)
    assert possible(client) == [False, False, False]
    client.receive(UNKNOWN)
    assert possible(client) == [True, True, False]
    client.receive(source=THIRD)
    assert client.state == "VALIDATING_SYNCHRONIZED"
    assert possible(client) == [True, True, False]


def test_when_timeouts_matter_and_when_all_is_settled() -> None:
    def asked(client: DrivenClient) -> tuple[bool, bool]:
        return client.machine.heeds_timeouts, client.machine.is_settled

    assert asked(DrivenClient()) == (False, True)
    client = DrivenClient()
    client.receive(announced(AWAY))
    assert asked(client) == (True, False)
    client.timeout()
    assert asked(client) == (False, False)
    client = DrivenClient(pool=[AWAY])
    assert asked(client) == (True, False)
    client.timeout()
    assert asked(client) == (False, False)
    client = DrivenClient()
    client.receive(MIGRATED, source=AWAY)
    assert asked(client) == (False, False)
    client.answered(AWAY)
    assert asked(client) == (False, True)


@pytest.mark.parametrize("is_overheard", [True, False])
def test_an_answer_counts_where_it_was_asked_for(is_overheard: bool) -> None:
    """An idle client asks only where it has overheard something."""
    machine = ClientMachine(ClientMigration(policy=Policy.REACTIVE), ALL_PROTOCOLS, HOME)
    machine.path_answered(AWAY, AWAY, 1, is_overheard=is_overheard)
    assert machine.home == (AWAY if is_overheard else HOME)


def test_a_parallel_pool_is_asked_all_at_once() -> None:
    client = DrivenClient(POOL, scheduler=Scheduler.PARALLEL, pool=[AWAY, THIRD])
    assert Challenge((AWAY, THIRD)) in client.timeout()
    assert not any(isinstance(action, Redirect) for action in client.actions)
