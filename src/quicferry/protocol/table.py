"""Transition tables: what a state machine does, as data that can be checked, printed and drawn."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar


class Symbol(enum.Enum):
    """A state or an input; a table is asked with one of each for every packet.

    Members are singletons: where they are is all there is to hash, in a tenth of the time.
    """

    __hash__ = object.__hash__


StateT = TypeVar("StateT", bound=enum.Enum)
InputT = TypeVar("InputT", bound=enum.Enum)
ActionT = TypeVar("ActionT", bound=enum.Enum)


@dataclass(frozen=True)
class Step(Generic[StateT, ActionT]):
    """One cell of a table: the next state, and what is done on the way, in order."""

    state: StateT
    actions: tuple[ActionT, ...] = ()


class Table(
    Generic[StateT, InputT, ActionT], Mapping[tuple[StateT, InputT], Step[StateT, ActionT]]
):
    """A total function from a state and an input to a `Step`.

    Args:
        states: All states.
        inputs: All inputs.
        rows: ``(states, inputs, next state or None to stay, actions)``; each cell exactly once.

    Raises:
        ValueError: If a cell is missing or given twice.
    """

    def __init__(
        self,
        states: type[StateT],
        inputs: type[InputT],
        rows: Iterable[
            tuple[Iterable[StateT], Iterable[InputT], StateT | None, tuple[ActionT, ...]]
        ],
    ) -> None:
        self._cells: dict[tuple[StateT, InputT], Step[StateT, ActionT]] = {}
        for row_states, row_inputs, next_state, actions in rows:
            for state in row_states:
                for received in row_inputs:
                    if (state, received) in self._cells:
                        raise ValueError(f"{state.name} on {received.name} is given twice")
                    step = Step(state if next_state is None else next_state, actions)
                    self._cells[state, received] = step
        missing = [
            f"{state.name} on {received.name}"
            for state in states
            for received in inputs
            if (state, received) not in self._cells
        ]
        if missing:
            raise ValueError(f"no step for {', '.join(missing)}")

    def __getitem__(self, cell: tuple[StateT, InputT]) -> Step[StateT, ActionT]:
        return self._cells[cell]

    def __iter__(self) -> Iterator[tuple[StateT, InputT]]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)


def draw(table: Table[StateT, InputT, ActionT], initial: StateT) -> str:
    """Return the table as a Mermaid state diagram; what changes nothing is left out."""
    edges: dict[tuple[StateT, StateT, tuple[ActionT, ...]], list[str]] = {}
    for (state, received), step in table.items():
        if step.state is not state or step.actions:
            edges.setdefault((state, step.state, step.actions), []).append(_words(received))
    lines = ["stateDiagram-v2", f"    [*] --> {initial.name}"]
    for (state, target, actions), received_names in edges.items():
        label = " or ".join(received_names)
        if actions:
            label += " / " + ", ".join(_words(action) for action in actions)
        lines.append(f"    {state.name} --> {target.name}: {label}")
    return "\n".join(lines)


def _words(member: enum.Enum) -> str:
    return member.name.lower().replace("_", " ")
