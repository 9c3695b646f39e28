"""`quicferry agent`: identities are made, and what it cannot begin with is said in one line."""

from __future__ import annotations

import json
import socket
import stat
from pathlib import Path

import pytest
from cli.command_line import DEMO_APP, finish, run, start

from quicferry.relocation import Identity, make_identities


def test_identities_are_made(tmp_path: Path) -> None:
    done = run("agent", "init", "--out", tmp_path, "alpha.example", "192.0.2.7", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    told = [json.loads(line) for line in done.stdout.splitlines()]
    made = {line["host"]: Path(line["identity"]) for line in told}
    assert made == {host: tmp_path / host for host in ("alpha.example", "192.0.2.7")}
    for folder in made.values():
        assert {path.name for path in folder.iterdir()} == {
            "certificate.pem",
            "key.pem",
            "peers.pem",
        }
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "key.pem").stat().st_mode) == 0o600
        assert Identity.load(folder).directory == folder
    alpha, other = made.values()
    assert (alpha / "peers.pem").read_bytes() == (other / "certificate.pem").read_bytes()


def test_people_are_told_where_the_identities_are(tmp_path: Path) -> None:
    done = run("agent", "init", "alpha", "beta", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"")
    lines = done.stderr.decode().splitlines()
    assert lines[:2] == ["alpha: alpha", "beta: beta"]
    assert lines[2].endswith("where one runs `agent receive`, the others are root")
    assert len(lines) == 3


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        (["alone"], b"two or more"),
        (["twice", "twice"], b"each once"),
        (["there", "other"], b"already"),
        (["..", "other"], b"is not the name"),
    ],
    ids=["too few", "twice", "there already", "no name"],
)
def test_identities_that_are_not_made(tmp_path: Path, hosts: list[str], message: bytes) -> None:
    (tmp_path / "there").mkdir()
    done = run("agent", "init", "--out", tmp_path, *hosts)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count(b"\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_an_agent_needs_an_identity(tmp_path: Path) -> None:
    assert run("agent", "run", DEMO_APP).returncode == 2
    assert run("agent", "run", DEMO_APP, "--identity", tmp_path / "nowhere").returncode == 2
    done = run("agent", "run", DEMO_APP, "--identity", tmp_path)
    assert done.returncode == 1
    assert b"make it with: quicferry agent init" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_directory_that_is_no_bundle(tmp_path: Path) -> None:
    done = run("agent", "receive", "--bundle", tmp_path, "--identity", tmp_path)
    assert done.returncode == 2
    assert b"--container" in done.stderr
    bundle = ("--bundle", tmp_path, "--container", "site")
    done = run("agent", "receive", *bundle, "--identity", tmp_path)
    assert done.returncode == 1
    assert b"is no bundle" in done.stderr
    assert b"quicferry image" in done.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    identity = make_identities(tmp_path, ["127.0.0.1", "127.0.0.2"])["127.0.0.1"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        listen = f"127.0.0.1:{port}"
        done = run("agent", "run", DEMO_APP, "--listen", listen, "--identity", identity)
    assert done.returncode == 1
    assert b"TCP port %d: Address already in use" % port in done.stderr
    assert b"Traceback" not in done.stderr


def test_people_are_told_where_an_agent_listens_until_it_is_stopped(tmp_path: Path) -> None:
    identity = make_identities(tmp_path, ["127.0.0.1", "127.0.0.2"])["127.0.0.1"]
    process = start("agent", "run", DEMO_APP, "--listen", "127.0.0.1:0", "--identity", identity)
    assert process.stderr is not None
    lines = [process.stderr.readline().decode() for _ in range(3)]
    assert "warning: no certificate" in lines[0]
    assert "listening on  127.0.0.1:" in lines[2]
    assert "(TCP), as 127.0.0.1" in lines[2]
    process.terminate()
    status, out, err = finish(process)
    assert (status, out, err) == (0, b"", b"stopped\n")
