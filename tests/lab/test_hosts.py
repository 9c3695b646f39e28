"""Hosts: what is in them, what can be run there, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import time
from asyncio.subprocess import PIPE
from contextlib import suppress
from pathlib import Path

import pytest
from quicferry_lab.hosts import Lab, LabError, rootfs

import quicferry

pytestmark = pytest.mark.lab

KILLED_LAB = """
import asyncio
from quicferry_lab.hosts import Lab, PathSpec

async def main():
    async with Lab() as lab:
        one, two = await lab.add_host("one"), await lab.add_host("two", clock_offset=3600)
        await lab.connect(one, two, PathSpec(rtt_ms=18))
        await one.start(["sleep", "1000"])
        # Has lost its parent when it is looked for.
        await two.run(["sh", "-c", "setsid sleep 1001 >/dev/null 2>&1 &"])
        print(one.pid, two.pid, flush=True)
        await asyncio.sleep(1000)

asyncio.run(main())
"""


async def test_a_host_has_its_own_name_system_and_processes() -> None:
    async with Lab() as lab:
        host = await lab.add_host("one")
        assert (await host.run(["hostname"])).stdout == "one\n"
        assert "trixie" in (await host.run(["cat", "/etc/os-release"])).stdout
        listed = (await host.run(["ps", "-e", "-o", "pid="])).stdout.split()
        assert "1" in listed
        assert len(listed) < 6
        assert (await host.run(["ip", "-o", "link"])).stdout.count("\n") == 1
        assert (await host.run(["sh", "-c", "echo $USER$SSH_AUTH_SOCK"])).stdout == "\n"


async def test_the_quicferry_that_runs_here_runs_there() -> None:
    async with Lab() as lab:
        host = await lab.add_host("one")
        done = await host.run(["quicferry", "--version"])
        assert quicferry.__version__ in done.stdout
        done = await host.attempt(["touch", "/opt/quicferry/src/quicferry/written"])
        assert "Read-only" in done.stderr


async def test_criu_and_runc_work_in_a_host() -> None:
    async with Lab() as lab:
        host = await lab.add_host("one")
        assert "Looks good" in (await host.run(["criu", "check"])).stdout
        await host.run(["runc", "list"])


async def test_hosts_share_no_files_and_leave_the_system_as_it_is() -> None:
    async with Lab() as lab:
        one, two = await lab.add_host("one"), await lab.add_host("two")
        await one.run(["sh", "-c", "echo mine > /etc/own; echo mine > /run/own"])
        assert (one.root / "etc/own").read_text() == "mine\n"
        assert not (two.root / "etc/own").exists()
        assert not (two.root / "run/own").exists()
    async with Lab() as lab:
        assert not ((await lab.add_host("one")).root / "etc/own").exists()


async def test_run_has_an_input_of_its_own_and_tells_what_went_wrong() -> None:
    async with Lab() as lab:
        host = await lab.add_host("one")
        assert (await host.run(["cat"], stdin=b"text")).stdout == "text"
        assert (await host.run(["printenv", "A"], env={"A": "b"})).stdout == "b\n"
        with pytest.raises(LabError, match=r"on one failed with status 3: a word"):
            await host.run(["sh", "-c", "echo a word >&2; exit 3"])
        assert (await host.attempt(["sh", "-c", "exit 3"])).returncode == 3
        with pytest.raises(LabError, match="no-such-program cannot be run"):
            await host.run(["no-such-program"])


async def test_a_program_that_takes_too_long_is_killed() -> None:
    async with Lab() as lab:
        host = await lab.add_host("one")
        with pytest.raises(LabError, match=r"not done within 0\.5 s"):
            await host.run(["sleep", "1000"], limit=0.5)
        await gone_from(host.root, "sleep")


async def test_what_a_program_leaves_running_does_not_hold_run_up() -> None:
    async with Lab() as lab:
        host = await lab.add_host("one")
        done = await host.run(["sh", "-c", "sleep 1000 & echo started"], limit=10)
        assert done.stdout == "started\n"


async def test_signals_are_passed_on_and_the_end_is_the_programs() -> None:
    async with Lab() as lab:
        host = await lab.add_host("one")
        for script, number, expected in (
            ("trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done", signal.SIGTERM, 5),
            ("echo ready; exec sleep 1000", signal.SIGTERM, -signal.SIGTERM),
            ("echo ready; exec sleep 1000", signal.SIGKILL, -signal.SIGKILL),
            (
                "trap 'kill -9 $$' TERM; echo ready; while :; do sleep 0.01; done",
                signal.SIGTERM,
                -9,
            ),
        ):
            process = await host.start(["bash", "-c", script], stdout=PIPE)
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
            process.send_signal(number)
            async with asyncio.timeout(10):
                assert await process.wait() == expected
        await gone_from(host.root, "sleep")


async def test_a_host_can_have_another_clock() -> None:
    async with Lab() as lab:
        ahead = await lab.add_host("ahead", clock_offset=3600)
        same = await lab.add_host("same")
        ask = ["python3", "-c", "import time; print(time.monotonic())"]
        for host, offset in ((ahead, 3600), (same, 0), (ahead, 3600)):
            before = time.monotonic()
            there = float((await host.run(ask)).stdout)
            assert before + offset <= there <= time.monotonic() + offset


async def test_run_can_be_small() -> None:
    async with Lab() as lab:
        host = await lab.add_host("one", run_size=1 << 20)
        done = await host.attempt(["dd", "if=/dev/zero", "of=/run/big", "bs=1M", "count=2"])
        assert "No space left" in done.stderr


async def test_hosts_can_be_made_at_the_same_time() -> None:
    async with Lab() as lab:
        hosts = await asyncio.gather(*(lab.add_host(name) for name in ("one", "two", "three")))
        assert [str(host.address) for host in hosts] == ["10.77.0.1", "10.77.0.2", "10.77.0.3"]


async def test_a_taken_name_is_refused() -> None:
    async with Lab() as lab:
        await lab.add_host("one")
        with pytest.raises(LabError, match="taken"):
            await lab.add_host("one")


@pytest.mark.parametrize("name", ["", "Upper", "a" * 12, "to/host", "-x"])
async def test_names_that_do_not_fit_are_refused(name: str) -> None:
    async with Lab() as lab:
        with pytest.raises(LabError, match="not a name"):
            await lab.add_host(name)


async def test_a_root_that_is_none_fails_with_what_is_wrong(tmp_path: Path) -> None:
    async with Lab(tmp_path) as lab:
        with pytest.raises(LabError, match="cannot be made"):
            await lab.add_host("one")


async def test_nothing_is_left_after_the_laboratory() -> None:
    before = lab_groups()
    async with Lab() as lab:
        one, two = await lab.add_host("one"), await lab.add_host("two")
        await lab.connect(one, two)
        await one.start(["sleep", "1000"])
        await two.run(["sh", "-c", "setsid sleep 1001 >/dev/null 2>&1 &"])
        spaces = namespaces(one.pid) | namespaces(two.pid)
        assert len(users_of(spaces)) >= 5
    assert not users_of(spaces)
    assert lab_groups() <= before


async def test_frozen_processes_end_too() -> None:
    before = lab_groups()
    async with Lab() as lab:
        host = await lab.add_host("one")
        group = host.root / "sys/fs/cgroup/frozen"
        if not (group.parent / "cgroup.procs").exists():
            pytest.skip("this machine has no control groups of version 2")
        group.mkdir()
        join = "echo $$ > /sys/fs/cgroup/frozen/cgroup.procs; echo ready; exec sleep 1000"
        process = await host.start(["sh", "-c", join], stdout=PIPE)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        (group / "cgroup.freeze").write_text("1")
        spaces = namespaces(host.pid)
        with pytest.raises(LabError, match="laboratory is open"):
            rootfs.clean()
    assert not users_of(spaces)
    assert lab_groups() <= before


async def test_nothing_is_left_when_the_laboratory_is_killed() -> None:
    lab = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED_LAB, stdout=PIPE)
    assert lab.stdout is not None
    try:
        async with asyncio.timeout(40):
            hosts = [int(word) for word in (await lab.stdout.readline()).split()]
        assert len(hosts) == 2
        spaces = namespaces(hosts[0]) | namespaces(hosts[1])
        everything = {*users_of(spaces), *descendants(lab.pid)}
        assert len(everything) >= 7  # 2 unshare, 2 first processes, stand-in, 2 sleep; a router
        descriptors = [os.pidfd_open(pid) for pid in everything]
    finally:
        lab.kill()
        await lab.wait()
    for descriptor in descriptors:
        ended, _, _ = await asyncio.to_thread(select.select, [descriptor], [], [], 10)
        os.close(descriptor)
        assert ended
    assert not users_of(spaces)


def namespaces(pid: int) -> set[Path]:
    """Return the namespaces of a process that are not ours."""
    kinds = ("mnt", "net", "pid", "uts", "ipc")
    return {
        Path(f"/proc/{pid}/ns/{kind}").readlink()
        for kind in kinds
        if Path(f"/proc/{pid}/ns/{kind}").readlink() != Path(f"/proc/self/ns/{kind}").readlink()
    }


def users_of(spaces: set[Path]) -> set[int]:
    """Return the processes that are in one of the namespaces."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if namespaces(int(folder.name)) & spaces:
                found.add(int(folder.name))
    return found


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    with suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found |= {int(child), *descendants(int(child))}
    return found


def lab_groups() -> set[Path]:
    return {
        path
        for tree in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
        for path in tree.glob(f"quicferry-lab-{os.getpid()}-*")
    }


async def gone_from(root: Path, name: str) -> None:
    """Wait until no process of this name is left in a host."""
    async with asyncio.timeout(5):
        while name in names_of_processes(root):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


def names_of_processes(root: Path) -> set[str]:
    found = set()
    for path in (root / "proc").glob("[0-9]*/comm"):
        with suppress(OSError):
            found.add(path.read_text().strip())
    return found
