"""What is written where nobody can read it, or where there is no room."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from cli.command_line import CLI, DEMO_APP, LIMIT, RunningServer, finish, run, start_server

FULL = Path("/dev/full")
SERVING = ["--json", "--bind", "127.0.0.1:0", "--until-eof"]


def shell(line: str, **options: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which ``$Q`` is the command."""
    return subprocess.run(
        ["bash", "-c", line],
        env={**os.environ, "Q": " ".join(CLI), **options},
        capture_output=True,
        timeout=LIMIT,
        check=False,
        text=True,
    )


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("-o /dev/full", "cannot write /dev/full: No space left on device"),
        ("--json -o /dev/full", "cannot write /dev/full: No space left on device"),
        ("> /dev/full", "cannot write standard output: No space left on device"),
        ("--json > /dev/full", "cannot write standard output: No space left on device"),
        (">&-", "cannot write standard output: closed"),
        ("-o /nowhere/file", "cannot write /nowhere/file: No such file or directory"),
        ("-o /proc/file", "cannot write /proc/file: No such file or directory"),
        ("--qlog /proc/traces", "cannot write traces into /proc/traces: No such file"),
        ("--qlog /dev/null", "cannot write traces into /dev/null: File exists"),
    ],
)
def test_fetch_cannot_write(shared_server: RunningServer, ending: str, message: str) -> None:
    done = shell(f"$Q fetch {shared_server.url()} --insecure {ending}")
    assert done.returncode == 23
    assert done.stderr.startswith(f"Error: {message}")
    assert done.stderr.count("\n") == 1


def test_fetch_for_a_reader_that_leaves(shared_server: RunningServer) -> None:
    url = shared_server.url("/bytes/5000000")
    done = shell(f"$Q fetch {url} --insecure | head -c 1000 | wc -c; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stdout.strip()) == (23, "1000")
    assert done.stderr == "Error: nobody reads standard output any more\n"


def test_authorities_that_cannot_be_read(shared_server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    done = run("fetch", shared_server.url(), "--ca", tmp_path / "ca.pem")
    assert done.returncode == 77
    assert (
        done.stderr == f"Error: --ca: {tmp_path / 'ca.pem'} holds no certificate in PEM\n".encode()
    )


def test_secrets_that_cannot_be_written(shared_server: RunningServer) -> None:
    line = f"$Q fetch {shared_server.url()} --insecure"
    done = shell(line, SSLKEYLOGFILE=str(FULL))
    assert done.returncode == 0
    warning = "cannot write the file that SSLKEYLOGFILE names: No space left on device"
    assert done.stderr == f"WARNING quicferry.cli: {warning}\n"
    done = shell(line, SSLKEYLOGFILE="/nowhere/secrets")
    assert done.returncode == 1
    assert done.stderr == (
        "Error: cannot write the file that SSLKEYLOGFILE names: No such file or directory\n"
    )


@pytest.mark.parametrize(
    "command", ["--version", "--help", "fetch --help", "ctl --socket {} status"]
)
def test_others_cannot_write(shared_server: RunningServer, command: str) -> None:
    line = f"$Q {command.format(shared_server.socket)}"
    done = shell(f"{line} > /dev/full")
    assert (done.returncode, done.stderr) == (1, "Error: No space left on device\n")
    done = shell(f"{line} | true; exit ${{PIPESTATUS[0]}}")
    assert done.returncode in (0, 1)  # whoever was first
    assert done.stderr == ""
    done = shell(f"{line} >&-")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_server_goes_on_when_nobody_listens(tmp_path: Path, stream: str) -> None:
    server = start_server(tmp_path, "--log-level", "debug")
    assert server.process.stdout is not None
    assert server.process.stderr is not None
    (server.process.stdout if stream == "stdout" else server.process.stderr).close()
    for _ in range(2):
        assert server.fetch("/").returncode == 0  # which it tells with --json
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(LIMIT) == 0


def test_a_server_that_cannot_say_that_it_listens(tmp_path: Path) -> None:
    with FULL.open("wb") as full:
        server = subprocess.Popen(
            [*CLI, "serve", DEMO_APP, *SERVING, "--socket", str(tmp_path / "s")],
            stdin=subprocess.PIPE,
            stdout=full,
            stderr=subprocess.PIPE,
        )
        status, _, err = finish(server)
    assert status == 0
    assert b"cannot write standard output: No space left on device" in err
    assert b"Traceback" not in err


@pytest.mark.parametrize("given", ["</dev/null", "<&-", "< empty"])
def test_a_server_whose_input_is_at_its_end(tmp_path: Path, given: str) -> None:
    (tmp_path / "empty").touch()
    line = f"cd {tmp_path}; $Q serve {DEMO_APP} {' '.join(SERVING)} --socket s {given}"
    done = shell(line)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '{"event": "stopped"}'
