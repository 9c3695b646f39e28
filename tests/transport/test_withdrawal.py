"""Announcements that are taken back, between real connections: lost, late, repeated, crossing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from aioquic.quic.packet import QuicErrorCode
from quicferry_lab.simulation import Datagram, NatKind, SimulatedAddress
from quicferry_lab.simulation.invariants import disagreement, events_of
from quicferry_lab.simulation.scenario import client_address
from simulated_pair import AWAY, HOME, Pair, address, pool
from support import (
    EXPLICIT,
    SYMMETRIC,
    SYNCHRONIZED,
    THIRD,
    OlderClient,
    Wire,
    assert_works,
    error_code,
    inject,
    lose,
    migrate,
    named,
    server_migration,
    wire_address,
    wired_pair,
)

from quicferry.protocol import (
    AnnouncementWithdrawn,
    ClientMigration,
    MigrationErrorCode,
    MigrationProtocol,
    Policy,
    ServerMigration,
    WithdrawalAcknowledged,
)
from quicferry.transport import Connection, activate, commit, freeze, resume_after_freeze, thaw

HOME6: SimulatedAddress = ("2001:db8::1", 4433, 0, 0)
AWAY6: SimulatedAddress = ("2001:db8::2", 4433, 0, 0)
SERVER_MIGRATION = 0x32
ANNOUNCING = pytest.mark.parametrize("protocol", [EXPLICIT, SYNCHRONIZED], ids=["explicit", "sync"])
EACH_POLICY = pytest.mark.parametrize("policy", Policy)


def begin(it: Pair, protocol: MigrationProtocol, target: SimulatedAddress = AWAY) -> None:
    """Announce a migration, and do not wait."""
    named_address = address(target) if protocol is EXPLICIT else None
    it.server.migrating.imminent_migration(protocol, named_address, now=it.network.now)
    it.server.flush()


def abort(it: Pair) -> None:
    it.server.migrating.abort_migration(now=it.network.now)
    it.server.flush()


def wait_until_idle(it: Pair) -> None:
    it.network.run_until(
        lambda: it.server.migrating.migration_state == "idle", limit=10, what="the withdrawal"
    )


@contextmanager
def announced(
    protocol: MigrationProtocol, *, seed: int = 0, policy: Policy = Policy.EAGER
) -> Iterator[tuple[Pair, Wire]]:
    """A pair whose client knows of a migration."""
    with wired_pair(seed, client=ClientMigration(policy=policy)) as (it, wire):
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        yield it, wire


def assert_withdrawn(it: Pair, protocol: MigrationProtocol) -> None:
    """Both sides agree that nothing is announced, and were told so once."""
    target = address(AWAY) if protocol is EXPLICIT else None
    assert events_of(it.client, AnnouncementWithdrawn) == [AnnouncementWithdrawn(target)]
    assert len(events_of(it.server, WithdrawalAcknowledged)) == 1
    assert it.client.migrating.migration_state == it.server.migrating.migration_state == "idle"
    assert it.client.connection.get_peer_address() == HOME
    assert disagreement(it.client, it.server) is None


@EACH_POLICY
@ANNOUNCING
def test_withdrawn(protocol: MigrationProtocol, policy: Policy) -> None:
    with announced(protocol, policy=policy) as (it, _):
        abort(it)
        it.network.run_for(0.2)
        assert_withdrawn(it, protocol)
        assert_works(it, HOME)


@ANNOUNCING
def test_with_ipv6(protocol: MigrationProtocol) -> None:
    with wired_pair(home=HOME6) as (it, _):
        it.imminent(protocol, AWAY6 if protocol is EXPLICIT else None)
        abort(it)
        it.network.run_for(0.2)
        assert len(events_of(it.client, AnnouncementWithdrawn)) == 1
        assert_works(it, HOME6)


def test_an_eager_client_asks_no_more() -> None:
    with announced(EXPLICIT) as (it, wire):
        it.network.run_for(0.1)
        assert wire.select(destination=AWAY)
        abort(it)
        it.network.run_for(0.1)
        wire.clear()
        it.exchange()
        it.network.run_for(5)
        assert wire.select(destination=AWAY) == []


@EACH_POLICY
def test_a_client_that_probes_comes_home_with_its_path_state(policy: Policy) -> None:
    with announced(EXPLICIT, policy=policy) as (it, wire):
        it.exchange()
        before = it.client.migrating.path_estimate
        lose(it.network, lambda datagram: datagram.source == it.client.external, 2)
        it.requests.start([[]])
        it.client.connection.send_ping(7)
        it.client.flush()
        it.network.run_for(0.15)
        abort(it)
        it.network.run_for(0.5)
        assert_withdrawn(it, EXPLICIT)
        after = it.client.migrating.path_estimate
        assert after.generation == before.generation
        assert after.min_rtt == before.min_rtt
        wire.clear()
        it.exchange()
        assert wire.select(destination=AWAY) == []


@pytest.mark.parametrize("following", [EXPLICIT, SYMMETRIC, SYNCHRONIZED])
@ANNOUNCING
def test_any_migration_may_follow_at_once(
    protocol: MigrationProtocol, following: MigrationProtocol
) -> None:
    with announced(protocol) as (it, wire):
        abort(it)
        target = address(THIRD) if following is EXPLICIT else None
        assert it.server.migrating.migration_obstacle(following, target) is None
        wire.clear()
        begin(it, following, THIRD)
        it.network.run_until(
            lambda: it.server.migrating.migration_state == "ready", limit=10, what="readiness"
        )
        assert len(events_of(it.server, WithdrawalAcknowledged)) == 1
        it.relocate(THIRD, frozen=0.05)
        assert_works(it, THIRD)


def test_there_and_back_ten_times() -> None:
    """No connection ID is left behind with what was withdrawn."""
    with wired_pair() as (it, _):
        for number in range(10):
            it.imminent(EXPLICIT, AWAY if number % 2 else THIRD)
            it.network.run_for(0.1)
            abort(it)
            it.exchange()
            it.network.run_for(0.2)
        assert len(events_of(it.client, AnnouncementWithdrawn)) == 10
        for target in (AWAY, THIRD, HOME):
            migrate(it, EXPLICIT, target)
        assert_works(it, HOME)


# Lost, late, repeated


@pytest.mark.parametrize("lost", [1, 2, 4])
@ANNOUNCING
def test_lost_withdrawal_is_sent_again(protocol: MigrationProtocol, lost: int) -> None:
    with announced(protocol) as (it, wire):
        wire.clear()
        lose(it.network, lambda each: SERVER_MIGRATION in wire.read(each.data), lost)
        abort(it)
        wait_until_idle(it)
        assert len(wire.select(SERVER_MIGRATION)) > lost
        it.network.run_for(0.5)
        assert_withdrawn(it, protocol)
        assert_works(it, HOME)


@ANNOUNCING
def test_lost_acknowledgements(protocol: MigrationProtocol) -> None:
    """The client knows; the server says it again, and the client is not told twice."""
    with announced(protocol) as (it, _):
        lose(it.network, lambda each: each.source == it.client.external, 3)
        abort(it)
        wait_until_idle(it)
        it.network.run_for(0.5)
        assert_withdrawn(it, protocol)
        assert_works(it, HOME)


@ANNOUNCING
def test_the_next_migration_waits_though_the_withdrawal_is_lost(
    protocol: MigrationProtocol,
) -> None:
    with announced(protocol) as (it, wire):
        lose(it.network, lambda each: SERVER_MIGRATION in wire.read(each.data), 2)
        abort(it)
        begin(it, EXPLICIT, THIRD)
        assert it.server.migrating.migration_state == "queued"
        it.network.run_until(
            lambda: it.server.migrating.migration_state == "ready", limit=10, what="readiness"
        )
        it.relocate(THIRD)
        assert_works(it, THIRD)


@ANNOUNCING
def test_a_withdrawal_overtakes_the_announcement(protocol: MigrationProtocol) -> None:
    """The announcement is held up on the way, and arrives when it is withdrawn."""
    with wired_pair() as (it, wire):
        held: list[Datagram] = []

        def hold(datagram: Datagram) -> bool:
            if SERVER_MIGRATION in wire.read(datagram.data) and not held:
                held.append(datagram)
                return False
            return True

        it.network.filters.append(hold)
        begin(it, protocol)
        abort(it)
        it.network.run_for(0.5)
        assert it.server.migrating.migration_state == "idle"
        it.deliver(it.client, held[0].data, HOME)
        it.network.run_for(0.5)
        assert named(it.client).count("ServerMigrationReceived") == 0
        assert it.client.migrating.migration_state == "idle"
        migrate(it, EXPLICIT, THIRD)
        assert_works(it, THIRD)


@ANNOUNCING
def test_repeated_in_newer_packets(protocol: MigrationProtocol) -> None:
    with announced(protocol) as (it, _):
        abort(it)
        it.network.run_for(0.2)
        for _ in range(3):
            inject(it, server_migration(HOME) * 2)
        it.network.run_for(0.2)
        assert_withdrawn(it, protocol)
        assert_works(it, HOME)


@pytest.mark.parametrize("times", [1, 2, 5])
def test_many_changes_of_mind_in_one_flight(times: int) -> None:
    with wired_pair() as (it, _):
        for _ in range(times):
            begin(it, EXPLICIT)
            abort(it)
        begin(it, SYNCHRONIZED)
        it.network.run_until(
            lambda: it.server.migrating.migration_state == "ready", limit=10, what="readiness"
        )
        it.relocate(THIRD)
        assert_works(it, THIRD)


# Crossing


@EACH_POLICY
@pytest.mark.parametrize("delay", [0.0, 0.005, 0.009, 0.01, 0.018, 0.04])
def test_crossing_with_a_false_alarm(policy: Policy, delay: float) -> None:
    with announced(EXPLICIT, policy=policy) as (it, _):
        silent = {"on": True}
        it.network.filters.append(lambda datagram: not silent["on"])
        it.client.connection.send_ping(7)
        it.client.flush()
        it.network.run_for(0.3)
        silent["on"] = False
        it.network.run_for(delay)
        abort(it)
        it.network.run_for(2)
        assert_withdrawn(it, EXPLICIT)
        assert_works(it, HOME)


@ANNOUNCING
@pytest.mark.parametrize("nat", [None, NatKind.FULL_CONE])
@pytest.mark.parametrize("before", [True, False])
def test_crossing_with_a_migration_of_the_client(
    protocol: MigrationProtocol, nat: NatKind | None, before: bool
) -> None:
    with wired_pair(nat=nat) as (it, _):
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        it.network.run_for(0.1)

        def change() -> None:
            if nat is None:
                it.client.migrate(client_address(4, 9), grace=1)
            else:
                it.client.rebind(client_address(4, 9), grace=1)

        if before:
            change()
            abort(it)
        else:
            abort(it)
            change()
        it.exchange()
        it.network.run_for(1)
        assert_withdrawn(it, protocol)
        assert_works(it, HOME)


@ANNOUNCING
def test_a_server_that_has_switched_withdraws_nothing(protocol: MigrationProtocol) -> None:
    with announced(protocol) as (it, wire):
        it.host.freeze()
        it.host.resume(AWAY)
        wire.clear()
        with pytest.raises(Exception, match="MIGRATION_ALREADY_IN_PROGRESS"):
            abort(it)
        assert_works(it, AWAY)
        assert wire.select(SERVER_MIGRATION) == []
        assert "AnnouncementWithdrawn" not in named(it.client)


# Who cannot be told


@ANNOUNCING
def test_an_older_client_is_never_sent_a_withdrawal(protocol: MigrationProtocol) -> None:
    with wired_pair(client_type=OlderClient) as (it, wire):
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        wire.clear()
        abort(it)
        it.network.run_for(1)
        assert wire.select(SERVER_MIGRATION) == []
        obstacle = it.server.migrating.migration_obstacle(SYMMETRIC)
        assert obstacle is MigrationErrorCode.INVALID_STATE
        assert_works(it, HOME)


@pytest.mark.parametrize("client_type", [OlderClient, Connection], ids=["older", "ours"])
@ANNOUNCING
def test_what_was_not_sent_before_an_abort_is_never_sent(
    protocol: MigrationProtocol, client_type: type[Connection]
) -> None:
    """Congestion control may hold an announcement back, and so may a batch that is not over."""
    with wired_pair(client_type=client_type) as (it, wire):
        target = address(AWAY) if protocol is EXPLICIT else None
        it.server.migrating.imminent_migration(protocol, target, now=it.network.now)
        it.server.migrating.abort_migration(now=it.network.now)
        it.server.flush()
        it.network.run_for(1)
        said = {
            body for sent in wire.sent for kind, body in sent.frames if kind == SERVER_MIGRATION
        }
        assert said <= {wire_address(HOME)}, "at most that it stays"
        assert "ServerMigrationReceived" not in named(it.client)
        assert_works(it, HOME)


@ANNOUNCING
def test_what_was_lost_before_an_abort_is_not_sent_again(protocol: MigrationProtocol) -> None:
    """It waits to be sent once more when the migration is given up."""
    with wired_pair(client_type=OlderClient) as (it, wire):
        lose(it.network, lambda datagram: SERVER_MIGRATION in wire.read(datagram.data))
        begin(it, protocol)
        connection = it.server.migrating
        it.network.run_for(0.01)
        connection._loss.reschedule_data(now=it.network.now)
        connection.abort_migration(now=it.network.now)
        wire.clear()
        it.server.flush()
        it.network.run_for(2)
        assert wire.select(SERVER_MIGRATION) == []
        assert "ServerMigrationReceived" not in named(it.client)
        assert_works(it, HOME)


def test_an_older_client_takes_a_withdrawal_for_a_violation() -> None:
    with wired_pair(client_type=OlderClient) as (it, _):
        it.imminent(EXPLICIT, AWAY)
        inject(it, server_migration(HOME))
        it.network.run_for(1)
        assert error_code(it.client) == QuicErrorCode.PROTOCOL_VIOLATION


def test_a_client_with_a_pool_takes_a_withdrawal_for_a_violation() -> None:
    with wired_pair(server=ServerMigration(pool=pool(AWAY))) as (it, _):
        inject(it, server_migration(HOME))
        it.network.run_for(1)
        assert error_code(it.client) == QuicErrorCode.PROTOCOL_VIOLATION


# Carried to another host, or back from a freeze


def thaw_in_place(it: Pair) -> None:
    """Let a copy of the server's connection live in its place."""
    source = it.server.migrating
    it.server.flush()
    data = freeze(source, now=it.network.now)
    copy = thaw(data, configuration=source.configuration, now=it.network.now)
    activate(copy, now=it.network.now)
    commit(copy)
    it.server.connection = copy
    it.server.flush()


@pytest.mark.parametrize("following", [None, EXPLICIT, SYMMETRIC])
@ANNOUNCING
def test_a_copy_goes_on_with_the_withdrawal(
    protocol: MigrationProtocol, following: MigrationProtocol | None
) -> None:
    """What was in flight at the freeze is given up for lost, and sent again by the copy."""
    with announced(protocol) as (it, _):
        abort(it)
        if following is not None:
            begin(it, following, THIRD)
        thaw_in_place(it)
        assert it.server.migrating.knows_withdrawals
        if following is None:
            wait_until_idle(it)
            it.imminent(EXPLICIT, THIRD)
        it.network.run_until(
            lambda: it.server.migrating.migration_state == "ready", limit=10, what="readiness"
        )
        assert len(events_of(it.server, WithdrawalAcknowledged)) == 1
        it.relocate(THIRD)
        assert_works(it, THIRD)


@ANNOUNCING
def test_a_server_that_resumes_after_a_freeze_withdraws(protocol: MigrationProtocol) -> None:
    """The connection goes on behind a jump of its packet numbers."""
    with announced(protocol) as (it, _):
        it.server.flush()
        freeze(it.server.migrating, now=it.network.now)
        it.network.run_for(0.3)
        resume_after_freeze(it.server.migrating, now=it.network.now)
        abort(it)
        it.exchange()
        it.network.run_for(0.5)
        assert_withdrawn(it, protocol)
        assert_works(it, HOME)
