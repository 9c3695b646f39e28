"""What the facts about a host mean for one way of moving servers; pure.

Each check is a function from facts to a finding. Which of them count for a technique and an engine
is said by `judge`.
"""

from __future__ import annotations

import re
from pathlib import Path

from quicferry.relocation.container.engines import Technique
from quicferry.relocation.container.images import DIRECTORY

from .facts import Facts, Mount
from .finding import Diagnosis, Finding, Outcome, Way
from .ways import HANDOVER, PODMAN, REBIND, RUNC

NEWER_CRIU = (
    "install CRIU 4.2 or newer (Debian: the packages criu and libcriu2 of sid, pinned to it)"
)
KERNEL_OPTION = "boot a kernel that has it (Debian's stock kernels do)"

_TMPFS_NOSWAP = (6, 4)
"""The first kernel whose tmpfs can be told not to swap."""
_CAPABILITIES = {12: "CAP_NET_ADMIN", 19: "CAP_SYS_PTRACE", 21: "CAP_SYS_ADMIN"}
_CAP_SYS_RESOURCE = 24
_PIPE_MAX = 33554432
"""Bytes in a pipe that CRIU's page server fills."""
_ROOM = 64 << 20
"""Bytes that the smallest of servers needs for its checkpoint."""
_CGROUPS = Path("/sys/fs/cgroup")


def judge(facts: Facts, way: Way) -> Diagnosis:
    """Return what the facts mean for a way of moving servers."""
    if way.technique == REBIND:
        return Diagnosis(way, (management(facts),))
    if way.technique == HANDOVER:
        return Diagnosis(way, (management(facts), tls(facts)))
    technique = Technique(way.technique)
    checks = [privileges, criu, clock, loopback, memory, freezer]
    if technique.copies_before:
        checks.append(dirty_pages)
    if technique.copies_after:
        checks += [lazy_pages, pipes, page_tls]
    if way.engine == PODMAN:
        checks += [podman, podman_runtime]
    else:
        checks.append(runc)
    return Diagnosis(way, tuple(check(facts) for check in checks))


def management(facts: Facts) -> Finding:
    """Judge the directory for management sockets."""
    if facts.management:
        return Finding(
            "management socket",
            Outcome.MISSING,
            facts.management,
            "set XDG_RUNTIME_DIR to a directory of this user",
        )
    return Finding("management socket", Outcome.OK, "can be made")


def tls(facts: Facts) -> Finding:
    """Judge what agents talk over."""
    if not facts.tls:
        return Finding(
            "TLS 1.3", Outcome.MISSING, "Python's ssl lacks it", "use a Python with OpenSSL 1.1.1"
        )
    return Finding("TLS 1.3", Outcome.OK, "there")


def privileges(facts: Facts) -> Finding:
    """Judge what this process is allowed to do."""
    name, kernel = "privileges", facts.kernel
    if kernel.user != 0:
        return Finding(
            name,
            Outcome.MISSING,
            f"this is user {kernel.user}, and containers are moved by root",
            "run this, and the agent or `quicferry migrate`, as root",
        )
    absent = [cap for bit, cap in _CAPABILITIES.items() if not kernel.capabilities >> bit & 1]
    if absent:
        return Finding(
            name,
            Outcome.MISSING,
            f"root without {', '.join(absent)}",
            "if this is a container itself, start it with these capabilities or as privileged",
        )
    return Finding(name, Outcome.OK, "root, with the capabilities that CRIU needs")


def criu(facts: Facts) -> Finding:
    """Judge CRIU; whether it really works is for a trial to say."""
    found = facts.criu
    if found is None:
        return Finding("CRIU", Outcome.MISSING, "there is no program criu", NEWER_CRIU)
    if found.problem and privileges(facts).outcome is not Outcome.OK:
        return Finding("CRIU", Outcome.UNKNOWN, f"{found.version}, which only root can check")
    if found.problem and not facts.loopback:
        says = f"{found.version}, which can only be checked with a loopback interface"
        return Finding("CRIU", Outcome.UNKNOWN, says)
    if found.problem:
        remedy = explain(found.problem)
        return Finding("CRIU", Outcome.MISSING, f"{found.version}: {found.problem}", remedy)
    return Finding("CRIU", Outcome.OK, found.version)


def explain(said: str) -> str:
    """Return the remedy for what CRIU says."""
    remedies = {
        "vdso": NEWER_CRIU,
        "sockets: Can't get": NEWER_CRIU,  # SO_PASSCRED of other sockets than AF_UNIX
        "no program setpriv": "install util-linux, whose programs make a place for the trial",
        "no program unshare": "install util-linux, whose programs make a place for the trial",
        "Network is unreachable": "ip link set lo up",
        "ermission": "run it as root, with all capabilities",
        "not permitted": "run it as root, with all capabilities",
    }
    found = next((remedy for sign, remedy in remedies.items() if sign in said), "")
    return found or f"see what `criu check --all` says, and {NEWER_CRIU}"


def clock(facts: Facts) -> Finding:
    """Judge whether clocks go on across a restore on another host."""
    return _feature(facts, "clock", {"timens"}, "time namespaces (CONFIG_TIME_NS)", KERNEL_OPTION)


def dirty_pages(facts: Facts) -> Finding:
    """Judge whether it can be known what has changed since memory was carried."""
    return _feature(
        facts,
        "changed memory",
        {"mem_dirty_track"},
        "soft-dirty tracking (CONFIG_MEM_SOFT_DIRTY)",
        f"{KERNEL_OPTION}, or use cold or post-copy",
    )


def lazy_pages(facts: Facts) -> Finding:
    """Judge whether memory can be fetched when it is needed."""
    return _feature(
        facts,
        "late memory",
        {"uffd", "uffd-noncoop"},
        "userfaultfd (CONFIG_USERFAULTFD)",
        f"{KERNEL_OPTION}, or use cold or pre-copy",
    )


def page_tls(facts: Facts) -> Finding:
    """Judge whether memory is fetched from and by the right ones only."""
    name = "TLS of pages"
    if facts.criu is None:
        return _no_criu(name)
    if not facts.criu.tls:
        return Finding(
            name,
            Outcome.MISSING,
            "this CRIU was built without GnuTLS",
            "install one that was built with it, as Debian's is, or use cold or pre-copy",
        )
    return Finding(name, Outcome.OK, "CRIU has it")


def pipes(facts: Facts) -> Finding:
    """Judge whether CRIU's page server can hold memory in pipes."""
    name, kernel = "pipes", facts.kernel
    if kernel.capabilities >> _CAP_SYS_RESOURCE & 1:
        return Finding(name, Outcome.OK, "CAP_SYS_RESOURCE lifts their limits")
    wrong = []
    if kernel.pipe_soft != 0:
        wrong.append("fs.pipe-user-pages-soft=0")
    if kernel.pipe_max is None or kernel.pipe_max < _PIPE_MAX:
        wrong.append(f"fs.pipe-max-size={_PIPE_MAX}")
    if wrong:
        return Finding(
            name,
            Outcome.MISSING,
            "they are too small for CRIU's page server, and CAP_SYS_RESOURCE is missing",
            f"sysctl -w {' '.join(wrong)}",
        )
    return Finding(name, Outcome.OK, "large enough")


def loopback(facts: Facts) -> Finding:
    """Judge whether this network namespace has a loopback interface."""
    if not facts.loopback:
        return Finding(
            "loopback",
            Outcome.MISSING,
            "this network namespace has no way to 127.0.0.1",
            "ip link set lo up",
        )
    return Finding("loopback", Outcome.OK, "up")


def memory(facts: Facts) -> Finding:
    """Judge the place for checkpoints: they hold keys, which no disk may see."""
    name, kernel = "memory", facts.kernel
    if not kernel.tmpfs:
        return Finding(name, Outcome.MISSING, "this kernel lacks tmpfs", KERNEL_OPTION)
    mount = _mount_of(DIRECTORY, kernel.mounts)
    if mount is not None and "ro" in mount.options:
        return Finding(
            name,
            Outcome.MISSING,
            f"{mount.target} is read-only, and checkpoints are kept below {DIRECTORY}",
            "mount -t tmpfs -o mode=0755 tmpfs /run",
        )
    free = f"{kernel.memory >> 20} MiB free"
    if kernel.memory < _ROOM:
        return Finding(
            name, Outcome.MISSING, free, "end other programs, or choose a host with more memory"
        )
    if kernel.swaps and _numbers(kernel.release) < _TMPFS_NOSWAP:
        return Finding(
            name,
            Outcome.UNKNOWN,
            f"{free}, but it may be swapped to a disk, and checkpoints hold keys",
            "swapoff -a, encrypt the swap space, or boot Linux 6.4 or newer",
        )
    return Finding(name, Outcome.OK, free)


def freezer(facts: Facts) -> Finding:
    """Judge whether containers can be frozen."""
    name = "freezer"
    mount = _mount_of(_CGROUPS, facts.kernel.mounts)
    if mount is None or mount.target != _CGROUPS or mount.kind != "cgroup2":
        return Finding(
            name,
            Outcome.UNKNOWN,
            f"{_CGROUPS} is no cgroup v2; nothing else was tried",
            "boot with systemd.unified_cgroup_hierarchy=1",
        )
    if "ro" in mount.options:
        return Finding(
            name,
            Outcome.MISSING,
            f"{_CGROUPS} is read-only",
            f"mount -o remount,rw {_CGROUPS}; in a container, start it as privileged",
        )
    return Finding(name, Outcome.OK, "cgroup v2")


def runc(facts: Facts) -> Finding:
    """Judge whether runc is there."""
    return _engine(facts, RUNC, (1, 1), "--version")


def podman(facts: Facts) -> Finding:
    """Judge whether Podman is there."""
    return _engine(facts, PODMAN, (5, 0), "info")


def podman_runtime(facts: Facts) -> Finding:
    """Judge what Podman runs containers with; crun does not restore them."""
    name = "Podman's runtime"
    if RUNC not in facts.engines:
        return Finding(
            name, Outcome.MISSING, "it needs runc, which is not there", "apt-get install runc"
        )
    if facts.podman_runtime not in ("", RUNC):
        return Finding(
            name,
            Outcome.OK,
            f"runc is there; containers that shall move need `podman --runtime runc run`, "
            f"for {facts.podman_runtime} is the default",
        )
    return Finding(name, Outcome.OK, RUNC)


def _engine(facts: Facts, name: str, oldest: tuple[int, int], asked: str) -> Finding:
    found = facts.engines.get(name)
    remedy = f"apt-get install {name} (version {oldest[0]}.{oldest[1]} or newer)"
    if found is None:
        return Finding(name, Outcome.MISSING, f"there is no program {name}", remedy)
    if found.problem:
        return Finding(name, Outcome.MISSING, found.problem, f"see that `{name} {asked}` works")
    if _numbers(found.version) < oldest:
        return Finding(name, Outcome.MISSING, f"{found.version} is too old", remedy)
    return Finding(name, Outcome.OK, found.version)


def _feature(facts: Facts, name: str, needed: set[str], kernel: str, remedy: str) -> Finding:
    if facts.criu is None:
        return _no_criu(name)
    if facts.criu.problem:
        return Finding(
            name, Outcome.UNKNOWN, f"needs {kernel}; CRIU cannot say whether it is there"
        )
    if not needed <= facts.criu.features:
        return Finding(name, Outcome.MISSING, f"this kernel lacks {kernel}", remedy)
    return Finding(name, Outcome.OK, f"the kernel has {kernel}")


def _no_criu(name: str) -> Finding:
    return Finding(name, Outcome.UNKNOWN, "CRIU would know, and is not there")


def _mount_of(path: Path, mounts: tuple[Mount, ...]) -> Mount | None:
    """Return the mount that a path lies in: the deepest one, and of those the newest."""
    over = [mount for mount in mounts if path.is_relative_to(mount.target)]
    deepest = max((len(mount.target.parts) for mount in over), default=0)
    return next((each for each in reversed(over) if len(each.target.parts) == deepest), None)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the first two numbers of a version."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])
