"""Experiments, as the files in ``experiments/`` declare them.

A file has these tables; names of parameters are those of `Run`'s attributes:

- the top: ``number``, ``title``, ``question``, ``script``, ``repetitions``, ``backends``;
- ``[fixed]``: parameters that are the same in every run;
- ``[arms.NAME]``: the parameters of one of the things compared; ``thesis`` is what the thesis's
  table calls it;
- ``[[combinations]]``: ``whose`` they are (``"thesis"`` or ``"ours"``), and lists; a run is made
  for each element of their product. ``arm`` lists arms; every other list has the values of the
  parameter that it is named after, or tables with several parameters that go together. A
  combination may have ``repetitions`` of its own, and ``backends`` that it is for;
- ``[quick]`` and ``[backend.NAME]``: what replaces ``repetitions`` and entries of ``[fixed]`` in a
  quick run and on that backend; ``[quick.lists]`` and ``[backend.NAME.lists]`` do so for lists of
  the same name in every combination that has one.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from typing import Any

from quicferry.protocol import QuicferryError
from quicferry_lab.evaluation.run import WITHOUT, Backend, Peer, Run, Script, Workload

NUMBERS = range(7)
SCALED = ("interval", "duration")
"""The times that ``--time-scale`` makes shorter."""

_FOLLOWING = 0.5
"""Seconds that clients may take to follow a server that has followed its client."""

_PARAMETERS = {field.name for field in fields(Run)}
_FLOATS = {field.name for field in fields(Run) if "float" in str(field.type)}
_NOT_LISTS = ("whose", "repetitions", "backends")


class ExperimentError(QuicferryError):
    """An experiment is not what its description should be, or is not for this backend."""


@dataclass(frozen=True)
class Choices:
    """How an experiment is to be carried out.

    Attributes:
        backend: What it takes place on.
        repetitions: How often each combination is run; None for as often as the experiment says.
        is_quick: Whether its smaller form is asked for.
        seed: Of the first repetition; each further one has the next.
        time_scale: What long times are multiplied by, where an experiment has such.
        only: Parameters, with the values that a run must have one of to take place.
    """

    backend: Backend = Backend.SIM
    repetitions: int | None = None
    is_quick: bool = False
    seed: int = 1
    time_scale: float = 1.0
    only: Mapping[str, tuple[str, ...]] | None = None


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        number: As in the thesis.
        title: What it is about.
        question: What it answers.
        script: What happens in its runs.
        repetitions: How often each combination is run.
        backends: What it can take place on.
        description: The whole file.
    """

    number: int
    title: str
    question: str
    script: Script
    repetitions: int
    backends: tuple[Backend, ...]
    description: Mapping[str, Any]

    def arms(self) -> dict[str, str | None]:
        """Return the arms, with the thesis's names of those that it has."""
        return {name: arm.get("thesis") for name, arm in self.description["arms"].items()}

    def runs(self, choices: Choices) -> list[Run]:
        """Return all runs, those of one repetition after those of the one before.

        Raises:
            ExperimentError: The experiment is not for that backend, or nothing is left of it.
        """
        if choices.backend not in self.backends:
            names = " or ".join(backend.value for backend in self.backends)
            raise ExperimentError(
                f"experiment {self.number} cannot be carried out on {choices.backend.value}; "
                f"use --backend {names}"
            )
        only = choices.only or {}
        if unknown := sorted(only.keys() - _PARAMETERS):
            raise ExperimentError(f"runs have no parameter {unknown[0]!r}")
        # The shorter lists of a quick run may make two combinations the same.
        found = [run for run in dict.fromkeys(self._expand(choices)) if _is_wanted(run, only)]
        if not found:
            raise ExperimentError(f"no run of experiment {self.number} is as asked for")
        return sorted(found, key=lambda run: run.repetition)

    def _expand(self, choices: Choices) -> Iterator[Run]:
        fixed = dict(self.description["fixed"])
        lists: dict[str, list[Any]] = {}
        repetitions = None
        overlays = [self.description.get("backend", {}).get(choices.backend.value, {})]
        if choices.is_quick:
            overlays.append(self.description.get("quick", {}))
        for overlay in overlays:
            fixed |= {name: value for name, value in overlay.items() if name in _PARAMETERS}
            lists |= overlay.get("lists", {})
            repetitions = overlay.get("repetitions", repetitions)
        for combination in self.description["combinations"]:
            if choices.backend.value not in combination.get("backends", [choices.backend.value]):
                continue
            usual = combination.get("repetitions", self.repetitions)
            often = choices.repetitions or min(usual, repetitions or usual)
            for values in self._product(combination, lists):
                parameters = {"whose": combination["whose"], **fixed, **values}
                for repetition in range(1, often + 1):
                    yield self._run(parameters, choices, repetition)

    def _product(
        self, combination: Mapping[str, Any], replaced: Mapping[str, Any]
    ) -> Iterator[dict[str, Any]]:
        """Yield the parameters of each element of the product of a combination's lists."""
        lists = {
            name: replaced.get(name, values)
            for name, values in combination.items()
            if name not in _NOT_LISTS
        }
        for elements in itertools.product(*lists.values()):
            found: dict[str, Any] = {}
            for name, element in zip(lists, elements, strict=True):
                if name == "arm":
                    arm = dict(self.description["arms"][element])
                    arm.pop("thesis", None)
                    found |= {"arm": element, **arm}
                else:
                    found |= element if isinstance(element, dict) else {name: element}
            yield found

    def _run(self, parameters: Mapping[str, Any], choices: Choices, repetition: int) -> Run:
        given = dict(parameters)
        for name in SCALED:
            if name in given:
                given[name] *= choices.time_scale
        if "workload" in given:
            given["workload"] = Workload(given["workload"])
        given["peer"] = Peer(given.get("peer", Peer.OURS))
        if given["peer"] is not Peer.OURS and choices.backend is not Backend.SIM:
            raise ExperimentError(f"there is a {given['peer'].value} only on {Backend.SIM.value}")
        if choices.backend is Backend.SIM and given.get("technique", WITHOUT) != WITHOUT:
            given["silence"] = assumed_silence(given["technique"], given.get("memory_mb", 0))
        run = Run(
            experiment=self.number,
            backend=choices.backend,
            script=self.script,
            repetition=repetition,
            seed=choices.seed + repetition - 1,
            **{name: _as_declared(name, value) for name, value in given.items()},
        )
        needed = run.quiet + (run.silence or 0.0) + _FOLLOWING
        if run.technique != WITHOUT and 0 < run.interval <= needed:
            raise ExperimentError(
                f"the client would move again after {run.interval:g} s, and the server needs "
                f"{needed:g} s to follow; use a larger --time-scale"
            )
        return run

    @property
    def is_scaled(self) -> bool:
        """Whether there are long times in it that a time scale makes shorter."""
        return any(name in self.description["fixed"] for name in SCALED)


def load(number: int) -> Experiment:
    """Return an experiment.

    Raises:
        ExperimentError: There is none of that number, or its file is wrong.
    """
    if number not in NUMBERS:
        raise ExperimentError(f"there is no experiment {number}; there are 0 to {NUMBERS[-1]}")
    return parse(_read(f"{number}.toml"))


def parse(text: str) -> Experiment:
    """Return the experiment that a file declares.

    Raises:
        ExperimentError: The file is wrong.
    """
    try:
        description = tomllib.loads(text)
        experiment = Experiment(
            number=description["number"],
            title=description["title"],
            question=description["question"],
            script=Script(description["script"]),
            repetitions=description["repetitions"],
            backends=tuple(Backend(name) for name in description["backends"]),
            description=description,
        )
        for backend in experiment.backends:
            for is_quick in (False, True):
                experiment.runs(Choices(backend, repetitions=1, is_quick=is_quick))
    except KeyError as exc:
        raise ExperimentError(f"the experiment lacks {exc}") from exc
    except (ValueError, TypeError) as exc:
        raise ExperimentError(f"the experiment is not well declared: {exc}") from exc
    return experiment


def assumed_silence(technique: str, memory_mb: int) -> float:
    """Return for how long the simulation lets a server be silent, in seconds.

    Raises:
        ExperimentError: Nothing is known of such a relocation.
    """
    known = _silences().get(technique, {})
    try:
        return float(known[str(memory_mb)])
    except KeyError:
        raise ExperimentError(
            f"it is not known how long a relocation by {technique} with {memory_mb} MB more takes; "
            "silences.toml says what is"
        ) from None


@cache
def _silences() -> dict[str, dict[str, float]]:
    return tomllib.loads(_read("silences.toml"))


def _read(name: str) -> str:
    return (resources.files(__package__) / "experiments" / name).read_text(encoding="utf-8")


def _as_declared(name: str, value: Any) -> Any:
    """Return a number as one of the type that `Run` gives it: 18 and 18.0 are the same run."""
    if name not in _PARAMETERS:
        raise ExperimentError(f"runs have no parameter {name!r}")
    return float(value) if name in _FLOATS and value is not None else value


def _is_wanted(run: Run, only: Mapping[str, tuple[str, ...]]) -> bool:
    row = run.row()
    return all(
        any(value == str(row[name]) or _equal_number(value, row[name]) for value in values)
        for name, values in only.items()
    )


def _equal_number(text: str, value: str | float | None) -> bool:
    try:
        return isinstance(value, int | float) and float(text) == value
    except ValueError:
        return False
