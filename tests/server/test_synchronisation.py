from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicferry.protocol import MigrationErrorCode, MigrationProtocol
from quicferry.protocol.table import draw
from quicferry.server import Phase, Progress, RelocationError
from quicferry.server.synchronisation import (
    TABLE,
    Action,
    Assignment,
    Close,
    Plan,
    Prepare,
    Release,
    Resume,
    Synchronisation,
    Tell,
)

SYMMETRIC = Assignment(MigrationProtocol.SYMMETRIC)


def plan(names: str = "ab", waiting: str = "", unable: str = "") -> Plan:
    return Plan(
        dict.fromkeys(names + waiting, SYMMETRIC), frozenset(waiting), dict.fromkeys(unable, "why")
    )


def names(actions: Sequence[Action], kind: type[Action]) -> str:
    assert all(isinstance(action, kind) for action in actions)
    return "".join(action.connection_id for action in actions)


def test_all_ready_all_completed() -> None:
    sync = Synchronisation()
    assert sync.accepts_handshakes
    assert names(sync.imminent(plan()), Prepare) == "ab"
    assert (sync.phase, sync.accepts_handshakes, sync.unready) == (
        Phase.PREPARING,
        False,
        ("a", "b"),
    )
    sync.ready("a")
    assert (sync.phase, sync.unready) == (Phase.PREPARING, ("b",))
    sync.ready("b")
    assert sync.phase.name == "READY"
    assert names(sync.switch(), Tell) == "ab"
    assert (sync.phase, sync.accepts_handshakes) == (Phase.SWITCHED, True)
    sync.completed("b")
    assert sync.phase.name == "SWITCHED"
    sync.completed("a")
    assert (sync.phase, sync.those(Progress.COMPLETED)) == (Phase.SERVING, ("a", "b"))
    assert names(sync.imminent(plan("c")), Prepare) == "c"


def test_no_connections() -> None:
    sync = Synchronisation()
    assert sync.imminent(plan("")) == []
    assert sync.phase.name == "READY"
    assert sync.switch() == []
    assert sync.phase is Phase.SERVING


def test_those_that_cannot_migrate_are_served_until_the_switch() -> None:
    sync = Synchronisation()
    sync.imminent(plan("a", unable="xy"))
    sync.ready("a")
    assert sync.phase is Phase.READY
    sync.closed("y")
    actions = sync.switch()
    assert names(actions[:1], Close) == "x"
    assert names(actions[1:], Tell) == "a"
    assert sync.those(Progress.LEFT_BEHIND) == ("x",)


def test_closed_and_failed_connections_are_not_waited_for() -> None:
    sync = Synchronisation()
    sync.imminent(plan("abc"))
    sync.closed("a")
    sync.failed("b", MigrationErrorCode.INVALID_STATE)
    sync.ready("c")
    assert (sync.phase, sync.failures) == (Phase.READY, {"b": MigrationErrorCode.INVALID_STATE})
    assert names(sync.switch(), Tell) == "c"
    sync.closed("c")
    assert sync.phase is Phase.SERVING


def test_a_pool_that_is_not_acknowledged_is_waited_for() -> None:
    sync = Synchronisation()
    assert names(sync.imminent(plan("a", waiting="w")), Prepare) == "a"
    sync.ready("a")
    assert sync.unready == ("w",)
    assert names(sync.pool_acknowledged("w"), Prepare) == "w"
    assert sync.pool_acknowledged("w") == []
    sync.ready("w")
    assert sync.phase is Phase.READY


def test_nobody_waits_for_the_silent() -> None:
    sync = Synchronisation()
    sync.imminent(plan("ab", waiting="w", unable="x"))
    sync.ready("a")
    assert sync.silent("a") == []  # it has spoken
    sync.silent("b")
    assert sync.phase is Phase.PREPARING
    sync.silent("w")
    assert (sync.phase, sync.unready) == (Phase.READY, ())
    assert sync.those(Progress.SILENT) == ("b", "w")
    actions = sync.switch()
    assert names(actions[:3], Close) == "bwx"
    assert names(actions[3:], Tell) == "a"
    assert sync.those(Progress.LEFT_BEHIND) == ("b", "w", "x")


def test_one_that_speaks_again_comes_along() -> None:
    sync = Synchronisation()
    sync.imminent(plan("ab", waiting="w"))
    for name in "abw":
        sync.silent(name)
    assert sync.phase is Phase.READY
    sync.ready("a")
    assert names(sync.pool_acknowledged("w"), Prepare) == "w"
    assert sync.pool_acknowledged("a") == []
    sync.ready("w")
    assert sync.phase is Phase.READY
    actions = sync.switch()
    assert names(actions[:1], Close) == "b"
    assert names(actions[1:], Tell) == "aw"


def test_the_silent_go_on_after_an_abort() -> None:
    sync = Synchronisation()
    sync.imminent(plan("abc"))
    sync.silent("b")
    sync.closed("b")
    assert sync.those(Progress.CLOSED) == ("b",)
    sync.silent("c")
    assert names(sync.abort(), Resume) == "ac"


def test_readiness_that_comes_after_the_freeze_is_too_late() -> None:
    """What is frozen is on its way; nobody would ever have this one."""
    sync = Synchronisation()
    sync.imminent(plan("abc"))
    sync.ready("a")
    sync.silent("b")
    sync.deadline_passed()
    assert sync.freeze() == ("a",)
    sync.ready("b")
    sync.ready("c")
    actions = sync.depart()
    assert names(actions[:2], Close) == "bc"
    assert names(actions[2:], Release) == "a"


def test_deadline() -> None:
    sync = Synchronisation()
    sync.imminent(plan())
    sync.ready("a")
    with pytest.raises(RelocationError, match="NOT_READY"):
        sync.switch()
    sync.deadline_passed()
    assert (sync.phase, sync.unready) == (Phase.OVERDUE, ("b",))
    sync.ready("b")
    assert sync.phase is Phase.READY


def test_going_without_those_that_are_not_ready() -> None:
    sync = Synchronisation()
    sync.imminent(plan("ab", waiting="w"))
    sync.ready("a")
    sync.deadline_passed()
    actions = sync.switch()
    assert names(actions[:2], Close) == "bw"
    assert names(actions[2:], Tell) == "a"
    sync.ready("b")  # too late
    sync.completed("a")
    assert sync.phase is Phase.SERVING


@pytest.mark.parametrize("ready", ["", "a", "ab"])
def test_abort(ready: str) -> None:
    sync = Synchronisation()
    sync.imminent(plan("ab", waiting="w", unable="x"))
    for name in ready:
        sync.ready(name)
    assert names(sync.abort(), Resume) == "ab"
    assert (sync.phase, sync.progress, sync.accepts_handshakes) == (Phase.SERVING, {}, True)
    sync.ready("b")
    assert sync.pool_acknowledged("w") == []
    assert sync.phase is Phase.SERVING


def test_refusals_change_nothing() -> None:
    sync = Synchronisation()

    def refuses(code: str, *commands: str) -> None:
        for command in commands:
            before = (sync.phase, dict(sync.progress), sync.plan)
            with pytest.raises(RelocationError, match=code):
                sync.imminent(plan("z")) if command == "imminent" else getattr(sync, command)()
            assert (sync.phase, dict(sync.progress), sync.plan) == before

    refuses("NOT_PREPARED", "switch", "check_switch", "abort")
    sync.imminent(plan("ab"))
    refuses("MIGRATION_ALREADY_IN_PROGRESS", "imminent")
    refuses("NOT_READY", "switch", "check_switch")
    sync.ready("a")
    sync.ready("b")
    refuses("MIGRATION_ALREADY_IN_PROGRESS", "imminent")
    sync.switch()
    refuses("MIGRATION_ALREADY_IN_PROGRESS", "imminent")
    refuses("ALREADY_SWITCHED", "switch", "check_switch", "abort")


def test_a_second_migration_knows_nothing_of_the_first() -> None:
    sync = Synchronisation()
    sync.imminent(plan("ab"))
    sync.failed("a", MigrationErrorCode.INVALID_STATE)
    sync.abort()
    assert sync.failures == {"a": MigrationErrorCode.INVALID_STATE}
    sync.imminent(plan("b"))
    assert (sync.failures, sync.progress) == ({}, {"b": Progress.PREPARING})
    sync.ready("b")
    assert names(sync.switch(), Tell) == "b"


def test_whether_it_may_begin_can_be_asked_before() -> None:
    sync = Synchronisation()
    sync.check_imminent()
    assert sync.phase is Phase.SERVING
    sync.imminent(plan("a"))
    with pytest.raises(RelocationError, match="MIGRATION_ALREADY_IN_PROGRESS"):
        sync.check_imminent()


def test_what_comes_after_the_end_changes_nothing() -> None:
    sync = Synchronisation()
    sync.imminent(plan("ab"))
    sync.ready("a")
    sync.ready("b")
    sync.switch()
    sync.completed("a")
    sync.completed("b")
    assert sync.phase is Phase.SERVING
    for step in (sync.closed, sync.silent, sync.ready, sync.completed):
        step("a")
    sync.failed("b", MigrationErrorCode.INVALID_STATE)
    assert sync.those(Progress.COMPLETED) == ("a", "b")


# A hand-over


def frozen(ready: str = "ab", waiting: str = "w", unable: str = "x") -> Synchronisation:
    sync = Synchronisation()
    sync.imminent(plan(ready, waiting=waiting, unable=unable))
    for name in ready:
        sync.ready(name)
    sync.deadline_passed()
    assert sync.freeze() == tuple(ready)
    assert not sync.accepts_handshakes
    return sync


def test_what_departs_is_released_and_the_rest_is_closed() -> None:
    sync = frozen()
    actions = sync.depart()
    assert names(actions[:2], Close) == "wx"
    assert names(actions[2:], Release) == "ab"
    assert (sync.phase, sync.those(Progress.DEPARTED)) == (Phase.DEPARTED, ("a", "b"))
    assert sync.those(Progress.LEFT_BEHIND) == ("w", "x")
    assert not sync.accepts_handshakes


def test_what_was_frozen_goes_on_here() -> None:
    sync = frozen()
    assert names(sync.resume(), Resume) == "ab"
    assert (sync.phase, sync.progress, sync.accepts_handshakes) == (Phase.SERVING, {}, True)
    assert names(sync.imminent(plan("a")), Prepare) == "a"


def test_what_was_frozen_appears_elsewhere() -> None:
    sync = frozen()
    actions = sync.reappear()
    assert names(actions[:2], Close) == "wx"
    assert names(actions[2:], Tell) == "ab"
    assert (sync.phase, sync.accepts_handshakes) == (Phase.SWITCHED, True)
    sync.completed("a")
    sync.completed("b")
    assert sync.phase is Phase.SERVING


def test_nobody_prepares_any_more_once_the_rest_is_frozen() -> None:
    sync = frozen()
    assert sync.pool_acknowledged("w") == []
    assert sync.those(Progress.WAITING) == ("w",)


def test_only_who_waits_for_its_pool_is_asked_when_that_is_acknowledged() -> None:
    sync = Synchronisation()
    sync.imminent(plan("a", waiting="w"))
    sync.silent("a")
    assert sync.pool_acknowledged("a") == []


def test_connections_arrive() -> None:
    sync = Synchronisation()
    sync.expect()
    assert (sync.phase, sync.accepts_handshakes) == (Phase.ARRIVING, False)
    sync.arrive("ab")
    assert (sync.phase, sync.accepts_handshakes) == (Phase.SWITCHED, True)
    sync.completed("b")
    assert (sync.phase, sync.those(Progress.SWITCHED)) == (Phase.SWITCHED, ("a",))
    sync.closed("a")
    assert sync.phase is Phase.SERVING


def test_none_arrive() -> None:
    sync = Synchronisation()
    sync.expect()
    assert sync.arrive(()) == []
    assert sync.phase is Phase.SERVING


@pytest.mark.parametrize("command", ["imminent", "abort", "switch", "freeze", "expect", "arrive"])
def test_no_command_but_its_own_steps_while_it_is_handed_over(command: str) -> None:
    arguments = {"imminent": (plan("z"),), "arrive": ("z",)}.get(command, ())
    arriving = Synchronisation()
    arriving.expect()
    for sync in (frozen(), arriving):
        if sync is arriving and command == "arrive":
            continue
        before = (sync.phase, dict(sync.progress), sync.plan)
        with pytest.raises(RelocationError, match="BEING_HANDED_OVER"):
            getattr(sync, command)(*arguments)
        assert (sync.phase, dict(sync.progress), sync.plan) == before


@pytest.mark.parametrize("step", ["resume", "depart", "reappear", "arrive"])
def test_no_step_of_a_hand_over_without_one(step: str) -> None:
    arguments = ("z",) if step == "arrive" else ()
    sync = Synchronisation()
    for prepare in (lambda: None, lambda: sync.imminent(plan("a")), lambda: sync.ready("a")):
        prepare()
        before = (sync.phase, dict(sync.progress), sync.plan)
        with pytest.raises(RelocationError, match="BEING_HANDED_OVER"):
            getattr(sync, step)(*arguments)
        assert (sync.phase, dict(sync.progress), sync.plan) == before


INPUTS = ("imminent", "abort", "switch", "deadline_passed")
REPORTS = ("ready", "completed", "closed", "pool_acknowledged")
STEPS = st.one_of(
    st.tuples(st.sampled_from(INPUTS), st.none()),
    st.tuples(st.sampled_from(REPORTS), st.sampled_from("abcx")),
)


@given(st.lists(STEPS, max_size=40))
def test_whatever_happens(steps: list[tuple[str, str | None]]) -> None:
    """Every connection is told what it has to do exactly once, and the phase is never stuck."""
    sync = Synchronisation()
    told: dict[str, list[type[Action]]] = {}
    for step, name in steps:
        before = sync.phase
        try:
            if step == "imminent":
                actions = sync.imminent(plan("ab", waiting="c", unable="x"))
                told = {}
            else:
                actions = getattr(sync, step)(*([name] if name else []))
        except RelocationError:
            assert sync.phase is before
            continue
        for action in actions:
            told.setdefault(action.connection_id, []).append(type(action))
        alive = sync.those(Progress.PREPARING, Progress.WAITING)
        assert (sync.phase in (Phase.PREPARING, Phase.OVERDUE)) <= bool(alive)
        assert (sync.phase is Phase.SWITCHED) <= bool(sync.those(Progress.SWITCHED))
        assert (sync.phase is Phase.READY) <= (not alive)
    for sequence in told.values():
        assert sequence in (
            [Prepare],
            [Prepare, Tell],
            [Prepare, Resume],
            [Prepare, Close],
            [Close],
        )


def test_it_can_be_drawn() -> None:
    drawing = draw(TABLE, Phase.SERVING)
    assert "SERVING --> PREPARING: imminent / prepare" in drawing
    assert "SWITCHED --> SERVING: all completed" in drawing
