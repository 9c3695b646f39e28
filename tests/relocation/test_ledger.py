"""An agent knows what the one before it has done."""

from __future__ import annotations

from pathlib import Path

import pytest

from quicferry.relocation.container.ledger import Ledger
from quicferry.relocation.errors import EngineError
from quicferry.relocation.link.messages import Ask, Commit, Committed, Message, NoCopy

FIRST, SECOND = bytes(16), bytes(range(16))


@pytest.mark.parametrize("message", [Ask(FIRST), Commit(FIRST)])
def test_what_was_committed_is_known_for_ever(tmp_path: Path, message: Message) -> None:
    ledger = Ledger(tmp_path / "agent")
    ledger.begin(FIRST, "site")
    ledger.committed(FIRST)
    after = Ledger(tmp_path / "agent")
    assert after.knows(FIRST)
    assert after.answer(message) == Committed(FIRST)
    assert not after.copies()


def test_a_copy_without_a_word_is_known_as_one(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "agent")
    ledger.begin(FIRST, "site")
    ledger.begin(SECOND, "shop")
    ledger.forget(SECOND)
    ledger.close()
    after = Ledger(tmp_path / "agent")
    assert after.copies() == {FIRST: "site"}
    assert not after.knows(FIRST)
    assert after.answer(Ask(FIRST)) == NoCopy(FIRST)


def test_a_copy_of_an_agent_that_lives_is_not_touched(tmp_path: Path) -> None:
    living = Ledger(tmp_path / "agent")
    living.begin(FIRST, "site")
    beside = Ledger(tmp_path / "agent")
    assert not beside.copies()
    living.close()
    assert beside.copies() == {FIRST: "site"}


def test_nobody_else_can_look(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "agent")
    ledger.begin(FIRST, "site")
    assert (tmp_path / "agent").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "agent").iterdir())


def test_a_place_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="cannot use"):
        Ledger(tmp_path / "file")
