"""The mutants are what they say, and are tried by the tests that call them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from mutants.operators import mutants

TESTS = Path(__file__).parent.parent


def changes(source: str) -> list[str]:
    return [mutant.change for mutant in mutants(dedent(source), "it.py")]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("print(x)", ["deleted: print(x)"]),
        ("x.y = 'z'", ["deleted: x.y = 'z'"]),
        ("'text'", []),
        ("logger.info('x')", []),
        ("y = x", []),
        ("y: int = x", []),
        ("raise x", ["deleted: raise x"]),
        ("if x: pass", ["not (x)"]),
        ("if x is y: pass", ["x is y -> x is not y"]),
        ("if not x: pass", ["without not: not x"]),
        ("if x < y: pass", ["not (x < y)", "x < y -> x <= y"]),
        ("if x < y <= z: pass", ["not (x < y <= z)", "x < y <= z -> x <= y <= z"]),
        ("for y in [z for z in x if z]: pass", ["without: if z"]),
        ("for y in x and z: pass", ["x and z, without: x", "x and z, without: z"]),
        ("for y in x + 1: pass", ["x + 1 -> x - 1", "1 -> 2"]),
        ("for y in (True, -x): pass", ["True -> False", "without minus: -x"]),
        ("for y in min(x): pass", ["min -> max"]),
        ("assert x == 1", []),
        ("for y in f'{x + 1}': pass", []),
    ],
)
def test_changes(body: str, expected: list[str]) -> None:
    found = changes(f"def f(x: tuple[1], y=2, z=3) -> 4:\n    {body}\n")
    assert found[: len(expected)] == expected
    assert bool(found) == bool(expected)


def test_a_name_that_is_set_twice_may_keep_its_first_value() -> None:
    assert changes("def f(x):\n    y = 1\n    y = x\n    return y") == [
        "deleted: y = 1",
        "1 -> 2",
        "deleted: y = x",
        "deleted: return y",
    ]


@pytest.mark.parametrize(
    ("change", "given", "expected"),
    [
        ("deleted: self.total += amount", 3, 0),
        ("not (amount > 0)", 3, 0),
        ("amount > 0 -> amount >= 0", 0, "counted"),
        ("self.total >= limit or self.stopped, without: self.stopped", 0, 0),
    ],
)
def test_a_mutant_does_what_it_says(change: str, given: int, expected: object) -> None:
    source = dedent(
        """
        class Account:
            def __init__(self):
                self.total, self.last, self.stopped = 0, None, True

            @property
            def is_full(self, limit=5):
                return self.total >= limit or self.stopped

            def add(self, amount):
                if amount > 0:
                    self.total += amount
                    self.last = "counted"
        """
    )
    names: dict[str, Any] = {}
    exec(compile(source, "it.py", "exec"), names)  # our own text
    mutant = next(each for each in mutants(source, "it.py") if each.change == change)
    account = names["Account"]
    function = account.is_full.fget if "is_full" in mutant.function else account.add
    assert function.__code__.co_qualname == mutant.function
    function.__code__ = mutant.code
    it = account()
    it.add(given)
    assert expected in (it.total, it.last)
    if "is_full" in mutant.function:
        assert not it.is_full


def test_names_that_are_deleted_stay_what_they_are() -> None:
    """A function that closes over its class has to do so without the line that needs it."""
    source = "class A(B):\n    def f(self):\n        super().f()\n        self.x = 1\n"
    for mutant in mutants(source, "it.py"):
        assert mutant.code.co_freevars == ("__class__",)


def test_killed_and_survived(tmp_path: Path) -> None:
    """Whole runs, in a tree of its own: one mistake is noticed, one hangs, one is not noticed."""
    (tmp_path / "tests").mkdir()
    code = tmp_path / "tests" / "code_under_test.py"
    code.write_text(
        dedent(
            """
            from functools import lru_cache

            @lru_cache
            def halve(number):
                rest = 0
                while number > 1:
                    number -= 2
                    rest = rest + 1
                return rest

            def never_called():
                return halve(1)
            """
        )
    )
    (tmp_path / "tests" / "test_it.py").write_text(
        "from code_under_test import halve\n\ndef test_it():\n    assert halve(7) == 3\n"
    )
    program = dedent(
        """
        import sys
        from pathlib import Path
        import pytest
        from mutants.runner import Runner

        def report(fate):
            print("FATE", fate.outcome, fate.tests, fate.name)

        runner = Runner([Path.cwd() / "tests/code_under_test.py"], 5, lambda name: True, report)
        pytest.main(["-q", "-p", "no:cacheprovider", "tests"], plugins=[runner])
        """
    )
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{tmp_path / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    fates = {}
    for line in done.stdout.splitlines():
        if "FATE" in line:
            _, outcome, tests, name = line[line.index("FATE") :].split(" ", 3)
            fates[name.split(": ", 1)[1]] = (outcome, int(tests))
    assert fates["halve: rest + 1 -> rest - 1"] == ("killed", 1)
    assert fates["halve: deleted: number -= 2"] == ("timeout", 1)
    assert fates["halve: number > 1 -> number >= 1"] == ("killed", 1)
    assert fates["halve: deleted: return rest"] == ("killed", 1)
    assert fates["never_called: deleted: return halve(1)"] == ("survived", 0)
    assert fates["halve: 2 -> 3"] == ("killed", 1)
