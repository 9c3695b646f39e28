"""One measured figure, and how it is printed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Figure:
    """A figure with what it should reach.

    Attributes:
        name: What was measured.
        value: The result.
        unit: Of the value.
        at_most: The upper bound that is promised, if any.
        at_least: The lower bound that is promised, if any.
        note: How it was measured, in a few words.
    """

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the promise is kept; True where nothing is promised."""
        # The last digit printed decides: virtual time is exact only to rounding errors.
        value = round(self.value, 6)
        return (self.at_most is None or value <= self.at_most) and (
            self.at_least is None or value >= self.at_least
        )

    def line(self) -> str:
        """Return the figure as one line of the report."""
        wanted = ""
        if self.at_most is not None:
            wanted = f"at most {self.at_most:g}"
        elif self.at_least is not None:
            wanted = f"at least {self.at_least:g}"
        verdict = "" if not wanted else "ok" if self.is_met else "MISSED"
        value = f"{self.value:.4g} {self.unit}"
        return f"{self.name:<58} {value:>16}  {wanted:<14} {verdict:<6} {self.note}".rstrip()


def as_json(figures: Iterable[Figure]) -> str:
    """Return the figures as a JSON array."""
    return json.dumps([asdict(figure) | {"is_met": figure.is_met} for figure in figures], indent=1)
