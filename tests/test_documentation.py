"""What is generated into the documentation is up to date, and what it refers to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from quicferry_lab.machines import page

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
TESTS = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
LINKS = re.compile(r"\]\(([^)#:\s]+)(?:#[\w-]+)?\)")


def test_the_state_machines_are_drawn_from_the_code() -> None:
    drawn = (DOCS / "state-machines.md").read_text(encoding="utf-8")
    assert drawn == page(), "run `make docs`"


@pytest.mark.parametrize("name", PAGES, ids=str)
def test_links_lead_somewhere(name: Path) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    missing = [to for to in LINKS.findall(text) if not (ROOT / name.parent / to).exists()]
    assert missing == []


def test_what_is_promised_names_a_test_that_there_is() -> None:
    named = TESTS.findall((DOCS / "topics" / "security.md").read_text(encoding="utf-8"))
    assert len(named) > 30
    for path, test in named:
        code = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {test}\(", code, re.MULTILINE), f"{path}::{test}"
