"""The machines of a handover: their tables, and what they say of themselves."""

from __future__ import annotations

import contextlib
import enum
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from quicferry.protocol.table import Table
from quicferry.relocation.errors import HandoverError
from quicferry.relocation.link.messages import (
    MAX_TEXT,
    Abort,
    Accepted,
    Ask,
    Carried,
    Carry,
    CarryImage,
    CarryState,
    Commit,
    Committed,
    ContainerOffer,
    Followed,
    Held,
    Message,
    NoCopy,
    Offer,
    Received,
    Refused,
    Settled,
    Switched,
    Thawed,
)
from quicferry.relocation.ownership import destination, source
from quicferry.relocation.ownership.destination import HOLD, DestinationMachine
from quicferry.relocation.ownership.history import MOST_REMEMBERED, History
from quicferry.relocation.ownership.source import LEASE, SourceMachine

ID, OTHER = bytes(16), bytes(15) + b"\1"
OFFER = Offer(ID, "1.0", 1, "shop", "192.0.2.1:4433", 2, True, 1, 8)
SD, DD = source.Do, destination.Do
TABLES = pytest.mark.parametrize("machine", [source, destination])


def carry(name: str) -> Carry:
    return Carry(ID, name, b"", b"")


# Tables


@TABLES
def test_no_state_is_unreachable(machine: Any) -> None:
    table: Table[Any, Any, Any] = machine.TABLE
    reached: set[enum.Enum] = set()
    new: set[Any] = {machine.State.OFFERED}
    while new:
        reached |= new
        new = {table[s, i].state for s in new for i in machine.Input} - reached
    assert reached == set(machine.State)


@TABLES
def test_every_action_is_used(machine: Any) -> None:
    used = {action for step in machine.TABLE.values() for action in step.actions}
    assert used == set(machine.Do)


def test_a_refused_step_changes_nothing() -> None:
    for (state, _), step in source.TABLE.items():
        if SD.FAIL in step.actions:
            assert step.actions == (SD.FAIL,)
            assert step.state is state


def test_the_connections_get_exactly_one_fate() -> None:
    """At the source: on the way to an end there is one of these actions, and none after it."""
    fates = {SD.CALL_OFF, SD.RESUME, SD.DEPART, SD.DROP}
    ends = {source.State.BACK, source.State.GONE, source.State.GIVEN_UP}
    for (state, _), step in source.TABLE.items():
        decided = step.state in ends and state not in ends
        assert len(fates & set(step.actions)) == (1 if decided else 0)
        assert state not in ends or step.state is state


def test_what_lives_is_never_discarded() -> None:
    owning = {destination.State.OWNED, destination.State.SETTLED}
    for (state, _), step in destination.TABLE.items():
        assert (DD.ACTIVATE in step.actions) == (step.state in owning and state not in owning)
        assert state not in owning or step.state in owning
        if state is destination.State.DISCARDED:
            assert step.state is state


def test_the_destination_waits_longer() -> None:
    assert HOLD > LEASE


# The source


def at_source(*inputs: Callable[[SourceMachine], Any]) -> SourceMachine:
    machine = SourceMachine(ID)
    for give in inputs:
        give(machine)
    return machine


def accepted(machine: SourceMachine) -> None:
    assert machine.receive(Accepted(ID, "192.0.2.1:4433")) == []


def frozen(machine: SourceMachine) -> None:
    accepted(machine)
    assert machine.freeze() == [SD.START_LEASE]


def switched(machine: SourceMachine) -> None:
    frozen(machine)
    for message in (Received(ID), Thawed(ID), Switched(ID)):
        assert machine.receive(message) == []


def in_doubt(machine: SourceMachine) -> None:
    switched(machine)
    assert machine.commit() == [Commit(ID)]


def gone(machine: SourceMachine) -> None:
    in_doubt(machine)
    assert machine.receive(Committed(ID)) == [SD.DEPART, Settled(ID)]


def test_a_handover() -> None:
    machine = at_source(gone)
    assert machine.state is source.State.GONE
    assert machine.has_ended
    assert machine.reason == ""
    assert machine.receive(Followed(ID, 1.0, 2, (), ())) == []


@pytest.mark.parametrize("before", [accepted, frozen, switched])
def test_before_the_commitment_everything_ends_well(
    before: Callable[[SourceMachine], None],
) -> None:
    go_on = SD.CALL_OFF if before is accepted else SD.RESUME
    machine = at_source(before)
    assert machine.may_abort
    assert machine.abort("changed my mind") == [go_on, Abort(ID, "changed my mind")]
    assert machine.state is source.State.BACK
    assert machine.reason == "changed my mind"
    assert not machine.may_abort
    assert machine.abort("again") == []
    assert machine.link_lost("gone") == []
    assert machine.link_back() == [Abort(ID, "changed my mind")]

    machine = at_source(before)
    assert machine.receive(Refused(ID, "no room")) == [go_on]
    assert machine.reason == "the destination refused: no room"
    machine = at_source(before)
    assert machine.link_lost("cut") == [go_on]
    assert machine.reason == "cut"


def test_the_lease_bounds_silence() -> None:
    assert at_source(accepted).lease_over() == []
    machine = at_source(switched)
    assert machine.lease_over() == [SD.RESUME, Abort(ID, "the handover took too long")]
    machine = at_source(in_doubt)
    assert machine.lease_over() == [SD.DROP]
    assert machine.state is source.State.GIVEN_UP
    assert machine.reason
    for message in (Committed(ID), NoCopy(ID), Refused(ID, ""), Held(ID)):
        assert machine.receive(message) == []
    assert machine.link_back() == []


def test_in_doubt_it_asks() -> None:
    machine = at_source(in_doubt)
    assert not machine.may_abort
    assert machine.abort("too late") == []
    for _ in range(2):
        assert machine.link_lost("cut") == [SD.RECONNECT]
        assert machine.link_back() == [Ask(ID)]
    assert machine.receive(Held(ID)) == [Commit(ID)]
    assert machine.receive(Committed(ID)) == [SD.DEPART, Settled(ID)]
    assert machine.receive(Committed(ID)) == []


@pytest.mark.parametrize("answer", [NoCopy(ID), Refused(ID, "stopped")])
def test_a_no_is_final(answer: Message) -> None:
    machine = at_source(in_doubt)
    assert machine.receive(answer) == [SD.RESUME]
    assert machine.state is source.State.BACK
    assert machine.receive(Committed(ID)) == []


def test_the_destination_hears_that_the_source_has_gone() -> None:
    machine = at_source(gone)
    assert machine.link_lost("cut") == [SD.RECONNECT]
    assert machine.link_back() == [Settled(ID)]


def test_other_handovers_do_not_matter() -> None:
    machine = at_source(in_doubt)
    assert machine.receive(NoCopy(OTHER)) == []
    assert machine.state is source.State.IN_DOUBT


def test_steps_out_of_order_are_refused() -> None:
    with pytest.raises(HandoverError, match=r"freeze is not possible .* offered"):
        SourceMachine(ID).freeze()
    with pytest.raises(HandoverError, match=r"commit is not possible .* frozen"):
        at_source(frozen).commit()
    machine = at_source(frozen)
    machine.receive(Refused(ID, "no room"))
    with pytest.raises(HandoverError, match="has ended: the destination refused: no room"):
        machine.commit()


def test_a_reason_of_any_length_fits() -> None:
    machine = at_source(frozen)
    machine.abort("x" * 5000)
    assert len(machine.reason) == MAX_TEXT


# The destination


def at_destination(
    *inputs: Message | Callable[[DestinationMachine], Any], history: History | None = None
) -> DestinationMachine:
    machine = DestinationMachine(OFFER, history or History())
    for give in inputs:
        if isinstance(give, Message):
            machine.receive(give)
        else:
            give(machine)
    return machine


def ready(machine: DestinationMachine) -> None:
    assert machine.accept("192.0.2.1:4433") == [Accepted(ID, "192.0.2.1:4433")]


def held(machine: DestinationMachine) -> None:
    ready(machine)
    assert machine.receive(carry("a")) == [DD.START_LEASE, DD.TAKE]
    assert machine.receive(CarryState(ID, b"")) == [DD.TAKE]
    assert machine.receive(carry("b")) == [DD.TAKE]
    assert machine.receive(Carried(ID, 2)) == [Received(ID), DD.IMPORT]
    assert machine.thawed() == [Thawed(ID), DD.SWITCH]
    assert machine.switched() == [Switched(ID)]


def test_a_handover_arrives() -> None:
    history = History()
    machine = at_destination(held, history=history)
    assert not machine.owns
    assert machine.receive(Commit(ID)) == [DD.ACTIVATE, Committed(ID)]
    assert machine.owns
    assert not machine.has_ended
    assert machine.receive(Settled(ID)) == [DD.LIFT]
    assert machine.has_ended
    assert history.answer(Ask(ID)) == Committed(ID)


def test_nothing_is_taken_twice() -> None:
    machine = at_destination(ready, carry("a"), CarryState(ID, b""))
    assert machine.receive(carry("a")) == []
    assert machine.receive(CarryState(ID, b"")) == []
    assert machine.receive(Carried(ID, 1)) == [Received(ID), DD.IMPORT]
    assert machine.receive(Carried(ID, 1)) == []
    assert machine.receive(carry("b")) == []


@pytest.mark.parametrize(
    "given",
    [
        (carry("a"), CarryState(ID, b""), Carried(ID, 2)),
        (carry("a"), CarryState(ID, b""), Carried(ID, 0)),
        (carry("a"), Carried(ID, 1)),
        (Carried(ID, 0),),
    ],
)
def test_a_part_is_refused(given: tuple[Message, ...]) -> None:
    machine = at_destination(ready, *given[:-1])
    discard, refusal = machine.receive(given[-1])
    assert discard is DD.DISCARD
    assert isinstance(refusal, Refused)
    assert machine.state is destination.State.DISCARDED


def test_a_server_without_connections_is_taken() -> None:
    machine = at_destination(ready, CarryState(ID, b""))
    assert machine.receive(Carried(ID, 0)) == [Received(ID), DD.IMPORT]


@pytest.mark.parametrize("commit", [Commit(ID), Ask(ID)])
def test_what_comes_too_early_gets_a_no(commit: Message) -> None:
    machine = at_destination(ready, carry("a"))
    assert machine.receive(commit) == [DD.DISCARD, NoCopy(ID)]


def test_a_lost_link_means_nothing_once_it_may_be_committed() -> None:
    machine = at_destination(ready, carry("a"))
    assert machine.link_lost() == [DD.DISCARD]
    machine = at_destination(held)
    assert machine.link_lost() == []
    assert machine.receive(Ask(ID)) == [Held(ID)]
    machine.receive(Commit(ID))
    assert machine.link_lost() == []
    assert machine.receive(Ask(ID)) == [Committed(ID)]
    assert machine.receive(Commit(ID)) == [Committed(ID)]


def test_the_lease_of_the_destination() -> None:
    machine = at_destination(held)
    assert machine.lease_over() == [DD.DISCARD]
    assert machine.receive(Commit(ID)) == [NoCopy(ID)]
    machine = at_destination(held, Commit(ID))
    assert machine.lease_over() == [DD.LIFT]
    assert machine.receive(Settled(ID)) == []


def test_a_failure_discards_until_the_copies_live() -> None:
    machine = at_destination(held)
    assert machine.may_abort
    assert machine.fail("stopped") == [DD.DISCARD, Refused(ID, "stopped")]
    assert machine.reason == "stopped"
    assert machine.switched() == []
    assert machine.receive(Commit(ID)) == [NoCopy(ID)]
    machine = at_destination(held, Commit(ID))
    assert not machine.may_abort
    assert machine.fail("stopped") == []
    assert machine.receive(Abort(ID, "")) == []


def test_the_reason_of_the_source_is_known() -> None:
    machine = at_destination(held, Abort(ID, "no time"))
    assert machine.state is destination.State.DISCARDED
    assert machine.reason == "the source gave up: no time"


# History


def test_nothing_begins_again() -> None:
    history = History()
    at_destination(held, Commit(ID), history=history)
    other = Offer(OTHER, *list(vars(OFFER).values())[1:])
    DestinationMachine(other, history).fail("no room")
    assert history.knows(ID)
    assert history.knows(OTHER)
    for make in (Ask, Commit):
        assert history.answer(make(ID)) == Committed(ID)
        assert history.answer(make(OTHER)) == NoCopy(OTHER)
    assert history.answer(OFFER) == Committed(ID)
    assert history.answer(other) == NoCopy(OTHER)
    assert history.answer(Settled(ID)) is None


def test_a_no_to_what_was_never_known_is_kept() -> None:
    history = History()
    assert not history.knows(ID)
    assert history.answer(Ask(ID)) == NoCopy(ID)
    assert history.knows(ID)
    assert history.answer(carry("a")) is None


def test_memory_is_bounded_and_questions_drive_nothing_out_that_lives() -> None:
    history = History()
    history.committed(ID)
    for number in range(2 * MOST_REMEMBERED):
        history.answer(Ask(b"\1" + number.to_bytes(15, "big")))
    assert history.answer(Ask(ID)) == Committed(ID)
    known = [history.knows(b"\1" + n.to_bytes(15, "big")) for n in range(2 * MOST_REMEMBERED)]
    assert known == [False] * MOST_REMEMBERED + [True] * MOST_REMEMBERED


def test_what_was_discarded_is_not_driven_out_by_what_costs_nothing() -> None:
    """Neither by questions about nothing, nor by offers that are refused at once."""
    history = History()
    known = DestinationMachine(OFFER, history)
    known.accept("192.0.2.1:4433")
    known.fail("no room")
    for number in range(2 * MOST_REMEMBERED):
        id_ = b"\1" + number.to_bytes(15, "big")
        history.answer(Ask(id_))
        other = Offer(b"\2" + id_[1:], *list(vars(OFFER).values())[1:])
        DestinationMachine(other, history).fail("no")
    assert history.knows(ID)
    assert history.answer(OFFER) == NoCopy(ID)


# The pieces of a container

CONTAINER = ContainerOffer(
    *(ID, "1.0", "cold", "runc", "1.1", "shop", "sha256:0", "192.0.2.1:4433", 1, 0, 60.0, "none"),
    *(b"", b""),
)


def receiving(*numbers: int) -> tuple[DestinationMachine, list[bool]]:
    """Return a destination that gets pieces with these numbers, and which of them it takes."""
    machine = DestinationMachine(CONTAINER, History())
    machine.accept("192.0.2.1:4433")
    taken = [DD.TAKE in machine.receive(CarryImage(ID, n, "pages-1.img", b"x")) for n in numbers]
    return machine, taken


@pytest.mark.parametrize(
    ("numbers", "taken"),
    [
        ((0, 1, 2), [True, True, True]),
        ((0, 0, 1, 0, 1, 2), [True, False, True, False, False, True]),
        ((1, 0, 2, 1, 2), [False, True, False, True, True]),
    ],
)
def test_each_piece_is_taken_once_and_in_its_place(
    numbers: tuple[int, ...], taken: list[bool]
) -> None:
    """They are appended to images, so one that comes again or too early would spoil them."""
    machine, found = receiving(*numbers)
    assert found == taken
    assert DD.IMPORT in machine.receive(Carried(ID, 3))


@pytest.mark.parametrize(("numbers", "announced"), [((0, 2), 2), ((0, 2), 3), ((1,), 1), ((0,), 0)])
def test_pieces_that_are_missing_are_noticed(numbers: tuple[int, ...], announced: int) -> None:
    machine, _ = receiving(*numbers)
    answer = machine.receive(Carried(ID, announced))
    assert answer == [DD.DISCARD, Refused(ID, "not all that was sent has arrived")]


def test_no_piece_is_taken_before_the_offer_is_accepted_or_after_all_have_come() -> None:
    machine = DestinationMachine(CONTAINER, History())
    assert machine.receive(CarryImage(ID, 0, "a", b"x")) == []
    machine.accept("192.0.2.1:4433")
    assert DD.TAKE in machine.receive(CarryImage(ID, 0, "a", b"x"))
    assert DD.IMPORT in machine.receive(Carried(ID, 1))
    assert machine.receive(CarryImage(ID, 1, "a", b"x")) == []


# Any sequence


@pytest.mark.parametrize("seed", range(200))
def test_any_sequence_of_inputs_ends_once(seed: int) -> None:
    """In any order: one fate for the connections at most, and nothing said that is not so."""
    rng = random.Random(f"machines {seed}")
    departing, arriving = SourceMachine(ID), DestinationMachine(OFFER, History())
    answers = [Accepted(ID, "a"), Refused(ID, ""), Switched(ID), Committed(ID), Held(ID)]
    orders = [OFFER, carry("a"), CarryState(ID, b""), Carried(ID, 1), Commit(ID), Ask(ID)]
    done: list[Any] = []
    for _ in range(60):
        with contextlib.suppress(HandoverError):  # a step out of order
            step: Callable[[], list[Any]] = rng.choice(
                [
                    lambda: departing.receive(rng.choice([*answers, NoCopy(ID)])),
                    lambda: departing.receive(rng.choice([answers[0], answers[2]])),
                    departing.freeze,
                    departing.commit,
                    lambda: departing.abort("") if rng.random() < 0.1 else [],
                    lambda: departing.link_lost("") if rng.random() < 0.1 else [],
                    departing.link_back,
                    lambda: departing.lease_over() if rng.random() < 0.1 else [],
                ]
            )
            done += step()
        received = rng.choice([*orders, Settled(ID)])
        choices: list[Callable[[], list[Any]]] = [
            partial(arriving.receive, received),
            lambda: arriving.receive(Abort(ID, "")) if rng.random() < 0.1 else [],
            lambda: arriving.accept("a"),
            arriving.thawed,
            arriving.switched,
            lambda: arriving.fail("") if rng.random() < 0.1 else [],
            lambda: arriving.link_lost() if rng.random() < 0.1 else [],
            lambda: arriving.lease_over() if rng.random() < 0.1 else [],
        ]
        done += rng.choice(choices)()
    for fates in ({SD.CALL_OFF, SD.RESUME, SD.DEPART, SD.DROP}, {DD.ACTIVATE, DD.DISCARD}):
        assert sum(action in fates for action in done) <= 1
    assert departing.has_ended == (departing.state.name in ("BACK", "GONE", "GIVEN_UP"))
    assert arriving.owns == (DD.ACTIVATE in done)
    assert (Committed(ID) in done) == arriving.owns
    assert not (arriving.owns and NoCopy(ID) in done)
    assert not (arriving.owns and any(isinstance(action, Refused) for action in done))
