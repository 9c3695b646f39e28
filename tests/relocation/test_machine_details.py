"""The machine of the destination: what the layers around it would hide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from quicferry.relocation.link.messages import (
    Abort,
    Accepted,
    Ask,
    Carried,
    CarryImage,
    CarryState,
    Commit,
    Committed,
    ContainerOffer,
    Message,
    Offer,
    Received,
    Refused,
    Settled,
)
from quicferry.relocation.ownership.destination import DestinationMachine, Do, State
from quicferry.relocation.ownership.history import History

ID, OTHER = bytes(16), bytes(15) + b"\1"
OFFER = Offer(ID, "1.0", 1, "shop", "192.0.2.1:4433", 0, False, 1, 8)
CONTAINER = ContainerOffer(
    ID,
    quicferry_version="1.0",
    technique="cold",
    engine="runc",
    engine_version="1.1",
    container="shop",
    image="",
    address="192.0.2.1:4433",
    connections=1,
    memory=1,
    lease=10,
    compression="zstd",
    page_certificate=b"",
    page_key=b"",
)


def image(number: int) -> CarryImage:
    return CarryImage(ID, number, "pages-1.img", b"")


def test_the_source_learns_where_the_server_will_be() -> None:
    """That need not be where it was offered to, if the port was left open."""
    machine = DestinationMachine(OFFER, History())
    assert machine.accept("192.0.2.9:4434") == [Accepted(ID, "192.0.2.9:4434")]


@pytest.mark.parametrize(
    "message", [Abort(OTHER, "no"), Commit(OTHER), Ask(OTHER), Carried(OTHER, 0)]
)
def test_another_handover_is_none_of_its_business(message: Message) -> None:
    machine = DestinationMachine(OFFER, History())
    machine.accept("192.0.2.1:4433")
    assert machine.receive(message) == []
    assert machine.state is State.ACCEPTED


def test_pieces_of_images_are_taken_in_their_order_and_once() -> None:
    """They are appended to files, so another order makes another image."""
    machine = DestinationMachine(CONTAINER, History())
    assert machine.receive(image(0)) == [], "it has not been accepted"
    machine.accept("192.0.2.1:4433")
    assert machine.receive(image(1)) == []
    assert Do.TAKE in machine.receive(image(0))
    for number in (0, 2, 3):
        assert machine.receive(image(number)) == []
    assert machine.receive(image(1)) == [Do.TAKE]
    assert machine.receive(image(2)) == [Do.TAKE]
    assert machine.receive(Carried(ID, 3)) == [Received(ID), Do.IMPORT]
    assert machine.receive(image(3)) == []


@pytest.mark.parametrize("pieces", [0, 1, 3])
def test_pieces_that_are_missing_are_noticed(pieces: int) -> None:
    machine = DestinationMachine(CONTAINER, History())
    machine.accept("192.0.2.1:4433")
    for number in range(2):
        machine.receive(image(number))
    discard, refused = machine.receive(Carried(ID, pieces))
    assert discard is Do.DISCARD
    assert isinstance(refused, Refused)


def test_what_is_held_and_what_is_owned() -> None:
    history = History()
    machine = DestinationMachine(OFFER, history)
    seen = [(machine.holds, machine.owns)]
    steps: list[Callable[[], Any]] = [
        lambda: machine.accept("192.0.2.1:4433"),
        lambda: machine.receive(Carried(ID, 0)),
        machine.thawed,
        machine.switched,
    ]
    for give in steps:
        assert not history.knows(ID)
        assert machine.awaits_freeze == (len(seen) < 3)
        give()
        seen.append((machine.holds, machine.owns))
    assert seen == [(False, False)] * 4 + [(True, False)]
    assert not history.knows(ID), "it may still be discarded"
    machine.receive(Commit(ID))
    assert (machine.holds, machine.owns) == (True, True)
    assert history.answer(Ask(ID)) == Committed(ID)
    machine.receive(Settled(ID))
    assert (machine.holds, machine.owns) == (True, True)
    discarded = DestinationMachine(OFFER, History())
    discarded.fail("no room")
    assert (discarded.holds, discarded.owns) == (False, False)


def test_state_that_was_not_announced_is_not_taken() -> None:
    machine = DestinationMachine(OFFER, History())
    machine.accept("192.0.2.1:4433")
    assert machine.receive(CarryState(ID, b"")) == []
