"""The demo itself, with real processes and sockets; only what no machine's speed can change."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import pytest

DEMO = [sys.executable, "-m", "quicferry.cli", "demo"]
LIMIT = 90
PATH = ["--rtt", "10", "--rate", "8"]


def run_demo(*arguments: str) -> dict[str, Any]:
    """Run the demo to its end, check that it went well, and return its JSON."""
    done = subprocess.run(
        [*DEMO, "--json", "-", *arguments], capture_output=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    result = json.loads(done.stdout)
    assert result["ok"] is True
    for client in result["clients"]:
        assert client["requests_ok"] > 0
        assert client["requests_failed"] == 0
        assert client["bytes_verified"] > 0
        assert client["status"] == "done"
        if client["protocol"] == "none":
            assert client["reconnects"] == len(result["relocations"])
        else:
            assert client["migrated"] is True
            assert client["switch_to_first_response_ms"] > 0
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize(
    ("protocol", "policy"),
    [
        *product(("explicit", "pool-of-addresses"), ("reactive", "proactive", "eager")),
        ("symmetric", "eager"),  # clients of these two do not look for the server
        ("synchronized-symmetric", "eager"),
    ],
)
def test_every_protocol_and_policy(protocol: str, policy: str) -> None:
    result = run_demo(
        "--protocol", protocol, "--policy", policy, "--clients", "2", "--duration", "2", *PATH
    )
    assert [client["protocol"] for client in result["clients"]] == [protocol] * 2
    assert [client["policy"] for client in result["clients"]] == [policy] * 2
    assert len(result["relocations"]) == 1


def test_mixed_with_everything_on_it(tmp_path: Path) -> None:
    plot, results = tmp_path / "plot.png", tmp_path / "results.json"
    arguments = ["--clients", "6", "--duration", "3", "--plot", str(plot), "--json", str(results)]
    done = subprocess.run(
        [*DEMO, *arguments, "--qlog", str(tmp_path / "qlog"), *PATH],
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    result = json.loads(results.read_text())
    protocols = [client["protocol"] for client in result["clients"]]
    assert len(set(protocols)) == 5
    assert protocols[-1] == "none"
    assert result["clients"][-1]["migrated"] is False
    text = done.stdout.decode()
    assert 'closed with "server migrated"' in text
    assert "▲" in text
    assert plot.read_bytes().startswith(b"\x89PNG")
    # The client without the extension connects twice.
    assert len(list((tmp_path / "qlog").glob("*-client.sqlog"))) == 7
    assert len(list((tmp_path / "qlog").glob("*-server.sqlog"))) == 7
    assert len(list((tmp_path / "qlog").glob("*-server-2.sqlog"))) == 5  # were handed over


def test_loss_and_another_path_after_the_move() -> None:
    arguments = ["--rtt", "20:10", "--rate", "6:8", "--loss", "2:1", "--jitter", "3"]
    run_demo("--clients", "5", "--duration", "3", *arguments)


def test_the_server_can_bind_another_address_instead() -> None:
    result = run_demo("--technique", "rebind", "--clients", "5", "--duration", "3", *PATH)
    assert result["technique"] == "rebind"
    assert "phases_ms" not in result["relocations"][0]


def test_round_trips() -> None:
    result = run_demo("--clients", "5", "--duration", "4", "--round-trips", "2", *PATH)
    assert result["technique"] == "handover"
    ends = [(relocation["from"], relocation["to"]) for relocation in result["relocations"]]
    (source, destination), *_ = ends
    assert source.startswith("127.0.0.1:")
    assert destination.startswith("127.0.0.2:")
    assert ends == [(source, destination), (destination, source)] * 2
    with_extension = [client for client in result["clients"] if client["protocol"] != "none"]
    assert [client["migrations"] for client in with_extension] == [4] * 4


def children(pid: int) -> dict[int, str]:
    """Return the child processes of a process, with their command lines."""
    found = {}
    for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found[int(number)] = Path(f"/proc/{number}/cmdline").read_text().replace("\0", " ")
    return found


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def start_and_wait_until_loaded() -> tuple[subprocess.Popen[bytes], dict[int, str]]:
    process = subprocess.Popen(
        [*DEMO, "--duration", "60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    while b"clients are connected" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    return process, children(process.pid)


def assert_gone(pids: dict[int, str]) -> None:
    deadline = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, pids


@pytest.mark.parametrize(
    ("part", "error"), [(" serve ", b"the server was killed"), ("worker", b"the worker with")]
)
def test_a_process_that_dies_ends_the_demo(part: str, error: bytes) -> None:
    process, started = start_and_wait_until_loaded()
    victim = next(pid for pid, command in started.items() if part in command)
    os.kill(victim, signal.SIGKILL)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert error in err
    assert b"Traceback" not in err
    assert_gone(started)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupting_leaves_no_process_behind(number: signal.Signals, status: int) -> None:
    process, started = start_and_wait_until_loaded()
    assert len(started) >= 2
    process.send_signal(number)
    _, err = process.communicate(timeout=LIMIT)
    assert process.returncode == status
    assert b"Traceback" not in err
    assert_gone(started)


def test_a_killed_demo_leaves_no_process_behind() -> None:
    process, started = start_and_wait_until_loaded()
    process.kill()
    process.communicate()
    assert_gone(started)
