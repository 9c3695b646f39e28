from __future__ import annotations

import runpy
from pathlib import Path

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def test_the_reference_is_what_help_prints() -> None:
    made = runpy.run_path(str(REFERENCE / "make_cli.py"))["reference"]()
    assert (REFERENCE / "cli.md").read_text(encoding="utf-8") == made, (
        "the command line has changed: run python docs/reference/make_cli.py"
    )
