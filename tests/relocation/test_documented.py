"""The reference says what there is: the messages, the management commands, the errors."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from quicferry.protocol import Address, MigrationErrorCode
from quicferry.relocation import HandoverCommands, Outcome, RelocationReport, Step
from quicferry.relocation.handover.management import NOT_WAITING, TOO_LATE
from quicferry.relocation.link.messages import KINDS
from quicferry.server.errors import RelocationErrorCode
from quicferry.server.synchronisation import Phase

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"


def sections(page: str) -> dict[str, str]:
    """Return what stands under each heading of the third level."""
    text = (REFERENCE / page).read_text(encoding="utf-8")
    found = re.findall(r"^### `?(\w+)`?\n(.*?)(?=^##|\Z)", text, re.DOTALL | re.MULTILINE)
    return dict(found)


def rows(section: str, heading: str) -> list[str]:
    """Return the names in the rows of the table with this heading."""
    table = re.search(rf"^\| {heading} \|.*?(?=\n\n|\Z)", section, re.DOTALL | re.MULTILINE)
    lines = table[0].splitlines()[2:] if table else []
    return [name for line in lines for name in re.findall(r"`(\w+)`", line.split("|")[1])]


def test_every_message_is_documented() -> None:
    page = sections("handover.md")
    assert {name: rows(section, "field") for name, section in page.items()} == {
        kind.__name__: [item.name for item in dataclasses.fields(kind)] for kind in KINDS.values()
    }
    assert {name: section.split(".")[0].strip() for name, section in page.items()} == {
        kind.__name__: f"0x{number:02x}" for number, kind in KINDS.items()
    }


def test_every_management_command_is_documented() -> None:
    server: Any = None
    commands = HandoverCommands(server, "app:app").commands
    documented = {
        name: set(rows(section, "field")) for name, section in sections("management.md").items()
    }
    assert documented == {name: set(command.fields) for name, command in commands.items()}


def test_the_report_is_documented() -> None:
    somewhere = Address.parse("192.0.2.1:4433")
    report = RelocationReport("handover", Outcome.COMMITTED, somewhere, somewhere, {})
    section = sections("management.md")["handover"]
    assert rows(section, "result") == list(report.encode())
    words = set(re.findall(r"`([\w-]+)`", section))
    assert words >= {each.value for each in (*Step, *Outcome)}


def test_every_phase_is_documented() -> None:
    assert {f"`{phase.value}`" for phase in Phase} <= set(
        re.findall(r"`\w+`", sections("management.md")["status"])
    )


def test_every_error_is_documented() -> None:
    page = (REFERENCE / "management.md").read_text(encoding="utf-8")
    documented = set(rows(page.partition("\n## Errors\n")[2], "code"))
    codes = {code.name for code in (*RelocationErrorCode, *MigrationErrorCode)}
    assert documented >= codes | {NOT_WAITING, TOO_LATE}
