"""`quicferry image`: help, wrong usage, and what it says when it cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from quicferry.cli import main


def test_help_teaches() -> None:
    result = CliRunner().invoke(main, ["image", "--help"], prog_name="quicferry")
    assert result.exit_code == 0
    assert "Examples:\n  quicferry image" in result.output
    assert "The image holds it then" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument"),
        (["no-colon", "--out", "x"], "must be module:attribute"),
        (["a:", "--out", "x"], "must be module:attribute"),
        (["a:b"], "needs --out"),
        (["a:b", "--format", "podman"], "needs --name"),
        (["a:b", "--format", "podman", "--name", "a", "--out", "x"], "no --out"),
        (["a:b", "--format", "floppy"], "floppy"),
        (["a:b", "--out", "x", "--cert", __file__], "--cert and --key belong together"),
        (["a:b", "--out", "x", "--source", "/nowhere"], "does not exist"),
        (["a:b", "--out", "x", "--base", __file__], "is a file"),
        (["a:b", "--out", "x", "--bind", "here"], "is not an address"),
        (["a:b", "--out", "x", "--user", "-1"], "-1"),
        (["a:b", "--out", "x", "--", "--socket", "/run/x"], "--socket cannot follow"),
        (["a:b", "--out", "x", "--", "--bind", "1.2.3.4:5"], "--bind cannot follow"),
        (["a:b", "--out", "x", "--", "--key", __file__], "--key cannot follow"),
        (["a:b", "--out", "x", "--", "--protocols", "teleport"], "unknown migration protocol"),
        (["a:b", "--out", "x", "--", "--pool", "1.2.3.4:5", "--pool", "x"], "is not an address"),
        (["a:b", "--out", "x", "--", "--teleport"], "No such option"),
        (["a:b", "--out", "x", "--", "c:d"], "only options of `quicferry serve`"),
        (["a:b", "--out", "x", "c:d"], "only options of `quicferry serve`"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_usage(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["image", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_what_it_cannot_do_is_said_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    result = CliRunner().invoke(main, ["image", "a:b", "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert "not an empty directory; remove it or choose another" in result.stderr
    assert result.stdout == ""


def test_a_name_is_taken_from_the_directory(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["image", "a:b", "--out", str(tmp_path / "not fit")])
    assert result.exit_code == 1
    assert "'not fit' cannot be the name of a container" in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_only_root_can(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["image", "a:b", "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "only root" in result.stderr
