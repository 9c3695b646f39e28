"""The command, run as a shell runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Completed = subprocess.CompletedProcess[bytes]
CLI = [sys.executable, "-m", "quicferry.cli"]
DEMO_APP = "quicferry_lab.demo.app:app"
LIMIT = 30


def run(*arguments: str | Path, data: bytes = b"", **options: Any) -> Completed:
    """Run the command to its end."""
    command = [*CLI, *map(str, arguments)]
    return subprocess.run(
        command, input=data, capture_output=True, timeout=LIMIT, check=False, **options
    )


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start the command, and let it run."""
    return subprocess.Popen(
        [*CLI, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def read_json(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Read a line of JSON that a process writes."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate(timeout=LIMIT)[1].decode()
    decoded = json.loads(line)
    assert isinstance(decoded, dict)
    return decoded


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    """Wait for the end of a process; return its status and output."""
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


@dataclass
class RunningServer:
    """A server process, and what it said when it was listening."""

    process: subprocess.Popen[bytes]
    address: str
    socket: Path
    certificate: Path

    def url(self, path: str = "/") -> str:
        return f"https://{self.address}{path}"

    def fetch(self, path: str, *arguments: str | Path, **options: Any) -> Completed:
        return run("fetch", self.url(path), "--ca", self.certificate, *arguments, **options)

    def ctl(self, *arguments: str | Path) -> Completed:
        return run("ctl", "--socket", self.socket, *arguments)


def start_server(tmp_path: Path, *arguments: str | Path) -> RunningServer:
    """Start a server with the demo's application on a free port of 127.0.0.1."""
    process = start(
        "serve",
        DEMO_APP,
        "--json",
        "--bind",
        "127.0.0.1:0",
        "--socket",
        tmp_path / "management.sock",
        "--until-eof",
        *arguments,
    )
    said = read_json(process)
    assert said["event"] == "listening"
    return RunningServer(
        process, said["address"], Path(said["management_socket"]), Path(said["certificate"])
    )


def moved(server: RunningServer) -> str:
    """Return the address with the server's port on the other loopback host."""
    return "127.0.0.2:" + server.address.rpartition(":")[2]
