"""Sweeps: which runs there are, and that a cluster carries them out as one process does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from click.testing import CliRunner
from distributed import Client, WorkerPlugin
from quicferry_lab.cli.sweep import sweep
from quicferry_lab.evaluation import cluster, store
from quicferry_lab.evaluation.perform import keep_missing, perform
from quicferry_lab.evaluation.run import Backend, Run, Script
from quicferry_lab.evaluation.store import Settings, Store
from quicferry_lab.evaluation.sweep import Axes, SweepError, plan

import quicferry

SCRIPT = ("--script", "first-request", "--pause", "0.1")
AXES = Axes(Script.FIRST_REQUEST, ("explicit", "symmetric"), pauses=(0.1,), seeds=(1, 2))
TABLES = [f"{name}.parquet" for name in store.TABLES]
LIMIT = 60


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "quicferry.cli", "lab", "sweep", *map(str, arguments)]


def contents(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in TABLES]


def carry_out(client: Client, runs: Sequence[Run], folder: Path) -> list[int]:
    """Carry out runs; return how many were under way when each result came."""
    under_way: list[int] = []
    with Store(folder, Settings("sweep", Backend.SIM), runs) as kept:
        keep_missing(
            kept,
            runs,
            lambda missing: cluster.perform_on(client, missing),
            lambda result: under_way.append(len(client.futures)),
        )
    return under_way


def in_this_process(runs: Sequence[Run], folder: Path) -> None:
    with Store(folder, Settings("sweep", Backend.SIM), runs) as kept:
        for each in runs:
            kept.add(perform(each))
        kept.complete()


def problems(folder: Path) -> list[str]:
    return store.read(folder).runs["problems"].to_list()


class Deadly(WorkerPlugin):
    """Ends its worker's process as soon as that carries out one run."""

    def __init__(self, run: Run) -> None:
        self._word = f"run-{run.key}-"

    def transition(self, key: Any, start: Any, finish: Any, **options: Any) -> None:
        if finish == "executing" and str(key).startswith(self._word):
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_sweep_is_the_product_of_its_lists() -> None:
    planned = plan(Axes(rtts=((18, 18), (122, 18)), losses=(0, 1.5), clients=(1, 3), seeds=(4, 9)))
    assert planned.left_out == 0
    assert len(planned.runs) == len({run.key for run in planned.runs}) == 16
    assert [run.seed for run in planned.runs] == [4] * 8 + [9] * 8
    first = planned.runs[0]
    assert (first.script, first.policy, first.clients) == (Script.OVER_TIME, "eager", 1)
    assert {(run.source_rtt_ms, run.destination_rtt_ms) for run in planned.runs} == {
        (18.0, 18.0),
        (122.0, 18.0),
    }


def test_a_run_is_the_same_one_in_every_sweep() -> None:
    small = plan(Axes(losses=(1.5,), seeds=(3,)))
    large = plan(Axes(losses=(0, 1.5, 3), seeds=(1, 2, 3), techniques=("cold", "handover")))
    assert small.runs[0] in large.runs


@pytest.mark.parametrize(
    ("axes", "runs", "left_out"),
    [
        (Axes(protocols=("explicit", "symmetric"), policies=("eager", "reactive")), 3, 1),
        (
            Axes(protocols=("symmetric",), pool_sizes=(1, 3), schedulers=("random", "parallel")),
            1,
            3,
        ),
        (Axes(protocols=("pool-of-addresses",), pool_sizes=(1, 3), policies=("eager", "x")), 2, 2),
        (Axes(techniques=("cold", "handover"), memories=(0, 100)), 3, 1),
        (Axes(Script.FIRST_REQUEST, clients=(1, 30), seeds=(1, 2)), 2, 2),
        (Axes(losses=(0, 0.0)), 1, 1),
    ],
)
def test_what_makes_no_sense_is_left_out(axes: Axes, runs: int, left_out: int) -> None:
    planned = plan(axes)
    assert (len(planned.runs), planned.left_out) == (runs, left_out)


def test_a_sweep_of_nothing_is_an_error() -> None:
    with pytest.raises(SweepError, match="nothing is left"):
        plan(Axes(memories=(7,)))
    with pytest.raises(SweepError, match="first-request"):
        plan(Axes(Script.FOLLOW))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--protocol", "explicit,implicit"), "'implicit' is none of explicit"),
        (("--rtt", "18:20:22"), "two like 122:18"),
        (("--rate", "0"), "positive"),
        (("--loss", "101"), "from 0 to 100"),
        (("--seeds", "5..3"), "'3' is not a whole number, 5 or more"),
        (("--seeds", "0"), "1 or more"),
        (("--pool-size", "8"), "1 to 7"),
        (("--scheduler", "tcp://127.0.0.1:1", "--workers", "2"), "not for --scheduler"),
    ],
)
def test_wrong_lists_are_wrong_usage(arguments: Sequence[str], said: str) -> None:
    done = CliRunner().invoke(sweep, list(arguments))
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())


def test_what_would_be_run_can_be_seen() -> None:
    arguments = ["--policy", "eager,reactive", "--rtt", "18,122:18", "--seeds", "1..3,7"]
    done = CliRunner().invoke(sweep, [*arguments, "--dry-run"])
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) == 3 * 2 * 4
    assert "left out" in done.stderr


def test_two_processes_find_what_one_finds_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    runs = plan(replace(AXES, seeds=(1, 2, 3, 4))).runs
    before = children(psutil.Process())
    in_this_process(runs, tmp_path / "one")
    with cluster.local_cluster(2) as client:
        carry_out(client, runs[2:3], tmp_path / "two")
        under_way = carry_out(client, runs, tmp_path / "two")
        processes = [psutil.Process(), *children(psutil.Process())]
        listening = {
            connection.laddr.ip
            for process in processes
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert problems(tmp_path / "one") == [""] * len(runs)
    assert len(under_way) == len(runs) - 1
    assert max(under_way) <= 2 * 2
    assert listening == {"127.0.0.1"}
    assert list((tmp_path / "temporary").iterdir()) == []
    assert children(psutil.Process()) <= before
    assert capfd.readouterr() == ("", "")


def test_a_run_that_fails_and_one_whose_workers_die_are_kept_as_failed(tmp_path: Path) -> None:
    axes = Axes(AXES.script, AXES.protocols, pauses=AXES.pauses, losses=(0, 100))
    runs = plan(axes).runs
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        cluster.local_cluster(1) as client,
    ):
        client.register_plugin(Deadly(runs[0]))
        carry_out(client, runs, tmp_path / "out")
    killed, lossy, well, also_lossy = problems(tmp_path / "out")
    assert killed == "KilledWorker: 2 workers died while they carried it out"
    assert "handshake" in lossy
    assert "handshake" in also_lossy
    assert well == ""


def test_a_sweep_goes_on_after_ctrl_c(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        command(*SCRIPT, "--seeds", "1..5000", "--workers", "1", "--out", out),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    with ended(process):
        wait_for(lambda: any((out / "parts").glob("runs-*.parquet")))
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=LIMIT)
    assert (process.returncode, said.splitlines()[-1]) == (130, "interrupted")
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == [out]
    done = store.read(out).runs["run"].to_list()
    last = max(store.read(out).runs["seed"]) + 1
    again = CliRunner().invoke(
        sweep, [*SCRIPT, "--seeds", f"1..{last}", "--workers", "1", "--out", str(out)]
    )
    assert again.exit_code == 0, again.output
    assert f"{len(done)} of {2 * last} runs are here already" in again.stderr
    found = store.read(out).runs["run"].to_list()
    assert set(done) < set(found)
    assert len(found) == len(set(found)) == 2 * last


def test_a_cluster_that_is_there_is_used_and_left(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(Path(quicferry.__file__).parent, other / "quicferry")
    with (other / "quicferry/protocol/table.py").open("a") as file:
        file.write("# Not the same.\n")
    runs = plan(AXES).runs
    with dask_scheduler(tmp_path) as address:
        with (
            dask_worker(address, tmp_path, PYTHONPATH=str(other)),
            cluster.existing_cluster(address) as client,
            pytest.raises(SweepError, match="a worker has another source of quicferry"),
        ):
            carry_out(client, runs, tmp_path / "other")
        metadata = other / "quicferry-0.0.1.dist-info/METADATA"
        metadata.parent.mkdir()
        metadata.write_text("Name: quicferry\nVersion: 0.0.1\n")
        with (
            dask_worker(address, tmp_path, PYTHONPATH=str(other)),
            pytest.raises(SweepError, match=r"has quicferry 0\.0\.1, and this machine"),
            cluster.existing_cluster(address),
        ):
            pass
        with dask_worker(address, tmp_path):
            done = run(*SCRIPT, "--seeds", "1..2", "--scheduler", address, "--out", tmp_path / "a")
            assert (done.returncode, done.stderr.strip()) == (0, "")
    in_this_process(runs, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_scheduler_that_is_not_there_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "_CONNECT_LIMIT", 0.5)
    with (
        pytest.raises(SweepError, match=r"no scheduler .* at tcp://127.0.0.1:9"),
        cluster.existing_cluster("tcp://127.0.0.1:9"),
    ):
        pass
    assert capfd.readouterr() == ("", "")


@contextmanager
def dask_scheduler(folder: Path) -> Iterator[str]:
    """Start a scheduler, and yield its address."""
    file = folder / "scheduler.json"
    options = ("--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file))
    process = start("scheduler", *options, DASK_TEMPORARY_DIRECTORY=str(folder))
    with ended(process):
        wait_for(file.exists)
        yield json.loads(file.read_text())["address"]


@contextmanager
def dask_worker(address: str, folder: Path, **environment: str) -> Iterator[None]:
    """Have a worker process at a scheduler's disposal."""
    environment["DASK_TEMPORARY_DIRECTORY"] = str(folder)
    with Client(address, timeout=LIMIT, set_as_default=False) as client:
        process = start("worker", address, "--no-nanny", "--nthreads", "2", **environment)
        with ended(process):
            client.wait_for_workers(1, timeout=LIMIT)
            yield
        wait_for(lambda: not client.nthreads())


def start(role: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", f"distributed.cli.dask_{role}", "--no-dashboard"]
    return subprocess.Popen(
        [*program, *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[None]:
    """End a process with the context, if it has not ended by itself."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=LIMIT, check=False
    )


def children(process: psutil.Process) -> set[psutil.Process]:
    """Return its child processes, without the one that multiprocessing keeps until the end."""
    return {
        child for child in process.children() if "resource_tracker" not in " ".join(child.cmdline())
    }
