"""Experiments as data, and the tables that results are kept in."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from quicferry_lab.evaluation.experiment import (
    NUMBERS,
    Choices,
    ExperimentError,
    assumed_silence,
    load,
    parse,
)
from quicferry_lab.evaluation.result import At, Relocation, Request, Result
from quicferry_lab.evaluation.run import Backend, Peer, Run
from quicferry_lab.evaluation.store import TABLES, Settings, Store, StoreError, find, read

SETTINGS = Settings("experiment 1", Backend.SIM, is_quick=True)

SMALL = """
number = 9
title = "t"
question = "q"
script = "baseline"
repetitions = 2
backends = ["sim"]
[fixed]
requests = 5
[arms.a]
[[combinations]]
whose = "ours"
arm = ["a"]
loss_percent = [0, 1]
"""


@pytest.mark.parametrize("number", NUMBERS)
def test_every_experiment_can_be_run_on_each_of_its_backends(number: int) -> None:
    experiment = load(number)
    for backend in experiment.backends:
        runs = experiment.runs(Choices(backend))
        quick = experiment.runs(Choices(backend, is_quick=True))
        assert len({run.key for run in runs}) == len(runs)
        assert 0 < len(quick) <= len(runs)
        assert {run.backend for run in runs} == {backend}


def test_the_thesiss_combinations_are_all_there() -> None:
    four = [run for run in load(4).runs(Choices()) if run.whose == "thesis"]
    for rtt in (18, 122):
        for loss in (0, 1.5):
            these = [r for r in four if (r.source_rtt_ms, r.loss_percent) == (rtt, loss)]
            varied = {(r.memory_mb, r.arm, r.technique, r.pause) for r in these}
            assert len(these) == len(varied) == 144
    one = [run for run in load(1).runs(Choices()) if run.whose == "thesis"]
    assert len(one) == 6 * 2 * 100


def test_arms_share_their_seeds() -> None:
    runs = load(1).runs(Choices(repetitions=3, seed=7))
    for arm in {run.arm for run in runs}:
        assert {run.seed for run in runs if run.arm == arm} == {7, 8, 9}
    assert [run.repetition for run in runs] == sorted(run.repetition for run in runs)


def test_the_simulation_assumes_silences_and_the_others_find_them() -> None:
    simulated = load(2).runs(Choices(repetitions=1))
    assert all(run.silence == assumed_silence(run.technique, run.memory_mb) for run in simulated)
    for backend in (Backend.NETNS, Backend.CONTAINERS):
        assert {run.silence for run in load(2).runs(Choices(backend, repetitions=1))} == {None}


def test_the_double_of_the_thesiss_server_has_every_arm_in_the_simulation_alone() -> None:
    runs = load(1).runs(Choices(repetitions=1))
    ours, theirs = (
        {(run.arm, run.loss_percent) for run in runs if run.peer is peer} for peer in Peer
    )
    assert ours == theirs
    assert len(theirs) == 10 * 2
    assert {run.peer for run in load(1).runs(Choices(Backend.NETNS))} == {Peer.OURS}
    (run,) = load(1).runs(
        Choices(
            repetitions=1,
            only={"peer": ("thesis-server",), "arm": ("Symmetric",), "loss_percent": ("0",)},
        )
    )
    assert "thesis-server" in str(run)


def test_time_can_be_scaled() -> None:
    (run,) = load(6).runs(Choices(time_scale=0.01))
    assert (run.interval, run.duration) == (6, 36)
    assert run.pause == load(6).runs(Choices())[0].pause


def test_only_what_is_asked_for() -> None:
    only = {"technique": ("cold", "hybrid"), "memory_mb": ("10",), "loss_percent": ("0",)}
    runs = load(2).runs(Choices(repetitions=1, only=only))
    assert {(r.technique, r.memory_mb) for r in runs} == {("cold", 10), ("hybrid", 10)}
    with pytest.raises(ExperimentError, match="no parameter 'tecnique'"):
        load(2).runs(Choices(only={"tecnique": ("cold",)}))
    with pytest.raises(ExperimentError, match="no run"):
        load(2).runs(Choices(only={"technique": ("magic",)}))


def test_a_backend_that_an_experiment_has_not() -> None:
    with pytest.raises(ExperimentError, match="use --backend sim or netns"):
        load(3).runs(Choices(Backend.CONTAINERS))


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('title = "t"', "", "lacks 'title'"),
        ('script = "baseline"', 'script = "dance"', "not well declared"),
        ("requests = 5", "reqests = 5", "no parameter 'reqests'"),
        ('arm = ["a"]', 'arm = ["b"]', "lacks 'b'"),
        ("number = 9", "number = ", "not well declared"),
        ("requests = 5", 'peer = "nobody"', "not well declared"),
        (
            'backends = ["sim"]\n[fixed]',
            'backends = ["netns"]\n[fixed]\npeer = "thesis-server"',
            "only on sim",
        ),
    ],
)
def test_a_file_that_is_wrong(old: str, new: str, error: str) -> None:
    assert len(parse(SMALL).runs(Choices())) == 4
    with pytest.raises(ExperimentError, match=error):
        parse(SMALL.replace(old, new))


def test_a_run_is_known_by_all_of_its_parameters() -> None:
    first, second, *_ = parse(SMALL).runs(Choices())
    assert first.key == parse(SMALL).runs(Choices())[0].key
    assert first.key != second.key
    assert replace(first, peer=Peer.THESIS_SERVER).key != first.key


def test_a_run_keeps_the_key_that_it_had_before_there_was_a_choice_of_peers() -> None:
    run, *_ = load(0).runs(Choices())
    assert run.key == "b226a30ec05522e6"


def _result(run: Run) -> Result:
    rng = random.Random(run.key)
    requests = tuple(
        Request(1, number, float(number), rng.random(), "POST", 1024, 1024, At.SOURCE)
        for number in range(1, 12)
    )
    problems = ("it rained",) if rng.random() < 0.2 else ()
    return Result(run, requests, (Relocation(1, 1.0, 1.2, silent_at=1.3),), 0, problems)


def _keep(folder: Path, runs: Sequence[Run], results: Sequence[Run]) -> None:
    with Store(folder, SETTINGS, runs) as store:
        for run in results:
            store.add(_result(run))
            store.flush()


def test_the_tables_are_the_same_in_whatever_order_results_come(tmp_path: Path) -> None:
    runs = load(1).runs(Choices(is_quick=True))
    shuffled = random.Random(1).sample(runs, len(runs))
    for name, order in (("one", runs), ("other", shuffled)):
        _keep(tmp_path / name, runs, order[:20])
        with Store(tmp_path / name, SETTINGS, runs) as store:
            assert len(store.finished()) == 20
            for run in order[20:]:
                store.add(_result(run))
            store.complete()
    for table in TABLES:
        one, other = (tmp_path / name / f"{table}.parquet" for name in ("one", "other"))
        assert one.read_bytes() == other.read_bytes()
    tables = read(tmp_path / "one")
    assert tables.runs["run"].to_list() == [run.key for run in runs]
    assert tables.requests.height == 11 * len(runs)
    assert tables.relocations["silent_at"].unique().to_list() == [1.3]
    failed = [run.key for run in runs if _result(run).has_failed]
    assert tables.runs.filter("failed")["run"].to_list() == failed != []


def test_a_failed_run_without_requests_is_kept(tmp_path: Path) -> None:
    runs = load(0).runs(Choices(repetitions=1))
    with Store(tmp_path, SETTINGS, runs) as store:
        store.add(Result(runs[0], problems=("first", "second")))
    tables = read(tmp_path)
    assert tables.runs["failed"].to_list() == [True]
    assert tables.runs["problems"].to_list() == ["first\nsecond"]
    assert tables.runs["seed"].to_list() == [1]
    assert tables.requests.height == 0


def test_rows_say_what_they_were_found_with(tmp_path: Path) -> None:
    runs = load(0).runs(Choices(repetitions=1))
    _keep(tmp_path, runs, runs)
    rows = read(tmp_path).requests
    for column in ("quicferry", "aioquic", "python", "kernel", "seed", "loss_percent", "backend"):
        assert rows[column].null_count() == 0


def test_tables_from_before_there_was_a_choice_of_peers_are_of_ours(tmp_path: Path) -> None:
    runs = load(1).runs(Choices(is_quick=True))
    _keep(tmp_path, runs, runs[:2])
    with Store(tmp_path, SETTINGS, runs) as store:
        store.complete()
    _keep(tmp_path, runs, runs[2:4])
    for path in [*tmp_path.glob("*.parquet"), *tmp_path.glob("parts/*.parquet")]:
        pl.read_parquet(path).drop("peer").write_parquet(path)
    before = read(tmp_path)
    assert set(before.requests["peer"]) == set(before.runs["peer"]) == {"ours"}
    _keep(tmp_path, runs, runs[4:])
    with Store(tmp_path, SETTINGS, runs) as store:
        assert store.finished() == {run.key for run in runs}
        store.complete()
    assert read(tmp_path).runs["peer"].to_list() == [run.peer.value for run in runs]


def test_a_part_that_was_not_finished_does_not_count(tmp_path: Path) -> None:
    runs = load(0).runs(Choices(repetitions=3))
    _keep(tmp_path, runs, runs[:2])
    # The last table of a part is written last: as if it was interrupted before.
    (tmp_path / "parts" / "runs-000002.parquet").unlink()
    assert read(tmp_path).requests["run"].unique().to_list() == [runs[0].key]
    _keep(tmp_path, runs, runs[1:])
    tables = read(tmp_path)
    assert tables.requests.height == 11 * len(runs)


def test_parts_that_were_put_together_only_in_part(tmp_path: Path) -> None:
    runs = load(0).runs(Choices(repetitions=3))
    _keep(tmp_path, runs, runs[:2])
    parts = {path.name: path.read_bytes() for path in (tmp_path / "parts").iterdir()}
    with Store(tmp_path, SETTINGS, runs) as store:
        store.complete()
    for name, data in parts.items():  # as if it was interrupted before they were removed
        (tmp_path / "parts" / name).write_bytes(data)
    _keep(tmp_path, runs, runs[2:])
    tables = read(tmp_path)
    assert sorted(tables.runs["run"]) == sorted(run.key for run in runs)
    assert tables.requests.height == 11 * len(runs)


def test_results_with_other_settings_are_not_mixed(tmp_path: Path) -> None:
    runs = load(1).runs(Choices(is_quick=True))
    _keep(tmp_path, runs, runs[:1])
    other = Settings("experiment 1", Backend.SIM, is_quick=False)
    with pytest.raises(StoreError, match="is_quick = True, not False; name another directory"):
        Store(tmp_path, other, runs).__enter__()
    _keep(tmp_path, runs, runs[1:2])  # and it is not locked


def test_two_cannot_add_at_once(tmp_path: Path) -> None:
    runs = load(0).runs(Choices(repetitions=1))
    with (
        Store(tmp_path, SETTINGS, runs),
        pytest.raises(StoreError, match="another process"),
        Store(tmp_path, SETTINGS, runs),
    ):
        pass


def test_finding_results(tmp_path: Path) -> None:
    runs = load(0).runs(Choices(repetitions=1))
    assert find(tmp_path) == []
    with pytest.raises(StoreError, match="has no results"):
        read(tmp_path)
    for name in ("b", "a"):
        _keep(tmp_path / name, runs, runs)
    assert find(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find(tmp_path / "a") == [tmp_path / "a"]
