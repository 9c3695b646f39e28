"""`quicferry lab run` and `report`, and what carries the runs out."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from quicferry_lab.evaluation.experiment import Choices, load
from quicferry_lab.evaluation.perform import PerformanceError, keep_missing, perform, perform_all
from quicferry_lab.evaluation.result import Result
from quicferry_lab.evaluation.run import Backend, Run
from quicferry_lab.evaluation.store import TABLES, Settings, Store, read

from quicferry.cli import main

SETTINGS = Settings("experiment 0", Backend.SIM, is_quick=True)


def quick(number: int = 0) -> list[Run]:
    return load(number).runs(Choices(is_quick=True))


def one_by_one(runs: Sequence[Run]) -> Generator[Result]:
    for run in runs:
        yield perform(run)


def test_several_at_a_time_find_the_same_as_one_by_one() -> None:
    runs = quick()
    found = {result.run.key: result for result in perform_all(runs, jobs=2)}
    assert found == {run.key: perform(run) for run in runs}


def test_a_run_that_fails_is_a_result() -> None:
    run = replace(quick()[0], silence=1.0, technique="cold", protocol="teleport")
    (result,) = perform_all([run], jobs=1)
    assert result.has_failed
    assert "teleport" in result.problems[0].lower()


def test_a_process_that_dies_is_named() -> None:
    # It cannot be read in the other process: that one gives up.
    class Deadly(str):
        def __reduce__(self) -> tuple[object, tuple[int]]:
            return sys.exit, (1,)

    runs = [replace(quick()[0], arm=Deadly("a"))]
    with pytest.raises(PerformanceError, match="run the same command again"):
        list(perform_all(runs, jobs=1))


def test_an_interrupted_experiment_goes_on_where_it_was(tmp_path: Path) -> None:
    runs = quick()

    def interrupted(missing: Sequence[Run]) -> Generator[Result]:
        yield from one_by_one(missing[:2])
        raise KeyboardInterrupt

    told: list[Result] = []
    with (
        pytest.raises(KeyboardInterrupt),
        Store(tmp_path / "twice", SETTINGS, runs) as store,
    ):
        keep_missing(store, runs, interrupted, told.append)
    assert [result.run for result in told] == runs[:2]
    with Store(tmp_path / "twice", SETTINGS, runs) as store:
        keep_missing(store, runs, one_by_one, told.append)
    assert [result.run for result in told] == runs
    with Store(tmp_path / "once", SETTINGS, runs) as store:
        keep_missing(store, runs, one_by_one, lambda result: None)
    for table in TABLES:
        twice, once = (tmp_path / name / f"{table}.parquet" for name in ("twice", "once"))
        assert twice.read_bytes() == once.read_bytes()


def test_running_and_reporting(tmp_path: Path) -> None:
    out = str(tmp_path / "results")
    command = ["lab", "run", "0", "1", "--quick", "--reps", "1", "--out", out]
    command += ["--only", "loss_percent=0", "--only", "arm=Symmetric", "--only", "arm=baseline"]
    # Experiment 0 has one arm, and experiment 1 has the other.
    result = CliRunner().invoke(main, [*command[:3], *command[4:], "--json"])
    assert result.exit_code == 0, result.stderr
    assert [row["arm"] for row in json.loads(result.stdout)] == ["baseline"]
    result = CliRunner().invoke(main, ["lab", "run", "1", *command[4:]])
    assert result.exit_code == 0, result.stderr
    assert "What the protocol alone costs" in result.stdout
    assert "thesis-server" in result.stdout
    again = CliRunner().invoke(main, ["lab", "run", "1", *command[4:]])
    assert "2 of 2 runs are here already" in again.stderr
    assert again.stdout == result.stdout

    result = CliRunner().invoke(main, ["lab", "report", out, "--json"])
    assert result.exit_code == 0, result.stderr
    figures = {figure["name"]: figure for figure in json.loads(result.stdout)}
    assert any("Symmetric" in name and "plain QUIC" in name for name in figures)
    (beside,) = (figure for name, figure in figures.items() if "more than ours" in name)
    assert beside["is_met"]
    assert (tmp_path / "results" / "report.html").read_text(encoding="utf-8").count("<svg") >= 2


def test_the_summary_is_of_the_runs_that_were_asked_for(tmp_path: Path) -> None:
    out = str(tmp_path)

    def summary(*only: str) -> list[tuple[float | None, int]]:
        chosen = [word for each in only for word in ("--only", each)]
        command = ["lab", "run", "0", "--quick", "--reps", "1", "--out", out, "--json", *chosen]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.stderr
        return [(row.get("loss_percent"), row["runs"]) for row in json.loads(result.stdout)]

    assert summary() == [(0.0, 1), (1.5, 1)]
    assert summary("loss_percent=0") == [(None, 1)]


def test_what_has_failed_shows_in_the_exit_status(tmp_path: Path) -> None:
    runs = [run for run in quick() if run.loss_percent == 0 and run.repetition == 1]
    with Store(tmp_path / "experiment-0-sim", SETTINGS, runs) as store:
        store.add(Result(runs[0], problems=("it rained",)))
    command = ["lab", "run", "0", "--quick", "--reps", "1", "--only", "loss_percent=0"]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "1 runs have failed" in result.stderr
    assert read(tmp_path / "experiment-0-sim").runs["problems"].to_list() == ["it rained"]


def test_a_dry_run_names_the_runs_and_does_nothing(tmp_path: Path) -> None:
    command = ["lab", "run", "2", "--backend", "containers", "--quick", "--dry-run"]
    result = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "none")])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == len(
        load(2).runs(Choices(Backend.CONTAINERS, is_quick=True))
    )
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing argument"),
        (["run", "7"], "there is no experiment 7"),
        (["run", "3", "--backend", "containers"], "use --backend sim or netns"),
        (["run", "1", "--only", "technique"], "is not like technique=cold"),
        (["run", "1", "--only", "tecnique=cold"], "no parameter 'tecnique'"),
        (["run", "5", "--time-scale", "0"], "--time-scale"),
        (["report", "/nowhere"], "does not exist"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["lab", *arguments])
    assert result.exit_code in (1, 2)
    assert message in result.stderr


def test_nothing_to_report(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["lab", "report", str(tmp_path)])
    assert result.exit_code == 1
    assert "no results" in result.stderr


def test_what_was_not_begun_is_not_begun_after_the_end() -> None:
    runs = load(0).runs(Choices(repetitions=20))
    results = perform_all(runs, jobs=1)
    first = next(results)
    # Returns when nothing is under way any more; one that was begun has come to its end.
    results.close()
    assert first.run == runs[0]
    assert not multiprocessing.active_children()


def test_a_time_scale_that_leaves_no_time_to_follow() -> None:
    result = CliRunner().invoke(main, ["lab", "run", "5", "--time-scale", "0.001"])
    assert result.exit_code == 1
    assert "use a larger --time-scale" in result.stderr


def test_other_settings_are_noticed_before_anything_is_run(tmp_path: Path) -> None:
    command = ["lab", "run", "6", "--quick", "--out", str(tmp_path)]
    assert CliRunner().invoke(main, [*command, "--time-scale", "0.5"]).exit_code == 0
    # Experiment 0 has nothing that could be scaled, and would be fit to run.
    result = CliRunner().invoke(main, [*command[:2], "0", *command[2:], "--time-scale", "0.4"])
    assert result.exit_code == 1
    assert "time_scale = 0.5, not 0.4" in result.stderr
    assert not (tmp_path / "experiment-0-sim").exists()
