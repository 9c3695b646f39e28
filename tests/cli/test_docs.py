"""The programs in the documentation run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from cli.command_line import (
    CLI,
    DEMO_APP,
    LIMIT,
    Completed,
    RunningServer,
    finish,
    moved,
    read_json,
    start,
)

from quicferry.relocation import Step
from quicferry.server import self_signed

DOCS = Path(__file__).parents[2] / "docs"
STEPS = [step.value for step in Step if step is not Step.PRE_COPY]


def programs(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE)


def commands(page: str, *names: str) -> list[list[str]]:
    """Return the arguments of the commands with these names that a page shows, in order."""
    form = r"^```console\n(.*?)^```"
    text = "\n".join(re.findall(form, (DOCS / page).read_text(), re.DOTALL | re.MULTILINE))
    lines = re.findall(r"^\$ quicferry (.*)", text.replace("\\\n", " "), re.MULTILINE)
    return [shlex.split(line) for line in lines if line.startswith(names)]


class Shown:
    """Runs commands as a page shows them, with other names for hosts and ports.

    Args:
        folder: Where they run.
        names: What is to stand for words, or the ends of them.
    """

    def __init__(self, folder: Path, names: dict[str, str]) -> None:
        self.folder = folder
        self.names = names

    def arguments(self, shown: list[str]) -> list[str]:
        return [self.names.get(word, word) for word in shown]

    def run(self, shown: list[str], *more: str, data: bytes = b"") -> Completed:
        return subprocess.run(
            [*CLI, *self.arguments(shown), *more],
            cwd=self.folder,
            input=data,
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )

    def start(self, shown: list[str], *more: str) -> subprocess.Popen[bytes]:
        return start(*self.arguments(shown), "--json", "--until-eof", *more, cwd=self.folder)


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


def test_the_handover_of_the_tutorial(server: RunningServer, tmp_path: Path) -> None:
    init, run, migrate = commands("tutorial.md", "agent", "migrate")
    assert run[2] == DEMO_APP
    shown = Shown(tmp_path, {"127.0.0.2:4434": "127.0.0.2:0"})
    made = shown.run(init)
    assert made.returncode == 0, made.stderr.decode()
    agent = shown.start(run, "--socket", "agent.sock")
    shown.names["127.0.0.2:4434"] = read_json(agent)["address"]
    done = shown.run(migrate, "--from", str(server.socket))
    assert done.returncode == 0, done.stderr.decode()
    assert f"moved from {server.address} to {moved(server)}" in done.stdout.decode()
    told = [line.split()[0] for line in done.stderr.decode().splitlines()]
    assert told == STEPS[: len(told)]
    assert told
    assert finish(server.process)[0] == 0
    assert finish(agent)[0] == 0


def test_hand_over(tmp_path: Path) -> None:
    page = "how-to/hand-over.md"
    init, run, migrate, rehearse = commands(page, "agent", "migrate")
    (program,) = programs(page)
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "shop.py").write_text("from quicferry_lab.demo.app import app\n")
    certificate = self_signed(["127.0.0.1"])
    for name, pem in zip(("fullchain.pem", "privkey.pem"), certificate, strict=True):
        (tmp_path / name).write_bytes(pem)
    certified = ("--cert", "fullchain.pem", "--key", "privkey.pem")
    shown = Shown(tmp_path, {"192.0.2.7:4434": "127.0.0.2:0", "192.0.2.7:443": "127.0.0.2"})
    for name, host in (("alpha.example", "127.0.0.1"), ("beta.example", "127.0.0.2")):
        shown.names |= {name: host, f"identities/{name}": f"identities/{host}"}
    made = shown.run(init)
    assert made.returncode == 0, made.stderr.decode()

    agent = shown.start(run, "--socket", "agent.sock")
    listening = read_json(agent)["address"]
    serve = ["serve", run[2], "--bind", "127.0.0.1:0", "--socket", "server.sock", *certified]
    server = shown.start(serve)
    port = read_json(server)["address"].rpartition(":")[2]
    shown.names |= {
        "127.0.0.2:4434": listening,
        "beta.example:4434": listening,
        "192.0.2.7:443": f"127.0.0.2:{port}",
    }
    source = ("--from", "server.sock")
    given_up = shown.run(rehearse, *source, data=b"\n")
    assert given_up.returncode == 1
    assert given_up.stderr.decode().startswith("offer waits: press Enter to go on, or Ctrl-C")
    assert "the server and its clients go on" in given_up.stderr.decode()
    done = shown.run(migrate, *source)
    assert done.returncode == 0, done.stderr.decode()
    told = [line.split()[0] for line in done.stderr.decode().splitlines()]
    assert told == STEPS[: len(told)]
    assert told
    assert finish(server)[0] == 0

    back = shown.start(
        ["agent", "run", run[2], "--listen", "127.0.0.1:0", "--socket", "back.sock", *certified],
        *("--identity", "identities/127.0.0.1"),
    )
    there = ("agent.sock", read_json(back)["address"], "identities/127.0.0.2")
    said = run_program(tmp_path, *there, f"127.0.0.1:{port}")
    assert said == f"0 connections moved to 127.0.0.1:{port}\n"
    assert finish(agent)[0] == 0
    assert finish(back)[0] == 0


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("how-to/*.md")))
def test_every_page_is_reached_from_the_tutorial(page: str) -> None:
    assert f"how-to/{page}" in (DOCS / "tutorial.md").read_text()
