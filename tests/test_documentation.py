"""What is generated into the documentation is up to date."""

from __future__ import annotations

from pathlib import Path

from quicferry.lab.machines import page

DOCS = Path(__file__).parent.parent / "docs"


def test_the_state_machines_are_drawn_from_the_code() -> None:
    drawn = (DOCS / "state-machines.md").read_text(encoding="utf-8")
    assert drawn == page(), "run `make docs`"
