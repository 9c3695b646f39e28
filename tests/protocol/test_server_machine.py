"""The server's side: readiness, the errors of section 6, late acknowledgements, another machine."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from driven import (
    AWAY,
    AWAY6,
    EXPLICIT,
    HOME,
    HOME6,
    MIGRATED,
    POOL,
    SYMMETRIC,
    SYNCHRONIZED,
    THIRD,
    UNKNOWN,
    DrivenServer,
    announced,
    fails,
    pooled,
)

from quicferry.protocol import (
    ALL_PROTOCOLS,
    Address,
    MigrationAddress,
    MigrationCompleted,
    MigrationError,
    MigrationErrorCode,
    MigrationFrame,
    MigrationProtocol,
    MigrationReady,
    PoolAddressAcknowledged,
    PoolMigrationAddressFrame,
    ServerMachine,
    ServerMigratedAcknowledged,
    ServerMigration,
    ServerMigrationAcknowledged,
)
from quicferry.protocol.server import Action, Complete, Send, SendMigrated, State, SwitchPath

BOTH = MigrationAddress(AWAY, AWAY6)
TWO = ServerMigration(pool=(MigrationAddress.of(AWAY), MigrationAddress.of(THIRD)))
ERROR = MigrationErrorCode


def destination(protocol: MigrationProtocol) -> Address | None:
    return AWAY if protocol is EXPLICIT else None


def ready(protocol: MigrationProtocol) -> DrivenServer:
    server = DrivenServer(options=TWO if protocol is POOL else ServerMigration())
    server.imminent(protocol, destination(protocol))
    for frame in server.frames:
        server.acknowledged(frame)
    assert server.state == "READY"
    return server


# Section 4: what is sent, when ready, at the network switch, when complete


@pytest.mark.parametrize(
    ("protocol", "frame"), [(EXPLICIT, announced(AWAY)), (SYNCHRONIZED, UNKNOWN)], ids=str
)
def test_announcing_protocols(protocol: MigrationProtocol, frame: MigrationFrame) -> None:
    server = DrivenServer()
    (sent,) = server.imminent(protocol, destination(protocol))
    assert sent == Send(frame)
    assert server.events == []
    server.acknowledged(server.frames[0])
    target = MigrationAddress.of(AWAY) if protocol is EXPLICIT else None
    assert server.events == [ServerMigrationAcknowledged(target), MigrationReady(protocol)]


def test_symmetric_is_ready_at_once() -> None:
    server = DrivenServer()
    assert server.imminent(SYMMETRIC) == []
    assert server.events == [MigrationReady(SYMMETRIC)]


def test_pool_is_sent_after_the_handshake_and_ready_at_once() -> None:
    server = DrivenServer(options=TWO)
    assert server.frames == [pooled(AWAY), pooled(THIRD)]
    assert server.imminent(POOL) == []
    assert server.events == [
        *(PoolAddressAcknowledged(address) for address in TWO.pool),
        MigrationReady(POOL),
    ]


@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_network_switch_and_completion(protocol: MigrationProtocol) -> None:
    server = ready(protocol)
    at_switch = server.switch(AWAY)
    heard = [SendMigrated()] if protocol in (SYMMETRIC, SYNCHRONIZED) else []
    assert at_switch == [SwitchPath(), *heard]
    assert server.state == "SWITCHED"
    assert server.response_acknowledged() == [Complete()]
    assert server.events[-1] == MigrationCompleted(protocol, AWAY)
    assert server.state == "IDLE"


@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_response_before_the_switch_completes_nothing(protocol: MigrationProtocol) -> None:
    server = ready(protocol)
    assert server.response_acknowledged() == []
    assert server.state == "READY"


@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_completes_once(protocol: MigrationProtocol) -> None:
    server = ready(protocol)
    server.switch()
    server.response_acknowledged()
    assert server.response_acknowledged() == []
    assert server.events.count(MigrationCompleted(protocol, AWAY)) == 1


def test_several_migrations_with_different_protocols() -> None:
    server = DrivenServer()
    for protocol, to in ((EXPLICIT, AWAY), (SYNCHRONIZED, THIRD), (SYMMETRIC, HOME)):
        server.imminent(protocol, destination(protocol))
        for frame in server.frames:
            server.acknowledged(frame)
        server.switch(to)
        server.response_acknowledged()
        assert server.events[-1] == MigrationCompleted(protocol, to)


def test_there_and_back() -> None:
    server = DrivenServer()
    for current, target in ((HOME, AWAY), (AWAY, HOME), (HOME, AWAY)):
        server.imminent(EXPLICIT, target, current=current)
        server.acknowledged(announced(target))
        server.switch(target)
        server.response_acknowledged()
    assert server.frames == [announced(AWAY), announced(HOME), announced(AWAY)]


def test_pool_without_negotiation_is_not_sent() -> None:
    server = DrivenServer(ALL_PROTOCOLS & ~POOL, options=TWO)
    assert server.frames == []
    server.imminent(SYMMETRIC)
    assert server.state == "READY"


def test_of_the_pool_only_the_family_in_use_is_sent() -> None:
    both = (MigrationAddress.of(AWAY), MigrationAddress.of(AWAY6), MigrationAddress(THIRD, HOME6))
    options = ServerMigration(pool=both)
    assert DrivenServer(options=options).frames == [pooled(AWAY), pooled(THIRD, HOME6)]
    assert DrivenServer(options=options, family=6).frames == [pooled(AWAY6), pooled(THIRD, HOME6)]


@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_not_ready_without_connection_ids_for_the_new_path(protocol: MigrationProtocol) -> None:
    """RFC 9000 9.5: the new address needs one that was not used with another."""
    server = DrivenServer(
        options=TWO if protocol is POOL else ServerMigration(), connection_ids=False
    )
    server.imminent(protocol, destination(protocol))
    for frame in server.frames:
        server.acknowledged(frame)
    assert server.state == "PREPARING"
    server.connection_ids_available(for_both=True)
    assert server.state == "READY"
    server.connection_ids_available(for_both=True)
    assert server.events.count(MigrationReady(protocol)) == 1


# Section 6: every error; MIGRATION_DISABLED and HANDSHAKE_NOT_FINISHED are the connection's


@pytest.mark.parametrize("protocol", MigrationProtocol)
@pytest.mark.parametrize("negotiated", ["nothing", "off", "others"])
def test_protocol_not_negotiated(protocol: MigrationProtocol, negotiated: str) -> None:
    suite = {"nothing": MigrationProtocol(0), "off": None, "others": ALL_PROTOCOLS & ~protocol}
    server = DrivenServer(suite[negotiated])
    fails(server, ERROR.PROTOCOL_NOT_NEGOTIATED, protocol, destination(protocol))


@pytest.mark.parametrize("protocol", [MigrationProtocol(0), EXPLICIT | SYMMETRIC, ALL_PROTOCOLS])
def test_protocol_not_negotiated_a_set_is_no_protocol(protocol: MigrationProtocol) -> None:
    fails(DrivenServer(), ERROR.PROTOCOL_NOT_NEGOTIATED, protocol)


@pytest.mark.parametrize("second", MigrationProtocol)
@pytest.mark.parametrize("state", ["PREPARING", "READY", "SWITCHED"])
def test_migration_already_in_progress(state: str, second: MigrationProtocol) -> None:
    server = DrivenServer()
    server.imminent(EXPLICIT, AWAY)
    if state != "PREPARING":
        server.acknowledged(announced(AWAY))
    if state == "SWITCHED":
        server.switch()
    assert server.state == state
    fails(server, ERROR.MIGRATION_ALREADY_IN_PROGRESS, second, destination(second))


@pytest.mark.parametrize(
    ("address", "current", "family"),
    [
        pytest.param(None, HOME, 4, id="missing"),
        pytest.param(MigrationAddress(), HOME, 4, id="unknown"),
        pytest.param(AWAY6, HOME, 4, id="wrong-family-6"),
        pytest.param(AWAY, HOME6, 6, id="wrong-family-4"),
        pytest.param(HOME, HOME, 4, id="current"),
        pytest.param(HOME6, HOME6, 6, id="current-6"),
        pytest.param(MigrationAddress(HOME, AWAY6), HOME, 4, id="current-in-the-family-in-use"),
        pytest.param(Address.parse("224.0.0.1:4433"), HOME, 4, id="multicast"),
        pytest.param(Address.parse("192.0.2.2:0"), HOME, 4, id="port-0"),
        pytest.param(Address.parse("192.0.2.2:53"), HOME, 4, id="port-of-another-service"),
        pytest.param(Address.parse("127.0.0.1:4433"), HOME, 4, id="loopback"),
        pytest.param(Address.parse("10.0.0.1:4433"), HOME, 4, id="private"),
        pytest.param(Address.parse("224.0.0.1:4433"), None, 4, id="multicast-current-unknown"),
    ],
)
def test_invalid_address(
    address: Address | MigrationAddress | None, current: Address | None, family: int
) -> None:
    server = DrivenServer(family=family)
    fails(server, ERROR.INVALID_ADDRESS, EXPLICIT, address, current=current)


@pytest.mark.parametrize("protocol", [POOL, SYMMETRIC, SYNCHRONIZED])
def test_invalid_address_not_wanted(protocol: MigrationProtocol) -> None:
    server = DrivenServer(options=TWO if protocol is POOL else ServerMigration())
    fails(server, ERROR.INVALID_ADDRESS, protocol, AWAY)


def test_of_the_pool_only_what_clients_accept_is_sent() -> None:
    """They would close the connection: a server may listen at public and at private addresses."""
    near, far, never = (
        MigrationAddress.of(Address.parse(text))
        for text in ("10.0.0.1:4433", "8.0.0.1:4433", "224.0.0.1:4433")
    )
    options = ServerMigration(pool=(near, far, never))
    for current, sent in (
        ("10.0.0.9:4433", [near, far]),
        ("8.0.0.9:4433", [far]),
        ("0.0.0.0:4433", [near, far]),
        (None, [near, far]),
    ):
        machine = ServerMachine(options, ALL_PROTOCOLS, 4)
        at = None if current is None else Address.parse(current)
        assert machine.handshake_finished(at) == [
            Send(PoolMigrationAddressFrame(each)) for each in sent
        ]


def test_an_address_may_name_both_families() -> None:
    server = DrivenServer()
    server.imminent(EXPLICIT, BOTH)
    assert server.frames == [announced(AWAY, AWAY6)]


@pytest.mark.parametrize("protocol", [EXPLICIT, SYMMETRIC, SYNCHRONIZED])
def test_invalid_state_with_a_pool_in_place(protocol: MigrationProtocol) -> None:
    server = DrivenServer(options=TWO)
    fails(server, ERROR.INVALID_STATE, protocol, destination(protocol))


@pytest.mark.parametrize("acknowledged", [False, True])
@pytest.mark.parametrize("protocol", [SYMMETRIC, SYNCHRONIZED])
def test_invalid_state_after_an_aborted_explicit(
    protocol: MigrationProtocol, acknowledged: bool
) -> None:
    server = DrivenServer()
    server.imminent(EXPLICIT, AWAY)
    if acknowledged:
        server.acknowledged(announced(AWAY))
    server.abort()
    fails(server, ERROR.INVALID_STATE, protocol)
    fails(server, ERROR.INVALID_STATE, EXPLICIT, THIRD)


@pytest.mark.parametrize("protocol", [EXPLICIT, SYMMETRIC])
def test_invalid_state_after_an_aborted_synchronized(protocol: MigrationProtocol) -> None:
    server = DrivenServer()
    server.imminent(SYNCHRONIZED)
    server.abort()
    fails(server, ERROR.INVALID_STATE, protocol, destination(protocol))


def test_empty_pool() -> None:
    fails(DrivenServer(), ERROR.EMPTY_POOL_MIGRATION_ADDRESSES, POOL)


def test_empty_pool_in_the_family_in_use() -> None:
    fails(DrivenServer(options=TWO, family=6), ERROR.EMPTY_POOL_MIGRATION_ADDRESSES, POOL)


@pytest.mark.parametrize("acknowledged", [0, 1])
def test_pool_not_acknowledged(acknowledged: int) -> None:
    server = DrivenServer(options=TWO, acknowledge_pool=False)
    for frame in server.frames[:acknowledged]:
        server.acknowledged(frame)
    fails(server, ERROR.POOL_MIGRATION_ADDRESSES_NOT_ACKNOWLEDGED, POOL)
    for frame in server.frames[acknowledged:]:
        server.acknowledged(frame)
    server.imminent(POOL)
    assert server.state == "READY"


# The network switch at the wrong time


@pytest.mark.parametrize("protocol", [EXPLICIT, SYNCHRONIZED])
@pytest.mark.parametrize("state", ["IDLE", "PREPARING"])
def test_switch_before_ready(protocol: MigrationProtocol, state: str) -> None:
    """SERVER_MIGRATED before the acknowledgement is an internal error of the server."""
    server = DrivenServer()
    if state == "PREPARING":
        server.imminent(protocol, destination(protocol))
    with pytest.raises(MigrationError) as caught:
        server.switch()
    assert caught.value.code is ERROR.INVALID_STATE
    assert server.state == state


def test_second_switch() -> None:
    server = ready(EXPLICIT)
    server.switch()
    with pytest.raises(MigrationError) as caught:
        server.switch()
    assert caught.value.code is ERROR.MIGRATION_ALREADY_IN_PROGRESS


# Abort


@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_abort_and_again(protocol: MigrationProtocol) -> None:
    """What was announced and acknowledged need not be announced again."""
    server = ready(protocol)
    assert server.abort() == []
    assert server.state == "IDLE"
    assert server.imminent(protocol, destination(protocol)) == []
    assert server.events.count(MigrationReady(protocol)) == 2
    server.switch()
    server.response_acknowledged()
    assert server.events[-1] == MigrationCompleted(protocol, AWAY)


def test_abort_before_the_acknowledgement_and_again() -> None:
    server = DrivenServer()
    server.imminent(EXPLICIT, AWAY)
    server.abort()
    assert server.imminent(EXPLICIT, AWAY) == [Send(announced(AWAY))]
    server.acknowledged(announced(AWAY))
    assert server.state == "READY"


def test_abort_of_nothing() -> None:
    server = DrivenServer()
    assert server.abort() == []


def test_abort_after_the_switch() -> None:
    server = ready(EXPLICIT)
    server.switch()
    with pytest.raises(MigrationError) as caught:
        server.abort()
    assert caught.value.code is ERROR.MIGRATION_ALREADY_IN_PROGRESS
    assert server.state == "SWITCHED"


def test_late_acknowledgement_of_an_aborted_announcement() -> None:
    server = DrivenServer()
    server.imminent(EXPLICIT, AWAY)
    server.abort()
    server.acknowledged(announced(AWAY))
    assert server.events == [ServerMigrationAcknowledged(MigrationAddress.of(AWAY))]
    assert server.imminent(EXPLICIT, AWAY) == []
    assert server.state == "READY"


# Lost frames (section 3), and acknowledgements for state that is gone (section 8)


def test_lost_announcement_is_sent_again() -> None:
    server = DrivenServer()
    server.imminent(EXPLICIT, AWAY)
    assert server.lost(announced(AWAY)) == [Send(announced(AWAY))]
    server.acknowledged(announced(AWAY))
    assert server.lost(announced(AWAY)) == []


def test_lost_announcement_of_an_aborted_migration_is_not_sent_again() -> None:
    server = DrivenServer()
    server.imminent(EXPLICIT, AWAY)
    server.abort()
    assert server.lost(announced(AWAY)) == []


def test_lost_pool_address_is_sent_again() -> None:
    server = DrivenServer(options=TWO, acknowledge_pool=False)
    assert server.lost(pooled(AWAY)) == [Send(pooled(AWAY))]
    server.acknowledged(pooled(AWAY))
    assert server.lost(pooled(AWAY)) == []


@pytest.mark.parametrize("protocol", [SYMMETRIC, SYNCHRONIZED])
def test_lost_server_migrated_is_not_sent_again(protocol: MigrationProtocol) -> None:
    server = ready(protocol)
    server.switch()
    assert server.lost(MIGRATED) == []


@pytest.mark.parametrize("protocol", [SYMMETRIC, SYNCHRONIZED])
def test_server_migrated_acknowledged(protocol: MigrationProtocol) -> None:
    server = ready(protocol)
    server.switch()
    assert server.acknowledged(MIGRATED) == []
    assert server.events[-1] == ServerMigratedAcknowledged()


def test_duplicate_acknowledgements_raise_no_second_event() -> None:
    server = DrivenServer(options=TWO)
    events = list(server.events)
    server.acknowledged(pooled(AWAY))
    assert server.events == events
    server = ready(SYNCHRONIZED)
    events = list(server.events)
    server.acknowledged(UNKNOWN)
    assert server.events == events
    server.switch()
    server.acknowledged(MIGRATED)
    server.acknowledged(MIGRATED)
    assert server.events.count(ServerMigratedAcknowledged()) == 1


@pytest.mark.parametrize("frame", [announced(AWAY), UNKNOWN, MIGRATED], ids=str)
@pytest.mark.parametrize("fate", ["acknowledged", "lost"])
def test_acknowledgement_for_state_that_is_gone(frame: MigrationFrame, fate: str) -> None:
    protocol = SYNCHRONIZED if frame in (UNKNOWN, MIGRATED) else EXPLICIT
    server = ready(protocol)
    server.switch()
    server.response_acknowledged()
    events = list(server.events)
    handle = server.acknowledged if fate == "acknowledged" else server.lost
    assert handle(frame) == []
    assert server.events == events
    assert server.state == "IDLE"


def test_acknowledgement_of_an_announcement_that_was_never_made() -> None:
    server = DrivenServer()
    server.imminent(EXPLICIT, AWAY)
    assert server.acknowledged(announced(THIRD)) == []
    assert server.acknowledged(UNKNOWN) == []
    assert server.state == "PREPARING"
    assert server.events == []


@pytest.mark.parametrize("fate", ["acknowledged", "lost"])
@pytest.mark.parametrize("protocol", [EXPLICIT, SYNCHRONIZED])
def test_acknowledgement_of_the_same_words_in_a_former_migration(
    protocol: MigrationProtocol, fate: str
) -> None:
    """The client need not know of the new announcement only because it knew of the old one."""
    server = ready(protocol)
    former = server.frames[0]
    server.switch(AWAY)
    server.response_acknowledged()
    server.imminent(protocol, destination(protocol), current=THIRD)
    handle = server.acknowledged if fate == "acknowledged" else server.lost
    assert handle(former) == []
    assert server.state == "PREPARING"
    server.acknowledged(server.frames[-1])
    assert server.state == "READY"


# Going on elsewhere


def attempt(machine: ServerMachine, step: Callable[[ServerMachine], object]) -> object:
    """What comes of a step: its actions, or why it is not possible."""
    try:
        return step(machine)
    except MigrationError as exc:
        return exc.code


def draw_step(
    rng: random.Random, frames: list[MigrationFrame]
) -> Callable[[ServerMachine], list[Action]]:
    frame = rng.choice([*frames, MIGRATED])
    protocol = rng.choice(list(MigrationProtocol))
    target = MigrationAddress.of(AWAY) if protocol is EXPLICIT else None
    available = rng.random() < 0.8
    return rng.choice(
        [
            lambda machine: machine.imminent(protocol, target, HOME),
            lambda machine: machine.network_switch(AWAY),
            lambda machine: machine.abort(HOME),
            lambda machine: machine.frame_acknowledged(frame),
            lambda machine: machine.frame_acknowledged(frame),
            lambda machine: machine.frame_lost(frame),
            lambda machine: machine.connection_ids_available(for_both=available),
            lambda machine: machine.path_response_acknowledged(),
        ]
    )


@pytest.mark.parametrize("options", [ServerMigration(), TWO], ids=["no pool", "a pool"])
def test_another_machine_goes_on_as_this_one_would(options: ServerMigration) -> None:
    states = set()
    for seed in range(300):
        rng = random.Random(seed)
        machine = ServerMachine(options, ALL_PROTOCOLS, 4, can_withdraw=seed % 3 > 0)
        actions = machine.handshake_finished()
        frames: list[MigrationFrame] = []
        for _ in range(12):
            frames += [action.frame for action in actions if isinstance(action, Send)]
            other = ServerMachine(options, ALL_PROTOCOLS, 4, can_withdraw=seed % 3 > 0)
            other.resume(machine.export())
            states.add(machine.state)
            step = draw_step(rng, frames)
            result = attempt(machine, step)
            assert attempt(other, step) == result, f"seed {seed}"
            assert other.export() == machine.export(), f"seed {seed}"
            actions = result if isinstance(result, list) else []
    # With a pool nothing is announced that could be withdrawn.
    assert states == set(State) - ({State.WITHDRAWING, State.QUEUED} if options.pool else set())


# What a second layer, or the first time, would hide


def test_without_connection_ids_nothing_is_ready() -> None:
    machine = ServerMachine(ServerMigration(), ALL_PROTOCOLS, 4)
    machine.imminent(SYMMETRIC, None, HOME)
    assert machine.state is State.PREPARING


def test_where_the_server_is_need_not_be_known() -> None:
    server = DrivenServer()
    server.imminent(EXPLICIT, AWAY, current=None)
    assert server.frames == [announced(AWAY)]


def test_an_announcement_that_is_acknowledged_twice_is_reported_once() -> None:
    """It was sent twice, since the first acknowledgement was late."""
    server = DrivenServer(connection_ids=False)
    server.imminent(EXPLICIT, AWAY)
    server.acknowledged(server.frames[0])
    assert server.state == "PREPARING"
    server.acknowledged(server.frames[0])
    assert server.events == [ServerMigrationAcknowledged(MigrationAddress.of(AWAY))]


def test_an_announcement_that_was_acknowledged_is_not_sent_again() -> None:
    server = DrivenServer(connection_ids=False)
    server.imminent(EXPLICIT, AWAY)
    server.acknowledged(server.frames[0])
    assert server.lost(server.frames[0]) == []


def test_each_migration_has_its_own_word_and_its_own_end() -> None:
    server = DrivenServer(SYMMETRIC)
    for _ in range(3):
        server.imminent(SYMMETRIC)
        server.switch()
        server.acknowledged(MIGRATED)
        server.acknowledged(MIGRATED)
        assert server.machine.protocol is SYMMETRIC
        server.response_acknowledged()
        assert server.machine.protocol is None
    assert server.events.count(ServerMigratedAcknowledged()) == 3


@pytest.mark.parametrize("family", [4, 6])
def test_another_machine_goes_on_with_the_family(family: int) -> None:
    before = DrivenServer(family=family)
    after = ServerMachine(ServerMigration(), ALL_PROTOCOLS, 10 - family)
    after.resume(before.machine.export())
    assert after.obstacle(EXPLICIT, BOTH, None) is None
    assert after.export() == before.machine.export()
    wrong = MigrationAddress.of(AWAY6 if family == 4 else AWAY)
    assert after.obstacle(EXPLICIT, wrong, None) is ERROR.INVALID_ADDRESS
