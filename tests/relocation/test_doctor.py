"""What the doctor says of hosts that lack something, from facts; no CRIU is needed here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quicferry.relocation.container.engines import Technique
from quicferry.relocation.doctor import guest, healthy, landing, problems, wanted, ways
from quicferry.relocation.doctor.facts import (
    Criu,
    Facts,
    Kernel,
    Mount,
    Program,
    look,
    look_at_kernel,
)
from quicferry.relocation.doctor.finding import Diagnosis, Finding, Outcome, Way
from quicferry.relocation.doctor.judgement import NEWER_CRIU, explain, judge
from quicferry.relocation.doctor.trial import compare
from quicferry.relocation.doctor.ways import ALL_WAYS, PODMAN, RUNC
from quicferry.relocation.errors import EngineError

EVERYTHING = (1 << 41) - 1
SYS_PTRACE, SYS_RESOURCE = 1 << 19, 1 << 24

KERNEL = Kernel(
    release="6.12.0",
    user=0,
    capabilities=EVERYTHING,
    pipe_soft=16384,
    pipe_max=1048576,
    mounts=(
        Mount(Path("/"), "ext4", frozenset({"rw"})),
        Mount(Path("/run"), "tmpfs", frozenset({"rw"})),
        Mount(Path("/sys/fs/cgroup"), "cgroup2", frozenset({"rw"})),
    ),
    swaps=False,
    memory=1 << 30,
    tmpfs=True,
)
CRIU = Criu(
    "4.2.1",
    features=frozenset({"mem_dirty_track", "uffd", "uffd-noncoop", "timens"}),
    tls=True,
)
HOST = Facts(
    kernel=KERNEL,
    loopback=True,
    tls=True,
    management="",
    criu=CRIU,
    engines={RUNC: Program("1.1.15"), PODMAN: Program("5.4.2")},
    podman_runtime="crun",
)
WEAK = replace(KERNEL, capabilities=EVERYTHING & ~SYS_RESOURCE)


def mounted(path: str, kind: str, *options: str) -> Facts:
    """Return the host with one more mount."""
    mount = Mount(Path(path), kind, frozenset(options))
    return replace(HOST, kernel=replace(KERNEL, mounts=(*KERNEL.mounts, mount)))


def criu(**changes: Any) -> Facts:
    """Return the host with another CRIU."""
    return replace(HOST, criu=replace(CRIU, **changes))


def kernel(**changes: Any) -> Facts:
    """Return the host with another kernel."""
    return replace(HOST, kernel=replace(KERNEL, **changes))


@pytest.mark.parametrize("way", ALL_WAYS, ids=lambda way: f"{way.technique} {way.engine}")
def test_nothing_is_missing_where_nothing_is(way: Way) -> None:
    diagnosis = judge(HOST, way)
    assert diagnosis.outcome is Outcome.OK
    assert diagnosis.problems == []
    assert all(not finding.remedy for finding in diagnosis.findings)


EVERY = frozenset(Technique)
LAZY = frozenset({Technique.POST_COPY, Technique.HYBRID})
EARLY = frozenset({Technique.PRE_COPY, Technique.HYBRID})


@pytest.mark.parametrize(
    ("facts", "name", "techniques", "remedy"),
    [
        (kernel(user=1000), "privileges", EVERY, "as root"),
        (kernel(capabilities=EVERYTHING & ~SYS_PTRACE), "privileges", EVERY, "privileged"),
        (replace(HOST, criu=None), "CRIU", EVERY, "install CRIU 4.2"),
        (criu(problem="vdso: Failed to fill self vdso symtable"), "CRIU", EVERY, "CRIU 4.2"),
        (criu(features=CRIU.features - {"timens"}), "clock", EVERY, "boot a kernel"),
        (replace(HOST, loopback=False), "loopback", EVERY, "ip link set lo up"),
        (kernel(tmpfs=False), "memory", EVERY, "boot a kernel"),
        (kernel(memory=1 << 20), "memory", EVERY, "more memory"),
        (mounted("/run", "ext4", "ro"), "memory", EVERY, "mount -t tmpfs"),
        (mounted("/sys/fs/cgroup", "cgroup2", "ro"), "freezer", EVERY, "remount,rw"),
        (criu(features=CRIU.features - {"mem_dirty_track"}), "changed memory", EARLY, "kernel"),
        (criu(features=CRIU.features - {"uffd"}), "late memory", LAZY, "boot a kernel"),
        (criu(tls=False), "TLS of pages", LAZY, "built with it"),
        (replace(HOST, kernel=WEAK), "pipes", LAZY, "sysctl -w fs.pipe-user-pages-soft=0 fs."),
        (
            replace(HOST, kernel=replace(WEAK, pipe_soft=0)),
            "pipes",
            LAZY,
            "sysctl -w fs.pipe-max-size=33554432",
        ),
        (replace(HOST, engines={}), "runc", EVERY, "apt-get install runc"),
        (
            replace(HOST, engines={RUNC: Program("?", "runc failed")}),
            "runc",
            EVERY,
            "runc --version",
        ),
    ],
)
def test_what_is_missing_is_named(
    facts: Facts, name: str, techniques: frozenset[Technique], remedy: str
) -> None:
    for technique in Technique:
        diagnosis = judge(facts, Way(technique.value, RUNC))
        if technique not in techniques:
            assert diagnosis.outcome is Outcome.OK, technique
            continue
        assert diagnosis.outcome is Outcome.MISSING
        (found,) = diagnosis.problems
        assert found.name == name
        assert remedy in found.remedy
        assert found.says


@pytest.mark.parametrize("reason", [{"kernel": replace(KERNEL, user=1000)}, {"loopback": False}])
def test_criu_is_not_blamed_for_what_keeps_it_from_looking(reason: dict[str, Any]) -> None:
    facts = replace(criu(problem="criu check failed", features=frozenset()), **reason)
    assert "CRIU" not in [each.name for each in judge(facts, Way("cold", RUNC)).problems]


def test_pipes_that_are_large_enough() -> None:
    facts = replace(HOST, kernel=replace(WEAK, pipe_soft=0, pipe_max=33554432))
    assert judge(facts, Way("post-copy", RUNC)).outcome is Outcome.OK


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (mounted("/sys/fs/cgroup", "tmpfs", "rw"), "freezer"),
        (kernel(swaps=True, release="6.1.0-28-amd64"), "memory"),
    ],
)
def test_what_may_do_harm_is_named(facts: Facts, name: str) -> None:
    diagnosis = judge(facts, Way("cold", RUNC))
    assert diagnosis.outcome is Outcome.UNKNOWN
    assert [finding.name for finding in diagnosis.problems] == [name]
    assert all(finding.remedy for finding in diagnosis.problems)


def test_new_kernels_do_not_swap_checkpoints() -> None:
    assert judge(kernel(swaps=True, release="6.4.0"), Way("cold", RUNC)).outcome is Outcome.OK


def test_an_old_podman_is_named() -> None:
    facts = replace(HOST, engines={**HOST.engines, PODMAN: Program("4.3.1")})
    (found,) = judge(facts, Way("cold", PODMAN)).problems
    assert (found.name, found.says) == (PODMAN, "4.3.1 is too old")


def test_podman_needs_runc() -> None:
    facts = replace(HOST, engines={PODMAN: Program("5.4.2")})
    (found,) = judge(facts, Way("cold", PODMAN)).problems
    assert (found.outcome, found.remedy) == (Outcome.MISSING, "apt-get install runc")
    said = {finding.name: finding.says for finding in judge(HOST, Way("cold", PODMAN)).findings}
    assert "podman --runtime runc" in said["Podman's runtime"]


def test_handover_needs_tls_and_a_socket() -> None:
    facts = replace(HOST, tls=False, management="not a directory of this user alone")
    (socket,) = judge(facts, Way("rebind")).problems
    assert socket.name == "management socket"
    assert [each.name for each in judge(facts, Way("handover")).problems] == [
        "management socket",
        "TLS 1.3",
    ]


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        # CRIU 3.17.1 and 4.1.1 on Linux 6.18, then 4.2.1 without a loopback interface.
        ("Error (criu/vdso.c:613): vdso: Failed to fill self vdso symtable", NEWER_CRIU),
        ("sockets: Can't get 1:16 opt: Operation not supported", NEWER_CRIU),
        ("Unable to connect a socket: Network is unreachable", "ip link set lo up"),
        ("something that nobody has seen before", "criu check --all"),
    ],
)
def test_what_criu_says_is_explained(said: str, remedy: str) -> None:
    assert remedy in explain(said)


def test_there_are_ways_to_ask_for() -> None:
    assert ways("cold") == [Way("cold", RUNC), Way("cold", PODMAN)]
    assert ways("rebind") == [Way("rebind")]
    assert {way.technique for way in ways(engine=PODMAN)} == {"cold", "pre-copy"}
    assert set(ways()) == set(ALL_WAYS)


@pytest.mark.parametrize(
    ("technique", "engine", "text"),
    [
        ("post-copy", PODMAN, "use runc"),
        ("handover", RUNC, "needs no container engine"),
        ("warm", None, "choose of rebind"),
    ],
)
def test_ways_that_there_are_not(technique: str, engine: str | None, text: str) -> None:
    with pytest.raises(EngineError, match=text):
        ways(technique, engine)


def diagnosis(technique: str, engine: str, outcome: Outcome) -> Diagnosis:
    return Diagnosis(Way(technique, engine), (Finding("", outcome, ""),))


def test_one_engine_is_enough() -> None:
    cold = [
        diagnosis("cold", RUNC, Outcome.OK),
        diagnosis("cold", PODMAN, Outcome.MISSING),
        diagnosis("hybrid", RUNC, Outcome.MISSING),
    ]
    both = [diagnosis("rebind", "", Outcome.OK), diagnosis("handover", "", Outcome.OK)]
    assert healthy(cold, wanted("cold"))
    assert healthy(cold, wanted(engine=RUNC))
    assert not healthy(cold, wanted("hybrid"))
    assert not healthy(cold, wanted())
    assert healthy(both + cold, wanted())
    assert not healthy(both, wanted())
    assert not healthy(both[:1] + cold, wanted())


def test_what_was_not_tried_counts_as_working() -> None:
    assert healthy([diagnosis("cold", RUNC, Outcome.UNKNOWN)], wanted("cold"))


PROC = {
    "self/status": "Name:\tx\nUid:\t1000\t1001\t1000\t1000\nCapEff:\t0000000000080000\n",
    "self/mounts": "tmpfs /run/my\\040place tmpfs rw,noswap 0 0\n/dev/vda / ext4 ro 0 0\n",
    "sys/kernel/osrelease": "6.1.0-28-amd64\n",
    "sys/fs/pipe-user-pages-soft": "16384\n",
    "sys/fs/pipe-max-size": "1048576\n",
    "swaps": "Filename Type Size Used Priority\n/dev/vdb partition 1024 0 -2\n",
    "meminfo": "MemTotal: 4194304 kB\nMemAvailable: 1048576 kB\n",
    "filesystems": "nodev\tproc\nnodev\ttmpfs\n\text4\n",
}


def test_what_the_kernel_tells_is_read(tmp_path: Path) -> None:
    for name, content in PROC.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert look_at_kernel(tmp_path) == Kernel(
        release="6.1.0-28-amd64",
        user=1001,
        capabilities=SYS_PTRACE,
        pipe_soft=16384,
        pipe_max=1048576,
        mounts=(
            Mount(Path("/run/my place"), "tmpfs", frozenset({"rw", "noswap"})),
            Mount(Path("/"), "ext4", frozenset({"ro"})),
        ),
        swaps=True,
        memory=1 << 30,
        tmpfs=True,
    )


def test_a_kernel_that_tells_nothing_has_nothing(tmp_path: Path) -> None:
    facts = replace(HOST, kernel=look_at_kernel(tmp_path))
    found = {
        finding.name: finding.outcome for finding in judge(facts, Way("hybrid", RUNC)).findings
    }
    assert found["privileges"] is Outcome.MISSING
    assert found["pipes"] is Outcome.MISSING
    assert found["memory"] is Outcome.MISSING


def test_this_host_is_looked_at() -> None:
    kernel = look_at_kernel()
    assert (kernel.release, kernel.user) == (os.uname().release, os.geteuid())
    assert kernel.memory > 0
    assert any(mount.target == Path("/proc") for mount in kernel.mounts)


async def test_programs_that_are_not_there_are_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    facts = await look([RUNC, PODMAN])
    assert (facts.criu, facts.engines) == (None, {})
    said = await problems(Technique.COLD, RUNC)
    assert f"CRIU: there is no program criu; {NEWER_CRIU}" in said
    assert any(line.startswith("runc: there is no program runc; apt-get") for line in said)


async def test_problems_of_a_way_that_there_is_not() -> None:
    with pytest.raises(EngineError, match="use runc"):
        await problems(Technique.POST_COPY, PODMAN)


@pytest.fixture
def throw_away(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """The process that is moved by a trial, not moved: its Unix socket and its UDP port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("0.0.0.0", 0))
        port = sock.getsockname()[1]
    ours, theirs = os.pipe()
    path = tmp_path / "guest.sock"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", guest.__file__, str(path), str(port), str(theirs)],
        pass_fds=[theirs],
    )
    os.close(theirs)
    try:
        assert os.read(ours, 1)
        yield path, port
    finally:
        os.close(ours)
        process.kill()
        process.wait(10)


def test_the_throw_away_process_tells_of_its_memory(throw_away: tuple[Path, int]) -> None:
    path, port = throw_away
    first, second, third = landing.ask(port), landing.ask(port), landing.ask_unix(str(path))
    assert [answer.split()[0] for answer in (first, second, third)] == ["1", "2", "3"]
    compare(first, [second, third])


@pytest.mark.parametrize("answers", [["2 x", "3 x"], ["1 a", "2 a"], ["2 a"], []])
def test_other_memory_is_noticed(answers: list[str]) -> None:
    compare("1 a", ["2 a", "3 a"])
    with pytest.raises(EngineError, match="other memory"):
        compare("1 a", answers)
