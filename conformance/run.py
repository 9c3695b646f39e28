"""Run aioquic's own test suite on quicferry's connection, with migration off and on.

The tests come from the source distribution of the installed aioquic version. A test that fails is
run once more with aioquic's own class: what fails there as well fails because of the machine (no
IPv6, say); it is named, and does not count against quicferry.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from adjustments import ADJUSTMENTS, StaleAdjustmentError

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".conformance"
MODES = {"off": ("off",), "on": ("on",), "both": ("off", "on")}


class ConformanceError(Exception):
    """The suite could not be run, or did not test what it should."""


@dataclass(frozen=True)
class Record:
    """What one run of the suite did, as `substitution.py` wrote it down.

    Attributes:
        passed: Names of tests, as are `failed` and `skipped`.
        ours: How many connections the tests made that were quicferry's.
        stock: How many they made that were not.
        negotiated: How many of `ours` had a peer that supports migration.
    """

    passed: list[str]
    failed: list[str]
    skipped: list[str]
    ours: int
    stock: int
    negotiated: int


def source_distribution() -> Path:
    """Return the source distribution of the installed aioquic; fetch it unless it is cached."""
    CACHE.mkdir(exist_ok=True)
    archive = CACHE / f"aioquic-{version('aioquic')}.tar.gz"
    if not archive.exists():
        download = ["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=aioquic"]
        requirement = f"aioquic=={version('aioquic')}"
        subprocess.run([sys.executable, *download, "--dest", str(CACHE), requirement], check=True)
    return archive


def unpack_tests(archive: Path, mode: str) -> Path:
    """Lay out a fresh copy of the tests for one run, adjusted where migration is on."""
    folder = CACHE / mode
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(archive) as tar:
        # "data" is what Python 3.14 does by itself; 3.11 knows it from 3.11.4 on.
        tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
        tests = [member for member in tar if Path(member.name).parts[1:2] == ("tests",)]
        tar.extractall(folder, members=tests)
    (root,) = folder.iterdir()
    if mode == "on":
        for adjustment in ADJUSTMENTS:
            adjustment.apply(root / "tests")
    return root


def run_tests(mode: str, root: Path, tests: list[str]) -> Record:
    """Run pytest on `tests` under `root`, out of reach of this project's tests and settings."""
    environment = dict(os.environ, PYTHONPATH=str(HERE), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    environment.pop("PYTEST_ADDOPTS", None)
    options = ["-q", "--tb=short", "--no-header", "-p", "no:cacheprovider", "-p", "substitution"]
    isolation = ["-c", str(HERE / "pytest.ini"), "--rootdir", str(root)]
    record = root / "record.json"
    own = ["--connection", mode, "--record", str(record)]
    process = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *isolation, *own, *tests],
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if process.returncode not in (0, 1) or not record.exists():
        raise ConformanceError(f"pytest itself failed, exit status {process.returncode}")
    return Record(**json.loads(record.read_text(encoding="utf-8")))


def check(mode: str, record: Record) -> None:
    """Refuse a run that proves nothing: no tests, or tests of something else."""
    if not record.passed:
        raise ConformanceError(f"migration {mode}: no test passed")
    if not record.ours or record.stock:
        raise ConformanceError(
            f"migration {mode}: the tests made {record.ours} connections of quicferry's class and "
            f"{record.stock} others; see NAMING_MODULES in conformance/substitution.py"
        )
    if bool(record.negotiated) != (mode == "on"):
        raise ConformanceError(
            f"migration {mode}: {record.negotiated} connections negotiated migration"
        )


def failing_in_stock(archive: Path, tests: list[str]) -> set[str]:
    """Return which of `tests` fail with aioquic's own class too."""
    return set(run_tests("stock", unpack_tests(archive, "stock"), tests).failed)


def run(modes: tuple[str, ...]) -> int:
    """Run the suite in each of `modes`; return how many tests failed."""
    archive = source_distribution()
    summaries = []
    passed = failed = 0
    for mode in modes:
        title = f"aioquic {version('aioquic')}'s tests on quicferry's connection, migration {mode}"
        print(f"{title}:", flush=True)
        record = run_tests(mode, unpack_tests(archive, mode), ["tests"])
        check(mode, record)
        excused = failing_in_stock(archive, record.failed) if record.failed else set()
        for test in record.failed:
            reason = "fails with aioquic's class too" if test in excused else "FAILED"
            summaries.append(f"{reason}: {test}")
        summaries.append(
            f"migration {mode}: {len(record.passed)} passed, {len(record.failed)} failed, "
            f"{len(record.skipped)} skipped; {record.ours} connections, all of them quicferry's, "
            f"{record.negotiated} negotiated migration"
        )
        passed += len(record.passed)
        failed += len(record.failed) - len(excused)
    print(*summaries, f"conformance: {passed} passed, {failed} failed", sep="\n")
    return failed


def main() -> int:
    """Parse the command line, run, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=MODES, default="both", help="migration off, on, or both")
    try:
        return 1 if run(MODES[parser.parse_args().mode]) else 0
    except (ConformanceError, StaleAdjustmentError, subprocess.SubprocessError) as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
