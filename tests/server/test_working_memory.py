"""A process locks what it needs at once, and not what is large."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

PROGRAM = """
import mmap, re, sys
from pathlib import Path
from quicferry.server import working_memory

def locked():
    maps = Path("/proc/self/smaps").read_text()
    return sum(int(size) for size in re.findall(r"Locked: +(\\d+) kB", maps)) << 10

working_memory.set_apart()
large = mmap.mmap(-1, 2 * working_memory.LARGEST, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
large.write(bytes(2 * working_memory.LARGEST))
may = working_memory.lock()
print(may, locked())
working_memory.unlock()
print(locked())
"""


def test_the_interpreter_is_locked_and_a_table_is_not() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=60
    )
    found = re.fullmatch(r"(True|False) (\d+)\n0\n", done.stdout)
    assert found is not None, done.stdout
    if found[1] == "False":
        pytest.skip("this user may not lock as much memory (RLIMIT_MEMLOCK, CAP_IPC_LOCK)")
    assert 4 << 20 < int(found[2]) < 64 << 20
