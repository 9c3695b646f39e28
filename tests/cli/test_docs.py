"""The programs in the documentation run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cli.command_line import LIMIT, RunningServer, finish, moved, read_json, start

from quicferry.server import self_signed

DOCS = Path(__file__).parents[2] / "docs"


def programs(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def run_program(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "program.py", *arguments],
        cwd=folder,
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_tutorial(server: RunningServer, tmp_path: Path) -> None:
    (program,) = programs("tutorial.md")
    port = server.address.rpartition(":")[2]
    shorter = program.replace("4433", port).replace("range(100)", "range(3)")
    (tmp_path / "program.py").write_text(shorter)
    lines = run_program(tmp_path).splitlines()
    assert [line for line in lines if line.startswith("200")] == [
        f"200 b'{number}' {server.address}" for number in range(3)
    ]


def test_own_application(tmp_path: Path) -> None:
    application, program = programs("how-to/own-application.md")
    (tmp_path / "hello.py").write_text(application)
    cert, key = self_signed(["127.0.0.1"])
    (tmp_path / "certificate.pem").write_bytes(cert)
    (tmp_path / "key.pem").write_bytes(key)
    process = start(
        *("serve", "hello:app", "--json", "--until-eof", "--bind", "127.0.0.1:0"),
        *("--cert", "certificate.pem", "--key", "key.pem", "--socket", "s.sock"),
        cwd=tmp_path,
    )
    address = read_json(process)["address"]
    port = address.rpartition(":")[2]
    done = subprocess.run(
        [*(sys.executable, "-m", "quicferry.cli", "fetch"), f"https://{address}/", "--insecure"],
        capture_output=True,
        timeout=LIMIT,
        check=False,
    )
    assert done.stdout == b"hello from 127.0.0.1\n"
    finish(process)
    (tmp_path / "program.py").write_text(program.replace("4433", port))
    assert run_program(tmp_path) == f"now at 127.0.0.2:{port}\n"


def test_orchestrate(server: RunningServer, tmp_path: Path) -> None:
    (program,) = programs("how-to/orchestrate.md")
    (tmp_path / "program.py").write_text(program)
    said = run_program(tmp_path, str(server.socket), moved(server))
    assert said.startswith("all have followed after")
    assert json.loads(server.ctl("status", "--json").stdout)["address"] == moved(server)


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("how-to/*.md")))
def test_every_page_is_reached_from_the_tutorial(page: str) -> None:
    assert f"how-to/{page}" in (DOCS / "tutorial.md").read_text()
