"""The command: `python -m mutants PART...`, run by `make mutants`."""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from .runner import Fate, Runner

HERE = Path(__file__).parent
TESTS = HERE.parent
SOURCE = TESTS.parent / "src" / "quicferry"
RESULTS = TESTS.parent / ".mutants"
PARTS = tomllib.loads((HERE / "parts.toml").read_text("utf-8"))


def main() -> int:
    """Run it, and return 1 if too many mutants survive."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all)")
    parser.add_argument("--budget", type=float, default=20, help="seconds of tests for each mutant")
    parser.add_argument("--only", default="", help="mutants with this in their names")
    parser.add_argument("--again", action="store_true", help="only those that survived last time")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    rates = [run(part, options) for part in options.parts or PARTS]
    return int(min(rates) < 0.9)


def run(part: str, options: argparse.Namespace) -> float:
    """Try the mutants of a part; return how many of them are killed."""
    results = RESULTS / f"{part}.json"
    again = set(json.loads(results.read_text("utf-8"))) if options.again else None

    def wanted(name: str) -> bool:
        return options.only in name and (again is None or _unplaced(name) in again)

    def report(fate: Fate) -> None:
        if fate.outcome != "killed":
            print(f"{fate.outcome} ({fate.tests} tests): {fate.name}", flush=True)

    modules = [path for each in PARTS[part]["modules"] for path in sorted(SOURCE.glob(each))]
    tests = [str(path) for each in PARTS[part]["tests"] for path in sorted(TESTS.glob(each))]
    runner = Runner(modules, options.budget, wanted, report)
    quiet = ["-q", "--no-header", "--no-summary", "-p", "no:cacheprovider", "-p", "no:xdist"]
    code = pytest.main([*quiet, *tests], plugins=[runner])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        sys.exit(code)
    survived = [fate.name for fate in runner.fates if fate.outcome == "survived"]
    if not options.only:
        RESULTS.mkdir(exist_ok=True)
        results.write_text(json.dumps(sorted(map(_unplaced, survived)), indent=1), "utf-8")
    counts = Counter(fate.outcome for fate in runner.fates)
    total = len(runner.fates)
    killed = total - counts["survived"]
    rate = killed / total if total else 1.0
    print(
        f"{part}: {killed} of {total} killed ({rate:.1%}), {counts['timeout']} of them by the time "
        f"limit; {counts['survived']} survived",
        flush=True,
    )
    return rate


def _unplaced(name: str) -> str:
    """Return a mutant's name without its line, which changes."""
    file, _, rest = name.split(":", 2)
    return f"{file}:{rest}"


if __name__ == "__main__":
    sys.exit(main())
