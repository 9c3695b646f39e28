"""Runs the tests on each mutant of a part, as a pytest plugin.

Everything is imported and collected once, and no test is run in that process. Each test is then run
in a fork, to learn which lines it runs through and how long it takes; after that each mutant, in a
fork where the function has the mutant's code, by the tests that come to its line, the quickest
first.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import Phase, settings

from .operators import Mutant, mutants

# How long a mutant may take, in terms of the tests' own time: by the processor, and by the clock,
# for those that wait for what never comes. A busy machine must not look like the second.
_FACTOR, _MORE = 4, 3
_PATIENCE = 20
_MEMORY = 3 << 30
_FAILED, _PASSED, _SKIPPED, _BROKEN = 1, 0, 3, 4

Function = tuple[str, str]
"""The file of a function, and its qualified name."""


@dataclass(frozen=True)
class Fate:
    """What has become of a mutant.

    Attributes:
        name: It, in a line: file, line and change.
        outcome: ``killed``, ``timeout`` or ``survived``.
        tests: How many tests have looked at it.
    """

    name: str
    outcome: str
    tests: int


@dataclass
class _Tested:
    """A test: which lines it runs through, by file, and how long it takes in seconds."""

    item: pytest.Item
    seconds: float
    lines: Mapping[str, frozenset[int]]


@dataclass
class Runner:
    """Mutates modules, instead of running the tests that were collected.

    Args:
        modules: The files to mutate.
        budget: Seconds that the tests of one mutant may take in all; the quickest are taken.
        wanted: Whether a mutant of this name is to be tried.
        report: Is told of each fate.
    """

    modules: Sequence[Path]
    budget: float
    wanted: Callable[[str], bool]
    report: Callable[[Fate], None]
    fates: list[Fate] = field(default_factory=list)

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection(self) -> None:
        """Let examples be the same each time, and no failure be explained."""
        settings.register_profile(
            "mutants",
            deadline=None,
            derandomize=True,
            database=None,
            phases=(Phase.explicit, Phase.generate),
        )
        settings.load_profile("mutants")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Try all mutants."""
        files = [str(module) for module in self.modules]
        functions = _functions(files)
        tested = list(self._learn(session.items, files))
        for module in self.modules:
            place = module.relative_to(Path.cwd())
            for mutant in mutants(module.read_text("utf-8"), str(module)):
                name = f"{place}:{mutant.line}: {mutant.function}: {mutant.change}"
                if self.wanted(name):
                    fate = self._try(
                        name, (str(module), mutant.function), mutant, functions, tested
                    )
                    self.fates.append(fate)
                    self.report(fate)
        return True

    def _learn(self, items: Iterable[pytest.Item], files: Sequence[str]) -> Iterator[_Tested]:
        for item in items:
            reading, writing = os.pipe()

            def learn(item: pytest.Item = item, writing: int = writing) -> int:
                lines: dict[str, set[int]] = {file: set() for file in files}

                def follow(frame: FrameType, event: str, argument: Any) -> Any:
                    seen = lines.get(frame.f_code.co_filename)
                    if seen is None:
                        return None
                    seen.add(frame.f_lineno)
                    return follow

                start = time.process_time()
                sys.settrace(follow)
                outcome = _run([item])
                sys.settrace(None)
                seconds = time.process_time() - start
                with os.fdopen(writing, "w") as stream:
                    json.dump([seconds, [sorted(lines[file]) for file in files]], stream)
                return outcome

            child = _fork(learn)
            os.close(writing)
            with os.fdopen(reading) as stream:
                learnt = stream.read()
            outcome = _wait(child, 300)
            if outcome == _PASSED and learnt:
                seconds, lines = json.loads(learnt)
                by_file = dict(zip(files, map(frozenset, lines), strict=True))
                yield _Tested(item, seconds, by_file)
            elif outcome != _SKIPPED:
                print(f"left out, since it fails without any mutant: {item.nodeid}", flush=True)

    def _try(
        self,
        name: str,
        function: Function,
        mutant: Mutant,
        functions: Mapping[Function, list[FunctionType]],
        tested: Iterable[_Tested],
    ) -> Fate:
        chosen: list[pytest.Item] = []
        seconds = 0.0
        by_time = sorted(tested, key=lambda each: each.seconds)
        coming = [each for each in by_time if mutant.line in each.lines[function[0]]]
        if not coming:
            # Not every line of an expression is known to the interpreter.
            _, *rest = (line for *_, line in mutant.code.co_lines() if line is not None)
            coming = [each for each in by_time if not each.lines[function[0]].isdisjoint(rest)]
        for test in coming:
            if seconds + test.seconds <= self.budget:
                chosen.append(test.item)
                seconds += test.seconds

        def attempt() -> int:
            try:
                for each in functions[function]:
                    each.__code__ = mutant.code
            except ValueError:
                return _FAILED  # it closes over other names than before: it could not work
            return _run(chosen)

        if not chosen:
            return Fate(name, "survived", 0)
        limit = int(_MORE + _FACTOR * seconds)
        outcome = _wait(_fork(attempt, limit), _PATIENCE * limit)
        verdict = {_PASSED: "survived", None: "timeout", -signal.SIGXCPU: "timeout"}
        return Fate(name, verdict.get(outcome, "killed"), len(chosen))


def _functions(files: Collection[str]) -> dict[Function, list[FunctionType]]:
    """Return all functions that were made of the files, also decorated ones and properties."""
    found: dict[Function, list[FunctionType]] = defaultdict(list)
    for each in gc.get_objects():
        if isinstance(each, FunctionType) and each.__code__.co_filename in files:
            found[each.__code__.co_filename, each.__code__.co_qualname].append(each)
    return found


def _run(items: Sequence[pytest.Item]) -> int:
    """Run tests up to the first that fails."""
    outcome = _PASSED
    for item in items:
        for report in runtestprotocol(item, log=False, nextitem=None):
            if report.failed:
                return _FAILED
            if report.skipped:
                outcome = _SKIPPED
    return outcome


def _fork(work: Callable[[], int], limit: int = 300) -> int:
    """Return the process that does some work, and ends with what that returns.

    Args:
        work: The work.
        limit: Seconds that the processor may spend on it.
    """
    child = os.fork()
    if child:
        return child
    code = _BROKEN
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(nothing, stream)
        code = work()
    finally:
        os._exit(code)


def _wait(child: int, limit: float) -> int | None:
    """Return the exit status of a child; None if it had to be killed after `limit` seconds."""
    end = time.monotonic() + limit
    pause = 0.001
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # what it has started and left behind
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
