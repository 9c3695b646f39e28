"""The transition tables: complete, without dead parts, and drawn as they are."""

from __future__ import annotations

import enum
from typing import Any

import pytest

from quicferry.protocol import client, server
from quicferry.protocol.table import Step, Table, draw

AnyTable = Table[Any, Any, Any]

TABLES = pytest.mark.parametrize(
    ("table", "states", "inputs", "actions"),
    [
        pytest.param(client.TABLE, client.State, client.Input, client.Do, id="client"),
        pytest.param(server.TABLE, server.State, server.Input, server.Do, id="server"),
    ],
)


class State(enum.Enum):
    ON = enum.auto()
    OFF = enum.auto()


class Input(enum.Enum):
    PRESS = enum.auto()
    LOOK_AT = enum.auto()


class Do(enum.Enum):
    SHINE_NOW = enum.auto()


ROWS: list[tuple[tuple[State, ...], tuple[Input, ...], State | None, tuple[Do, ...]]] = [
    ((State.OFF,), (Input.PRESS,), State.ON, (Do.SHINE_NOW,)),
    ((State.ON,), (Input.PRESS,), State.OFF, ()),
    (tuple(State), (Input.LOOK_AT,), None, ()),
]


@TABLES
def test_every_cell_is_there(
    table: AnyTable, states: type[enum.Enum], inputs: type[enum.Enum], actions: type[enum.Enum]
) -> None:
    assert set(table) == {(state, received) for state in states for received in inputs}
    assert len(table) == len(states) * len(inputs)


@TABLES
def test_no_state_is_unreachable(
    table: AnyTable, states: type[enum.Enum], inputs: type[enum.Enum], actions: type[enum.Enum]
) -> None:
    (initial,) = (state for state in states if state.name == "IDLE")
    reached, new = {initial}, {initial}
    while new:
        new = {table[state, received].state for state in new for received in inputs} - reached
        reached |= new
    assert reached == set(states)


@TABLES
def test_every_state_leads_back_to_idle(
    table: AnyTable, states: type[enum.Enum], inputs: type[enum.Enum], actions: type[enum.Enum]
) -> None:
    leads = {state for state in states if state.name == "IDLE"}
    while more := {state for (state, _), step in table.items() if step.state in leads} - leads:
        leads |= more
    assert leads == set(states)


@TABLES
def test_every_action_is_used(
    table: AnyTable, states: type[enum.Enum], inputs: type[enum.Enum], actions: type[enum.Enum]
) -> None:
    assert {action for step in table.values() for action in step.actions} == set(actions)


@TABLES
def test_errors_change_no_state(
    table: AnyTable, states: type[enum.Enum], inputs: type[enum.Enum], actions: type[enum.Enum]
) -> None:
    for (state, _), step in table.items():
        names = [action.name for action in step.actions]
        if any(name == "VIOLATION" or name.startswith("FAIL") for name in names):
            assert len(names) == 1
            assert step.state is state


@TABLES
def test_drawing_shows_each_change_and_nothing_else(
    table: AnyTable, states: type[enum.Enum], inputs: type[enum.Enum], actions: type[enum.Enum]
) -> None:
    (initial,) = (state for state in states if state.name == "IDLE")
    first, begin, *lines = draw(table, initial).splitlines()
    assert first == "stateDiagram-v2"
    assert begin.split() == ["[*]", "-->", "IDLE"]
    drawn = set()
    for line in lines:
        edge, _, label = line.strip().partition(": ")
        source, _, target = edge.partition(" --> ")
        causes, _, effects = label.partition(" / ")
        for cause in causes.split(" or "):
            drawn.add((source, cause, target, effects))
    words = {
        (
            state.name,
            received.name.lower().replace("_", " "),
            step.state.name,
            ", ".join(action.name.lower().replace("_", " ") for action in step.actions),
        )
        for (state, received), step in table.items()
        if step.state is not state or step.actions
    }
    assert drawn == words


def test_drawing() -> None:
    assert draw(Table(State, Input, ROWS), State.OFF) == "\n".join(
        [
            "stateDiagram-v2",
            "    [*] --> OFF",
            "    OFF --> ON: press / shine now",
            "    ON --> OFF: press",
        ]
    )


def test_table_is_a_mapping() -> None:
    table = Table(State, Input, ROWS)
    assert table[State.OFF, Input.PRESS] == Step(State.ON, (Do.SHINE_NOW,))
    assert table[State.ON, Input.LOOK_AT] == Step(State.ON)


def test_missing_cell_is_named() -> None:
    with pytest.raises(ValueError, match=r"no step for ON on PRESS$"):
        Table(State, Input, [ROWS[0], ROWS[2]])


def test_cell_given_twice_is_named() -> None:
    with pytest.raises(ValueError, match="OFF on PRESS is given twice"):
        Table(State, Input, [*ROWS, ROWS[0]])
