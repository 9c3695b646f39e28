"""Says whether servers can be moved from and to this host, and what is missing.

`examine` looks at the host, judges what it sees for each way of moving a server, and tries out what
seems to work: a throw-away process is moved by CRIU, as a server would be. `problems` is the quick
form, for the moment before a relocation begins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from quicferry.relocation.container.engines import Technique
from quicferry.relocation.errors import EngineError

from .facts import Facts, look, podman_runtime
from .finding import Diagnosis, Finding, Outcome, Way, healthy
from .judgement import explain, judge
from .trial import Trial, try_out
from .ways import ENGINES, PODMAN, RUNC, TECHNIQUES, WITHOUT_ENGINE, wanted, ways

__all__ = [
    "ENGINES",
    "TECHNIQUES",
    "Diagnosis",
    "Finding",
    "Outcome",
    "Way",
    "examine",
    "healthy",
    "inspect",
    "problems",
    "wanted",
    "ways",
]


async def examine(ways: Sequence[Way]) -> list[Diagnosis]:
    """Look at this host, and try out what seems to work.

    Takes a second or two for each technique that is tried; nothing is left behind.

    Args:
        ways: The ways of moving a server that are of interest.
    """
    diagnoses = await _look(ways)
    promising = {
        each.way.technique: None
        for each in diagnoses
        if each.outcome is not Outcome.MISSING and each.way not in WITHOUT_ENGINE
    }
    try:
        trials = await try_out([Technique(name) for name in promising])
    except EngineError as exc:
        trials = {Technique(name): Trial(str(exc), 0.0) for name in promising}
    tried = {each.value: _judge_trial(each.value, trial) for each, trial in trials.items()}
    return [
        _with(each, tried[each.way.technique])
        if each.outcome is not Outcome.MISSING and each.way.technique in tried
        else each
        for each in diagnoses
    ]


async def inspect(ways: Sequence[Way]) -> list[Diagnosis]:
    """Look at this host, and try nothing out.

    Args:
        ways: The ways of moving a server that are of interest.
    """
    return [
        each
        if each.way in WITHOUT_ENGINE or each.outcome is Outcome.MISSING
        else _with(each, Finding(_trial(each.way.technique), Outcome.UNKNOWN, "not tried"))
        for each in await _look(ways)
    ]


async def problems(technique: Technique, engine: str) -> list[str]:
    """Return what keeps this host from taking part in a relocation, as far as can be seen quickly.

    Args:
        technique: How a server is to be moved.
        engine: The name of the container engine.

    Returns:
        A line for each problem: what it is, and what to do about it.

    Raises:
        EngineError: If the engine does not know the technique; the text names one that does.
    """
    (way,) = ways(technique.value, engine)
    facts = await look([PODMAN, RUNC] if engine == PODMAN else [engine])
    return [
        f"{found.name}: {found.says}; {found.remedy}"
        for found in judge(facts, way).findings
        if found.outcome is Outcome.MISSING
    ]


async def _look(ways: Sequence[Way]) -> list[Diagnosis]:
    engines = ENGINES if any(way.engine for way in ways) else ()
    facts = await look(engines)
    if PODMAN in facts.engines and any(way.engine == PODMAN for way in ways):
        facts = await _with_podman(facts)
    return [judge(facts, way) for way in ways]


async def _with_podman(facts: Facts) -> Facts:
    """Return the facts with what Podman itself says."""
    try:
        return dataclasses.replace(facts, podman_runtime=await podman_runtime())
    except EngineError as exc:
        podman = dataclasses.replace(facts.engines[PODMAN], problem=str(exc))
        return dataclasses.replace(facts, engines={**facts.engines, PODMAN: podman})


def _judge_trial(technique: str, trial: Trial) -> Finding:
    name = _trial(technique)
    if trial.error:
        return Finding(name, Outcome.MISSING, trial.error, explain(trial.error))
    return Finding(name, Outcome.OK, f"a process was moved, in {trial.seconds:.1f} s")


def _trial(technique: str) -> str:
    return f"{technique} of a process"


def _with(diagnosis: Diagnosis, finding: Finding) -> Diagnosis:
    return dataclasses.replace(diagnosis, findings=(*diagnosis.findings, finding))
