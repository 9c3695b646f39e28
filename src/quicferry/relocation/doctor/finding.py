"""What was found out about a host, and about one way of moving servers between it and others."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Outcome(enum.Enum):
    """What became of a check."""

    OK = "ok"
    UNKNOWN = "unknown"
    """Nothing speaks against it, but it was not tried, or could not be found out."""
    MISSING = "missing"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: What was looked at.
        outcome: What became of it.
        says: What was found, in a line.
        remedy: What to do about it, in a line; empty where nothing has to be done.
    """

    name: str
    outcome: Outcome
    says: str
    remedy: str = ""


@dataclass(frozen=True)
class Way:
    """A technique, and what carries it out.

    Attributes:
        technique: Its name.
        engine: The name of the container engine; empty where none is needed.
    """

    technique: str
    engine: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """What was found out about one way.

    Attributes:
        way: Which one.
        findings: The result of each check that it depends on.
    """

    way: Way
    findings: tuple[Finding, ...]

    @property
    def outcome(self) -> Outcome:
        """The worst of its findings."""
        outcomes = {finding.outcome for finding in self.findings}
        worst_first = (Outcome.MISSING, Outcome.UNKNOWN)
        return next((outcome for outcome in worst_first if outcome in outcomes), Outcome.OK)

    @property
    def problems(self) -> list[Finding]:
        """The worst of its findings, where they are not as they should be."""
        if self.outcome is Outcome.OK:
            return []
        return [finding for finding in self.findings if finding.outcome is self.outcome]


def healthy(diagnoses: Sequence[Diagnosis], wanted: Sequence[frozenset[str]]) -> bool:
    """Whether everything works that is wanted.

    A way that was not tried counts as working where nothing speaks against it.

    Args:
        diagnoses: What was found out.
        wanted: Sets of techniques; one of each has to work, with any engine.
    """
    working = {each.way.technique for each in diagnoses if each.outcome is not Outcome.MISSING}
    return all(techniques & working for techniques in wanted)
