"""Disks for the virtual machine hold what the directories do that they are made of."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from quicferry_lab.hosts import LabError
from quicferry_lab.vm import find
from quicferry_lab.vm.disk import write_disk

needs_mke2fs = pytest.mark.skipif(
    not (shutil.which("mke2fs") and shutil.which("debugfs")), reason="e2fsprogs is not installed"
)


@needs_mke2fs
@pytest.mark.parametrize(("files", "size"), [(0, 0), (3000, 10), (300, 20_000), (1, 200 << 20)])
def test_a_disk_has_room_for_its_folder(tmp_path: Path, files: int, size: int) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(files):
        path = folder / f"sub-{number % 7}" / f"file-{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes([number % 256]) * size)
    disk = tmp_path / "disk"
    with disk.open("xb") as file:
        write_disk(folder, file.fileno())
    for number in {0, files - 1} if files else ():
        command = ["debugfs", "-R", f"cat /sub-{number % 7}/file-{number}", str(disk)]
        content = subprocess.run(command, capture_output=True, timeout=60, check=True).stdout
        assert content == bytes([number % 256]) * size


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LabError, match="make it: quicferry lab"):
        find()
