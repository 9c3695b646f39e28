"""`quicferry lab` where the machine has not what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from quicferry_lab.hosts import LabError, needs, rootfs

QUICFERRY = "quicferry.cli"


def lab(*arguments: str, directory: Path, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", QUICFERRY, "lab", *arguments],
        env={**os.environ, rootfs.DIRECTORY_VARIABLE: str(directory), "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_calibrate_without_a_system_says_how_to_make_it(tmp_path: Path) -> None:
    done = lab("calibrate", directory=tmp_path, path=os.environ["PATH"])
    assert done.returncode == 1
    assert "quicferry lab setup" in done.stderr


def test_setup_says_what_the_machine_needs(tmp_path: Path) -> None:
    # With such a PATH there is no debootstrap, and no apt-get to install it.
    done = lab("setup", directory=tmp_path / "lab", path=str(tmp_path))
    assert done.returncode == 1
    assert ("debootstrap" if os.geteuid() == 0 else "use sudo") in done.stderr
    assert not (tmp_path / "lab").exists()


def test_clean_without_anything_to_remove_succeeds(tmp_path: Path) -> None:
    assert lab("clean", directory=tmp_path / "none", path=os.environ["PATH"]).returncode == 0


def test_what_is_missing_is_told_by_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert {"debootstrap", "util-linux", "iproute2"} <= set(needs.missing())
    for program in ("debootstrap", "unshare", "ip"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    assert not {"debootstrap", "util-linux", "iproute2"} & set(needs.missing())


def test_the_laboratory_cannot_be_removed_while_it_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(rootfs.DIRECTORY_VARIABLE, str(tmp_path))
    (tmp_path / "root-x").mkdir()
    with rootfs.in_use(), rootfs.in_use(), pytest.raises(LabError, match="laboratory is open"):
        rootfs.clean()
    assert (tmp_path / "root-x").exists()
    rootfs.clean()
    assert not (tmp_path / "root-x").exists()
