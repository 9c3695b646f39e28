"""`quicferry doctor`, as a shell runs it, where no program for containers is found."""

from __future__ import annotations

import json
import os
from pathlib import Path

from cli.command_line import run


def without_programs(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "PATH": str(tmp_path)}


def test_rebind_and_handover_need_nothing(tmp_path: Path) -> None:
    for technique in ("rebind", "handover"):
        done = run("doctor", "--technique", technique, "--json", env=without_programs(tmp_path))
        assert (done.returncode, done.stderr) == (0, b"")
        (line,) = done.stdout.splitlines()
        told = json.loads(line)
        assert (told["technique"], told["engine"]) == (technique, None)
        assert told["outcome"] == "ok"


def test_what_is_missing_is_told_with_its_remedy(tmp_path: Path) -> None:
    done = run("doctor", env=without_programs(tmp_path))
    assert (done.returncode, done.stderr) == (1, b"")
    lines = done.stdout.decode().splitlines()
    assert any(line.split() == ["rebind", "-", "works"] for line in lines)
    assert any(line.startswith("CRIU: install CRIU 4.2 or newer") for line in lines)
    assert "runc: apt-get install runc (version 1.1 or newer)" in lines
    assert not list(tmp_path.iterdir())


def test_json_is_one_object_for_each_way(tmp_path: Path) -> None:
    done = run("doctor", "--engine", "runc", "--json", "--no-test", env=without_programs(tmp_path))
    assert done.returncode == 1
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["technique"] for each in told] == ["cold", "pre-copy", "post-copy", "hybrid"]
    for each in told:
        assert (each["engine"], each["outcome"]) == ("runc", "missing")
        by_name = {finding["name"]: finding for finding in each["findings"]}
        assert by_name["CRIU"]["says"] == "there is no program criu"
        assert by_name["CRIU"]["outcome"] == "missing"
        assert by_name["CRIU"]["remedy"]


def test_a_way_that_there_is_not_is_wrong_usage() -> None:
    done = run("doctor", "--technique", "post-copy", "--engine", "podman")
    assert done.returncode == 2
    assert b"podman cannot do post-copy; use runc" in done.stderr
