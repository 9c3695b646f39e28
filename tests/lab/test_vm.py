"""The virtual machine boots, runs programs, and leaves nothing behind.

One virtual machine serves most tests: to boot it takes ten seconds.
"""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from quicferry_lab.hosts import LabError
from quicferry_lab.vm import VirtualMachine, find

KILLED = """
import asyncio
from quicferry_lab.vm import VirtualMachine

async def main():
    async with VirtualMachine() as machine:
        print(machine.pid, flush=True)
        await machine.run(["sleep", "100"], limit=100)

asyncio.run(main())
"""
BOOT_LIMIT = 200.0

pytestmark = pytest.mark.lab


def skip_unless_made() -> None:
    try:
        find()
    except LabError as exc:
        pytest.skip(str(exc))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def machine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VirtualMachine]:
    skip_unless_made()
    folder = tmp_path_factory.mktemp("folder")
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_bytes(b"content")
    (folder / "sub" / "file").chmod(0o640)
    (folder / "link").symlink_to("sub/file")
    async with VirtualMachine({"some/folder": folder}) as running:
        yield running


in_a_machine = [
    pytest.mark.timeout(BOOT_LIMIT + 100),
    pytest.mark.asyncio(loop_scope="module"),
]


class TestPrograms:
    pytestmark = in_a_machine

    async def test_the_kernel_can_what_this_one_may_not(self, machine: VirtualMachine) -> None:
        await machine.run(["criu", "check", "--feature", "mem_dirty_track"])
        await machine.run(["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"])
        await machine.run(["tc", "qdisc", "del", "dev", "lo", "root"])

    async def test_what_it_writes_and_how_it_ends(self, machine: VirtualMachine) -> None:
        done = await machine.attempt(["sh", "-c", "echo out; echo err >&2; exit 3"])
        assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
        with pytest.raises(LabError, match="in the virtual machine failed with status 3: err"):
            await machine.run(["sh", "-c", "echo err >&2; exit 3"])
        assert (await machine.attempt(["sh", "-c", "kill -9 $$"])).returncode == -9
        assert "nonesuch cannot be run" in (await machine.attempt(["nonesuch"])).stderr

    async def test_its_input_and_environment(self, machine: VirtualMachine) -> None:
        done = await machine.run(["sh", "-c", "cat; env"], stdin=b"in\n", env={"SOME": "thing"})
        first, *variables = done.stdout.splitlines()
        assert first == "in"
        assert {line.partition("=")[0] for line in variables} >= {"SOME", "PATH", "HOME"}
        assert "SOME=thing" in variables

    async def test_one_that_takes_too_long_is_killed(self, machine: VirtualMachine) -> None:
        with pytest.raises(LabError, match="sleep 98 was not done within 1 s"):
            await machine.run(["sleep", "98"], limit=1)
        assert "sleep 98" not in (await machine.run(["ps", "axo", "args"])).stdout

    async def test_one_that_leaves_something_running(self, machine: VirtualMachine) -> None:
        done = await machine.run(["sh", "-c", "sleep 97 & echo $!"], limit=20)
        await machine.run(["kill", done.stdout.strip()])

    async def test_output_comes_as_it_is_written(self, machine: VirtualMachine) -> None:
        came: list[tuple[bytes, float]] = []
        clock = asyncio.get_running_loop().time

        def note(data: bytes) -> None:
            came.append((data, clock()))

        command = ["sh", "-c", "echo one; sleep 1; echo two"]
        assert await machine.follow(command, note, note) == 0
        assert [data for data, _ in came] == [b"one\n", b"two\n"]
        assert came[1][1] - came[0][1] > 0.5


class TestFiles:
    pytestmark = in_a_machine

    async def test_out_and_in(self, machine: VirtualMachine) -> None:
        content = os.urandom(1 << 20)
        await machine.write("/tmp/file", content)
        assert await machine.read("/tmp/file") == content
        with pytest.raises(LabError, match="No such file"):
            await machine.read("/tmp/none")

    async def test_folders(self, machine: VirtualMachine) -> None:
        assert await machine.read("/mnt/some/folder/link") == b"content"
        told = await machine.run(["stat", "-c", "%a", "/mnt/some/folder/sub/file"])
        assert told.stdout == "640\n"
        assert (await machine.attempt(["touch", "/mnt/some/folder/new"])).returncode == 1

    async def test_its_system_is_not_written_to(self, machine: VirtualMachine) -> None:
        assert "Read-only" in (await machine.attempt(["touch", "/usr/new"])).stderr


@pytest.mark.timeout(BOOT_LIMIT + 50)
async def test_an_end_from_inside_is_told() -> None:
    skip_unless_made()
    async with VirtualMachine() as machine:
        with pytest.raises(LabError, match=r"has ended; it said: [^$]*Power"):
            await machine.run(["sh", "-c", "echo o > /proc/sysrq-trigger; sleep 20"], limit=30)
        with pytest.raises(LabError, match="does not run"):
            await machine.run(["true"])


@pytest.mark.timeout(BOOT_LIMIT + 100)
async def test_by_a_clock_that_counts_the_same_work_takes_the_same_time() -> None:
    skip_unless_made()
    work = "import time; sum(range(3_000_000)); print(time.process_time())"
    async with VirtualMachine(counts=True) as machine:
        await machine.run(["python3", "-c", work])  # from now on its files are in memory
        one, other = [float((await machine.run(["python3", "-c", work])).stdout) for _ in range(2)]
    assert other == pytest.approx(one, rel=0.05)


@pytest.mark.timeout(BOOT_LIMIT + 50)
async def test_nothing_is_left_when_its_process_is_killed() -> None:
    skip_unless_made()
    place = find().folder.parent
    before = set(place.iterdir())
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, stdout=PIPE)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(BOOT_LIMIT):
            emulator = os.pidfd_open(int(await process.stdout.readline()))
    finally:
        process.kill()
        await process.wait()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(emulator, ended.set)
    async with asyncio.timeout(10):
        await ended.wait()
    asyncio.get_running_loop().remove_reader(emulator)
    os.close(emulator)
    assert set(place.iterdir()) <= before
