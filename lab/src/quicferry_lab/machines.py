"""Prints the migration state machines as a page of the documentation, from the code itself."""

from __future__ import annotations

import enum

from quicferry.protocol import client, server
from quicferry.protocol.table import ActionT, InputT, StateT, Table, draw
from quicferry.relocation.ownership import destination, source
from quicferry.server import synchronisation

_HEAD = """# The migration state machines

Made by `make docs` from the tables in `quicferry.protocol.client_table` and `.server_table`,
`quicferry.server.synchronisation`, `quicferry.relocation.ownership.source` and `.destination`; the
rules behind them stand at the head of these files. In the diagrams, what changes nothing is left
out; an arrow reads *input / actions*. An empty cell of a table means: ignored.
"""


def _name(member: enum.Enum) -> str:
    return member.name.lower().replace("_", " ")


def _section(title: str, table: Table[StateT, InputT, ActionT], initial: StateT) -> str:
    states = list(dict.fromkeys(state for state, _ in table))
    inputs = list(dict.fromkeys(received for _, received in table))
    states.sort(key=list(type(states[0])).index)
    inputs.sort(key=list(type(inputs[0])).index)
    lines = [f"## {title}", "", "```mermaid", draw(table, initial), "```", ""]
    lines.append("| input | " + " | ".join(_name(state) for state in states) + " |")
    lines.append("|---" * (len(states) + 1) + "|")
    for received in inputs:
        cells = []
        for state in states:
            step = table[state, received]
            words = [_name(action) for action in step.actions]
            if step.state is not state:
                words.append(f"→ *{_name(step.state)}*")
            cells.append(", ".join(words))
        lines.append(f"| {_name(received)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page() -> str:
    """Return the page in Markdown."""
    return "\n".join(
        [
            _HEAD,
            _section("The client", client.TABLE, client.State.IDLE),
            "",
            _section("The server, for each connection", server.TABLE, server.State.IDLE),
            "",
            _section(
                "The server, for all connections together",
                synchronisation.TABLE,
                synchronisation.Phase.SERVING,
            ),
            "",
            _section("The source of a handover", source.TABLE, source.State.OFFERED),
            "",
            _section("The destination of a handover", destination.TABLE, destination.State.OFFERED),
            "",
        ]
    )


if __name__ == "__main__":
    print(page(), end="")
