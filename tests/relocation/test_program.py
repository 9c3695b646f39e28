"""Programs of an engine are bounded, and their errors are told."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from quicferry.relocation.container.engines.processes import is_alive, memory_of
from quicferry.relocation.container.engines.program import run, start
from quicferry.relocation.errors import EngineError


async def test_the_output_is_returned() -> None:
    assert await run("sh", "-c", "echo out; echo err >&2", limit=10) == "out\n"


async def test_a_failure_is_told_by_its_last_words() -> None:
    with pytest.raises(EngineError, match=r"^sh failed: one \| two$"):
        await run("sh", "-c", "echo one >&2; echo two >&2; exit 3", limit=10)
    with pytest.raises(EngineError, match="exit status 3"):
        await run("sh", "-c", "exit 3", limit=10)


async def test_a_program_that_is_not_there() -> None:
    with pytest.raises(EngineError, match="no program quicferry-none; install it"):
        await run("quicferry-none", limit=10)


async def test_what_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    child = tmp_path / "pid"
    script = f"sleep 60 & echo $! > {child}; wait"
    with pytest.raises(EngineError, match=r"was not done within 0\.5 s"):
        await run("sh", "-c", script, limit=0.5)
    pid = int(child.read_text())
    async with asyncio.timeout(10):
        while is_alive(pid):
            await asyncio.wait([asyncio.ensure_future(asyncio.sleep(0.01))])


async def test_what_it_leaves_running_is_not_waited_for() -> None:
    began_at = time.monotonic()
    out = await run("sh", "-c", "sleep 20 & echo $!", limit=10)
    assert time.monotonic() - began_at < 10
    os.kill(int(out), 9)


async def test_files_that_it_makes_are_for_nobody_else(tmp_path: Path) -> None:
    await run("touch", str(tmp_path / "image"), limit=10)
    assert (tmp_path / "image").stat().st_mode & 0o777 == 0o600


async def test_memory_of_a_process_and_its_children() -> None:
    program = await start("sh", "-c", "sleep 60 & wait")
    try:
        assert 0 < memory_of(program.process.pid) < memory_of(os.getpid())
    finally:
        program.kill()
    with pytest.raises(EngineError, match="exit status -9"):
        await program.wait()
    assert memory_of(program.process.pid) == 0
