"""An announcement is taken back: both machines, for clients that know withdrawals and others."""

from __future__ import annotations

import pytest
from driven import (
    AWAY,
    AWAY6,
    EXPLICIT,
    HOME,
    HOME6,
    POOL,
    SYMMETRIC,
    SYNCHRONIZED,
    THIRD,
    UNKNOWN,
    DrivenClient,
    DrivenServer,
    announced,
    fails,
    ignores,
    violates,
)

from quicferry.protocol import (
    ALL_PROTOCOLS,
    Address,
    AnnouncementWithdrawn,
    MigrationAddress,
    MigrationCompleted,
    MigrationErrorCode,
    MigrationFrame,
    MigrationProtocol,
    MigrationReady,
    Policy,
    ProbingStarted,
    ServerMigrationAcknowledged,
    ServerMigrationReceived,
    WithdrawalAcknowledged,
)
from quicferry.protocol.client import Forget, Move, Redirect, ReturnHome, SetProbeTimer
from quicferry.protocol.server import Cancel, Send, SwitchPath

WITHDRAWAL = announced(HOME)
ANNOUNCING = pytest.mark.parametrize("protocol", [EXPLICIT, SYNCHRONIZED], ids=["explicit", "sync"])
ERROR = MigrationErrorCode


def told(protocol: MigrationProtocol, policy: Policy = Policy.REACTIVE) -> DrivenClient:
    """A client that was told of a migration."""
    client = DrivenClient(policy=policy)
    client.receive(announced(AWAY) if protocol is EXPLICIT else UNKNOWN)
    return client


def withdrawn_event(protocol: MigrationProtocol) -> AnnouncementWithdrawn:
    return AnnouncementWithdrawn(AWAY if protocol is EXPLICIT else None)


def is_forgotten(client: DrivenClient) -> bool:
    """Whether a client is as if nothing had been announced."""
    machine = client.machine
    at_home = client.state == "IDLE" and machine.server_address == machine.home == HOME
    return at_home and not machine.may_probe(AWAY) and not machine.heeds_timeouts


# The client


@ANNOUNCING
def test_a_withdrawal_overtaken_by_a_copy(protocol: MigrationProtocol) -> None:
    """The copied packet seems to come from where the server would have gone."""
    client = told(protocol)
    overtaken = client.number = client.number + 1
    client.receive(source=AWAY)
    client.receive(WITHDRAWAL, source=HOME, number=overtaken)
    client.receive(source=HOME)
    assert client.events[-1] == withdrawn_event(protocol)
    assert is_forgotten(client)


@pytest.mark.parametrize("policy", Policy)
@ANNOUNCING
def test_the_client_forgets(protocol: MigrationProtocol, policy: Policy) -> None:
    client = told(protocol, policy)
    actions = client.receive(WITHDRAWAL)
    assert actions[-1] == Forget()
    assert client.events[-1] == withdrawn_event(protocol)
    assert is_forgotten(client)
    assert client.timeout() == []


def test_an_eager_client_stops_asking() -> None:
    client = told(EXPLICIT, Policy.EAGER)
    client.probe_due()
    assert client.receive(WITHDRAWAL) == [SetProbeTimer(None), Forget()]
    assert client.answered(AWAY) == []
    assert is_forgotten(client)


def test_a_client_that_has_turned_to_the_candidate_comes_home() -> None:
    client = told(EXPLICIT)
    assert Redirect(AWAY) in client.timeout()
    assert client.receive(WITHDRAWAL) == [SetProbeTimer(None), ReturnHome(), Forget()]
    assert client.probe_due() == []
    assert is_forgotten(client)


@ANNOUNCING
def test_repeated_withdrawal(protocol: MigrationProtocol) -> None:
    client = told(protocol)
    client.receive(WITHDRAWAL, WITHDRAWAL)
    ignores(client, WITHDRAWAL)
    assert client.events.count(withdrawn_event(protocol)) == 1


@ANNOUNCING
def test_a_withdrawal_that_overtakes_the_announcement(protocol: MigrationProtocol) -> None:
    frame = announced(AWAY) if protocol is EXPLICIT else UNKNOWN
    client = DrivenClient()
    late = client.number = client.number + 1
    ignores(client, WITHDRAWAL)
    ignores(client, frame, number=late)
    assert client.events == []


@ANNOUNCING
def test_a_late_withdrawal_is_older_than_the_next_announcement(protocol: MigrationProtocol) -> None:
    client = told(protocol)
    late = client.number = client.number + 1
    client.receive(WITHDRAWAL)
    client.receive(announced(THIRD))
    ignores(client, WITHDRAWAL, number=late)
    assert client.state == "ANNOUNCED"


@pytest.mark.parametrize("next_protocol", [EXPLICIT, SYMMETRIC, SYNCHRONIZED])
@ANNOUNCING
def test_any_protocol_may_follow(
    protocol: MigrationProtocol, next_protocol: MigrationProtocol
) -> None:
    client = told(protocol)
    client.receive(WITHDRAWAL)
    client.migrate(next_protocol, THIRD)
    assert client.events[-1] == MigrationCompleted(next_protocol, THIRD)


def test_the_same_may_be_announced_again_and_is_told_again() -> None:
    client = told(EXPLICIT)
    client.timeout()
    client.receive(WITHDRAWAL)
    client.receive(announced(AWAY))
    client.timeout()
    probing = ProbingStarted(EXPLICIT, AWAY)
    once = [ServerMigrationReceived(AWAY), probing]
    assert client.events == [*once, AnnouncementWithdrawn(AWAY), *once]


@pytest.mark.parametrize("negotiated", [SYNCHRONIZED, SYNCHRONIZED | SYMMETRIC])
def test_an_address_withdraws_though_explicit_was_not_negotiated(
    negotiated: MigrationProtocol,
) -> None:
    client = DrivenClient(negotiated)
    client.receive(UNKNOWN)
    client.receive(WITHDRAWAL)
    assert client.events[-1] == AnnouncementWithdrawn(None)


@pytest.mark.parametrize("negotiated", [SYMMETRIC, POOL, SYMMETRIC | POOL])
def test_where_nothing_can_be_announced_nothing_can_be_withdrawn(
    negotiated: MigrationProtocol,
) -> None:
    violates(DrivenClient(negotiated), WITHDRAWAL)


def test_with_a_pool_nothing_can_be_withdrawn() -> None:
    violates(DrivenClient(pool=[AWAY]), WITHDRAWAL)


def test_of_two_families_the_one_in_use_names_home() -> None:
    client = DrivenClient(home=HOME6)
    client.receive(announced(AWAY6))
    violates(client, announced(HOME))
    client.receive(announced(AWAY, HOME6))
    assert client.events[-1] == AnnouncementWithdrawn(AWAY6)


@ANNOUNCING
def test_all_zero_said_twice_is_a_repetition(protocol: MigrationProtocol) -> None:
    """Servers that cannot withdraw repeat a lost announcement in a newer packet."""
    client = DrivenClient()
    client.receive(UNKNOWN)
    ignores(client, UNKNOWN)
    assert client.state == "AWAITING"


# Crossing with a move


def moving(protocol: MigrationProtocol) -> DrivenClient:
    client = told(protocol)
    client.receive(source=AWAY)
    assert client.state.startswith("VALIDATING")
    return client


@ANNOUNCING
def test_a_withdrawal_older_than_the_move_is_ignored(protocol: MigrationProtocol) -> None:
    client = told(protocol)
    late = client.number = client.number + 1
    client.receive(source=AWAY)
    ignores(client, WITHDRAWAL, source=HOME, number=late)
    client.answered(AWAY)
    ignores(client, WITHDRAWAL, source=HOME, number=late)
    assert client.events[-1] == MigrationCompleted(protocol, AWAY)


@ANNOUNCING
def test_the_packets_decide_while_a_move_is_validated(protocol: MigrationProtocol) -> None:
    client = moving(protocol)
    between = client.number = client.number + 1
    client.receive(source=AWAY)
    ignores(client, WITHDRAWAL, source=HOME, number=between)
    client.answered(AWAY)
    assert client.events[-1] == MigrationCompleted(protocol, AWAY)
    assert client.state == "IDLE"


@pytest.mark.parametrize("by", ["packet", "failure"])
@ANNOUNCING
def test_back_home_it_is_taken_up(protocol: MigrationProtocol, by: str) -> None:
    """Packets copied from the announced address must not make it ineffective (RFC 9000 9.3.2)."""
    client = moving(protocol)
    between = client.number = client.number + 1
    client.receive(source=AWAY)
    ignores(client, WITHDRAWAL, source=HOME, number=between)
    actions = client.receive() if by == "packet" else client.validation_failed()
    assert actions[-2:] == [ReturnHome(), Forget()]
    assert client.events[-1] == withdrawn_event(protocol)
    assert is_forgotten(client)
    assert client.events.count(withdrawn_event(protocol)) == 1


@ANNOUNCING
def test_the_newest_packet_from_home_brings_the_client_home_and_withdraws(
    protocol: MigrationProtocol,
) -> None:
    client = moving(protocol)
    client.receive(WITHDRAWAL, source=HOME)
    assert client.events[-1] == withdrawn_event(protocol)
    assert is_forgotten(client)


@pytest.mark.parametrize("frame", [announced(THIRD), UNKNOWN], ids=["explicit", "sync"])
@ANNOUNCING
def test_a_new_announcement_shows_that_the_server_is_at_home(
    protocol: MigrationProtocol, frame: MigrationFrame
) -> None:
    client = moving(protocol)
    withdrawal, announcement = client.number + 1, client.number + 2
    client.number += 2
    client.receive(source=AWAY)
    client.receive(WITHDRAWAL, source=HOME, number=withdrawal)
    client.receive(frame, source=HOME, number=announcement)
    target = THIRD if frame is not UNKNOWN else None
    assert client.events[-2:] == [withdrawn_event(protocol), ServerMigrationReceived(target)]
    assert client.machine.server_address == HOME


def test_a_former_move_does_not_count_for_a_later_one() -> None:
    """What was withdrawn in the course of one move says nothing about the next."""
    client = moving(EXPLICIT)
    between = client.number = client.number + 1
    client.receive(source=AWAY)
    client.receive(WITHDRAWAL, source=HOME, number=between)
    client.answered(AWAY)
    client.receive(announced(THIRD))
    client.receive(source=THIRD)
    client.receive(source=AWAY)
    assert client.state == "ANNOUNCED"


# The server


def server_with(protocol: MigrationProtocol, *, acknowledged: bool = True) -> DrivenServer:
    """A server that has announced a migration to a client that knows withdrawals."""
    server = DrivenServer(can_withdraw=True)
    server.imminent(protocol, AWAY if protocol is EXPLICIT else None)
    if acknowledged:
        server.acknowledged(server.frames[-1])
        assert server.state == "READY"
    return server


def frame_of(protocol: MigrationProtocol) -> MigrationFrame:
    return announced(AWAY) if protocol is EXPLICIT else UNKNOWN


@pytest.mark.parametrize("acknowledged", [True, False])
@ANNOUNCING
def test_an_abort_withdraws(protocol: MigrationProtocol, acknowledged: bool) -> None:
    server = server_with(protocol, acknowledged=acknowledged)
    cancelled = [] if acknowledged else [Cancel(frame_of(protocol))]
    assert server.abort() == [*cancelled, Send(WITHDRAWAL)]
    assert server.state == "WITHDRAWING"
    assert server.machine.announcement is None
    server.acknowledged(WITHDRAWAL)
    assert server.state == "IDLE"
    assert server.events[-1] == WithdrawalAcknowledged()


def test_an_abort_of_what_was_not_announced_says_nothing() -> None:
    server = DrivenServer(can_withdraw=True)
    server.imminent(SYMMETRIC)
    assert server.abort() == []
    assert server.state == "IDLE"


@pytest.mark.parametrize("current", [None, Address.parse("0.0.0.0:4433")], ids=str)
@ANNOUNCING
def test_without_an_address_of_its_own_a_server_withdraws_nothing(
    protocol: MigrationProtocol, current: Address | None
) -> None:
    server = server_with(protocol)
    assert server.abort(current=current) == []
    assert server.state == "IDLE"
    fails(server, ERROR.INVALID_STATE, SYMMETRIC)


@ANNOUNCING
def test_a_client_that_does_not_know_withdrawals_is_sent_none(protocol: MigrationProtocol) -> None:
    server = DrivenServer()
    server.imminent(protocol, AWAY if protocol is EXPLICIT else None)
    server.acknowledged(server.frames[-1])
    assert server.abort() == []
    assert server.machine.announcement == frame_of(protocol)


@ANNOUNCING
def test_a_lost_withdrawal_is_sent_again_until_it_is_acknowledged(
    protocol: MigrationProtocol,
) -> None:
    server = server_with(protocol)
    server.abort()
    assert server.lost(WITHDRAWAL) == [Send(WITHDRAWAL)]
    assert server.acknowledged(WITHDRAWAL) == [Cancel(WITHDRAWAL)]
    assert server.lost(WITHDRAWAL) == []
    assert server.acknowledged(WITHDRAWAL) == []
    assert server.events.count(WithdrawalAcknowledged()) == 1


@pytest.mark.parametrize("following", [EXPLICIT, SYMMETRIC, SYNCHRONIZED])
@ANNOUNCING
def test_the_next_migration_waits_for_the_acknowledgement(
    protocol: MigrationProtocol, following: MigrationProtocol
) -> None:
    server = server_with(protocol)
    server.abort()
    target = MigrationAddress.of(THIRD) if following is EXPLICIT else None
    assert server.machine.obstacle(following, target, HOME) is None
    assert server.imminent(following, target) == []
    assert server.state == "QUEUED"
    assert server.lost(WITHDRAWAL) == [Send(WITHDRAWAL)]
    said = server.acknowledged(WITHDRAWAL)
    next_frame = {EXPLICIT: announced(THIRD), SYNCHRONIZED: UNKNOWN}.get(following)
    if next_frame is not None:
        assert said[-1] == Send(next_frame)
        assert server.state == "PREPARING"
        server.acknowledged(next_frame)
    assert server.state == "READY"
    assert MigrationReady(following) in server.events
    server.switch(THIRD)
    server.response_acknowledged()
    assert server.events[-1] == MigrationCompleted(following, THIRD)


@ANNOUNCING
def test_an_abort_of_what_is_queued_says_nothing_more(protocol: MigrationProtocol) -> None:
    server = server_with(protocol)
    server.abort()
    server.imminent(EXPLICIT, THIRD)
    server.abort()
    assert server.state == "WITHDRAWING"
    server.acknowledged(WITHDRAWAL)
    assert server.state == "IDLE"
    assert announced(THIRD) not in server.frames


def test_one_is_queued_at_most() -> None:
    server = server_with(EXPLICIT)
    server.abort()
    server.imminent(SYMMETRIC)
    fails(server, ERROR.MIGRATION_ALREADY_IN_PROGRESS, SYMMETRIC)


@pytest.mark.parametrize("queued", [True, False])
def test_no_switch_before_the_acknowledgement(queued: bool) -> None:
    server = server_with(EXPLICIT)
    server.abort()
    if queued:
        server.imminent(SYMMETRIC)
    with pytest.raises(Exception, match="INVALID_STATE"):
        server.switch()
    assert not any(isinstance(action, SwitchPath) for action in server.actions)


@ANNOUNCING
def test_a_server_that_has_switched_withdraws_nothing(protocol: MigrationProtocol) -> None:
    server = server_with(protocol)
    server.switch()
    with pytest.raises(Exception, match="MIGRATION_ALREADY_IN_PROGRESS"):
        server.abort()
    assert server.state == "SWITCHED"
    server.response_acknowledged()
    assert server.events[-1] == MigrationCompleted(protocol, AWAY)
    assert WITHDRAWAL not in server.frames


def test_a_late_acknowledgement_of_the_announcement_is_ignored() -> None:
    server = server_with(EXPLICIT, acknowledged=False)
    server.abort()
    assert server.acknowledged(announced(AWAY)) == []
    assert server.lost(announced(AWAY)) == []
    assert server.state == "WITHDRAWING"
    assert ServerMigrationAcknowledged(MigrationAddress.of(AWAY)) not in server.events


def test_home_is_where_the_server_is_now() -> None:
    server = server_with(EXPLICIT)
    server.switch(AWAY)
    server.response_acknowledged()
    server.imminent(EXPLICIT, THIRD, current=AWAY)
    assert Send(announced(AWAY)) in server.abort(current=AWAY)


# Both


def test_the_two_agree_after_many_changes_of_mind() -> None:
    client, server = DrivenClient(ALL_PROTOCOLS), DrivenServer(can_withdraw=True)
    plans = [(EXPLICIT, AWAY), (SYNCHRONIZED, None), (EXPLICIT, THIRD), (SYMMETRIC, None)]
    for protocol, target in plans * 3:
        sent = len(server.frames)
        server.imminent(protocol, target)
        for frame in server.frames[sent:]:
            client.receive(frame)
            server.acknowledged(frame)
        assert server.state == "READY"
        sent = len(server.frames)
        server.abort()
        for frame in server.frames[sent:]:
            client.receive(frame)
            server.acknowledged(frame)
        assert (client.state, server.state) == ("IDLE", "IDLE")
    assert not any(isinstance(action, Move) for action in client.actions)
    withdrawn = [event for event in client.events if isinstance(event, AnnouncementWithdrawn)]
    assert len(withdrawn) == 9
