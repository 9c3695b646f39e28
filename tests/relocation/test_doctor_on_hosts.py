"""The doctor on hosts of the laboratory, with a real CRIU and real moves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from quicferry_lab.containers.site import SYSCTLS
from quicferry_lab.hosts import Host, Lab

pytestmark = pytest.mark.lab

LIMIT = 60.0
DOCTOR = ("quicferry", "doctor", "--json", "--engine", "runc")


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    async with Lab() as lab:
        patient = await lab.add_host("patient")
        for setting in SYSCTLS:
            await patient.run(["sysctl", "--write", "--quiet", setting])
        yield patient


async def examined(host: Host, technique: str, *before: str) -> tuple[int, dict[str, Any]]:
    """Return the exit status of the doctor on a host, and what it says of runc."""
    done = await host.attempt([*before, *DOCTOR, "--technique", technique], limit=LIMIT)
    assert done.stdout, done.stderr
    told = json.loads(done.stdout)
    return done.returncode, {**told, "by_name": {each["name"]: each for each in told["findings"]}}


def programs(host: Host) -> list[str]:
    """Return the command lines of what runs on a host."""
    lines = []
    for path in Path(host.root, "proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_text().replace("\0", " "))
        except OSError:
            continue  # it has ended meanwhile
    return lines


def left_behind(host: Host) -> list[str]:
    """Return what a trial has left on a host."""
    running = [line for line in programs(host) if "criu" in line or "doctor" in line]
    mounts = Path(host.root, "proc/1/mounts").read_text().splitlines()
    return [
        *running,
        *(str(path) for path in Path(host.root, "tmp").glob("quicferry-doctor-*")),
        *(str(path) for path in Path(host.root, "run/quicferry/relocations").glob("*")),
        *(line for line in mounts if line.startswith("quicferry ")),
    ]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that nobody tells of."""
    async with asyncio.timeout(LIMIT):
        while not condition():  # noqa: ASYNC110 (nothing here can set an event)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("technique", ["cold", "post-copy"])
async def test_a_process_is_moved(host: Host, technique: str) -> None:
    status, told = await examined(host, technique)
    assert (status, told["outcome"]) == (0, "ok"), told
    assert told["by_name"][f"{technique} of a process"]["says"].startswith("a process was moved")
    assert left_behind(host) == []


@pytest.mark.parametrize("technique", ["pre-copy", "hybrid"])
async def test_memory_is_carried_early_where_the_kernel_can(host: Host, technique: str) -> None:
    feature = await host.attempt(["criu", "check", "--feature", "mem_dirty_track"])
    status, told = await examined(host, technique)
    if feature.returncode:
        assert (status, told["outcome"]) == (1, "missing")
        changed = told["by_name"]["changed memory"]
        assert "CONFIG_MEM_SOFT_DIRTY" in changed["says"]
        assert "cold or post-copy" in changed["remedy"]
    else:
        assert (status, told["outcome"]) == (0, "ok"), told
        assert f"{technique} of a process" in told["by_name"]
    assert left_behind(host) == []


async def test_a_trial_that_fails_is_told(host: Host) -> None:
    # No file may grow larger than that, so CRIU cannot write the memory.
    status, told = await examined(host, "cold", "prlimit", "--fsize=4000000")
    assert (status, told["outcome"]) == (1, "missing")
    failed = told["by_name"]["cold of a process"]
    assert failed["outcome"] == "missing"
    assert "criu" in failed["says"]
    assert failed["remedy"]
    assert left_behind(host) == []


async def told_missing(host: Host, *before: str) -> dict[str, str]:
    """Return the remedies for what is missing for cold, when the doctor is run so."""
    status, told = await examined(host, "cold", *before)
    assert (status, told["outcome"]) == (1, "missing")
    return {
        each["name"]: each["remedy"] for each in told["findings"] if each["outcome"] == "missing"
    }


@pytest.mark.parametrize(
    ("before", "name", "remedy"),
    [
        (("setpriv", "--reuid=65534", "--clear-groups"), "privileges", "as root"),
        (("setpriv", "--bounding-set=-sys_ptrace"), "privileges", "privileged"),
        (("unshare", "--net"), "loopback", "ip link set lo up"),
    ],
    ids=["user", "capability", "loopback"],
)
async def test_what_a_host_lacks_is_told(
    host: Host, before: Sequence[str], name: str, remedy: str
) -> None:
    missing = await told_missing(host, *before)
    assert list(missing) == [name]
    assert remedy in missing[name]


async def test_a_host_without_criu(host: Host) -> None:
    await host.run(["sh", "-c", 'rm "$(command -v criu)"'])
    missing = await told_missing(host)
    assert list(missing) == ["CRIU"]
    assert "install CRIU 4.2" in missing["CRIU"]


async def test_a_doctor_that_is_killed_leaves_nothing_running(host: Host) -> None:
    doctor = await host.start([*DOCTOR, "--technique", "post-copy"])
    await until(lambda: any("guest.py" in line for line in programs(host)))
    assert doctor.returncode is None
    doctor.kill()
    await doctor.wait()
    await until(lambda: not any("guest.py" in line or "criu" in line for line in programs(host)))
