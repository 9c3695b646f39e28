"""The laboratory's system: a Debian root file system, made once and kept.

It is what every host of the laboratory sees as `/`: Debian trixie with CRIU, runc, Podman and the
tools for networks, and quicferry's dependencies for its Python, but not quicferry itself, which the
hosts get from the running installation. CRIU comes from sid, because no release has a version that
can dump a UDP socket on recent kernels.

It lies in a directory whose name is a hash of its recipe, so a changed recipe makes another one. A
half-made one has another name until it is complete, and is never used.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import quicferry
import quicferry_lab
from quicferry.relocation.container.image import ImageError
from quicferry.relocation.container.image.debian import KEYRING, find_mirror, make_debian
from quicferry_lab.hosts.errors import LabError

DIRECTORY_VARIABLE = "QUICFERRY_LAB_DIR"
ROOT_VARIABLE = "QUICFERRY_LAB_ROOT"
"""Names another root file system: `/` in a virtual machine that was made of the laboratory's."""
LIBRARY = "opt/quicferry/lib"
"""Where quicferry's dependencies lie in the root."""
SOURCE = "opt/quicferry/src"
"""Where a host of the laboratory mounts quicferry itself."""

_SUITE = "trixie"
_NEWER_SUITE = "sid"
_FROM_NEWER = ("src:criu", "src:libnl3")
_PACKAGES = (
    *("criu", "runc", "crun", "podman", "netavark"),
    *("iproute2", "iptables", "nftables", "iputils-ping", "kmod", "procps", "zstd"),
    *("python3", "python3-pip", "python3-venv"),
)
_PYTHON = "3.13"
_PLATFORMS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_17", "manylinux2014")
_LIMIT = 900.0
"""Seconds for each step; all together take about a minute."""
_TOLD = 8
"""Lines of a failed program's output that an error shows."""

_COMMAND = """#!/bin/sh
exec /usr/bin/python3 -m quicferry.cli "$@"
"""
_NO_SERVICES = """#!/bin/sh
exit 101
"""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """All that decides what is in the root file system.

    Attributes:
        suite: The Debian release.
        packages: What is installed beyond the smallest system.
        dependencies: What quicferry needs, as pip requirements.
        version: Raised when the steps change.
    """

    suite: str = _SUITE
    packages: tuple[str, ...] = _PACKAGES
    dependencies: tuple[str, ...] = ()
    version: int = 1

    @classmethod
    def of_this_quicferry(cls) -> Recipe:
        """Return the recipe for the dependencies of the installation that runs."""
        return cls(dependencies=tuple(sorted(importlib.metadata.requires("quicferry") or ())))

    @property
    def name(self) -> str:
        """The name of the directory that holds the result."""
        return f"root-{self.suite}-{hashlib.sha256(repr(self).encode()).hexdigest()[:12]}"


def directory() -> Path:
    """Return where the laboratory keeps what it has made.

    It is $QUICFERRY_LAB_DIR, or a directory under /var/cache for root and under ~/.cache else.
    """
    if named := os.environ.get(DIRECTORY_VARIABLE):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/cache/quicferry/lab")
    return Path.home() / ".cache" / "quicferry" / "lab"


def packages() -> tuple[Path, ...]:
    """Return where quicferry and its laboratory are that run here."""
    return tuple(Path(str(each.__file__)).parent for each in (quicferry, quicferry_lab))


def find() -> Path:
    """Return the root file system: $QUICFERRY_LAB_ROOT, or the one that `make` has made.

    Raises:
        LabError: If it has not been made.
    """
    if named := os.environ.get(ROOT_VARIABLE):
        return Path(named)
    root = directory() / Recipe.of_this_quicferry().name
    if not root.is_dir():
        raise LabError(f"the laboratory has no system at {root}; make it: quicferry lab setup")
    return root


def make(say: Say = print) -> Path:
    """Make the root file system if it is not there, and return it.

    It takes about a minute and 800 MB, and needs root, debootstrap, and the network that apt and
    pip are configured for. Those of other recipes are removed if no laboratory is open.

    Args:
        say: Is told in a line what is being done.

    Raises:
        LabError: If that fails.
    """
    recipe = Recipe.of_this_quicferry()
    base = directory()
    root = base / recipe.name
    base.mkdir(parents=True, exist_ok=True)
    with _alone(base):
        if root.is_dir():
            return root
        unfinished = base / "unfinished"
        _remove(unfinished)
        try:
            _build(recipe, unfinished, say)
            unfinished.rename(root)
        finally:
            _remove(unfinished)
        with suppress(LabError), _unused(base):
            for other in base.glob("root-*"):
                if other != root:
                    _remove(other)
    return root


def clean() -> None:
    """Remove all that the laboratory has made on this machine.

    Raises:
        LabError: If a laboratory is open.
    """
    base = directory()
    if not base.is_dir():
        return
    with _alone(base), _unused(base):
        for entry in base.iterdir():
            if entry.is_dir():
                _remove(entry)


@contextmanager
def in_use() -> Iterator[None]:
    """Keep what the laboratory has made from being removed."""
    base = directory()
    base.mkdir(parents=True, exist_ok=True)
    with (base / "users").open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        yield


@contextmanager
def _unused(base: Path) -> Iterator[None]:
    with (base / "users").open("w") as users:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError("a laboratory is open on this machine; end it and try again") from None
        yield


@contextmanager
def _alone(base: Path) -> Iterator[None]:
    """Let one process at a time make or remove something in the directory."""
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(recipe: Recipe, root: Path, say: Say) -> None:
    say(f"making a Debian {recipe.suite} system in {root.parent} (once; about a minute)")
    try:
        mirror = find_mirror()
        make_debian(root, ("ca-certificates",), recipe.suite)
    except ImageError as exc:
        raise LabError(str(exc)) from None
    # The packages' scripts need /proc.
    inside = (*_contained(), f"--root={root}", "env", "DEBIAN_FRONTEND=noninteractive")
    temporary = _configure_apt(root, mirror)
    say("installing " + " ".join(recipe.packages))
    _run(*inside, "apt-get", "update", "-qq")
    _run(
        *inside, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *recipe.packages
    )  # fmt: skip
    _run(*inside, "apt-get", "clean")
    for path in temporary:
        path.unlink()
    say("installing quicferry's dependencies")
    _install_dependencies(recipe, root)
    _run(*inside, "python3", "-m", "compileall", "-q", "-j", "2", f"/{LIBRARY}")
    command = root / "usr/local/bin/quicferry"
    command.write_text(_COMMAND)
    command.chmod(0o755)


def _configure_apt(root: Path, mirror: str) -> list[Path]:
    """Let apt in the root reach the archive as this machine does.

    Returns:
        The files that concern this machine only, and must not stay.
    """
    # A mirror may lag behind the days for which sid's lists are valid; signatures still count.
    (root / f"etc/apt/sources.list.d/{_NEWER_SUITE}.sources").write_text(
        f"Types: deb\nURIs: {mirror}\nSuites: {_NEWER_SUITE}\nComponents: main\n"
        f"Check-Valid-Until: no\nSigned-By: {KEYRING}\n"
    )
    (root / f"etc/apt/preferences.d/{_NEWER_SUITE}").write_text(
        "Package: *\nPin: release a=unstable\nPin-Priority: 50\n\n"
        f"Package: {' '.join(_FROM_NEWER)}\nPin: release a=unstable\nPin-Priority: 990\n"
    )
    no_services = root / "usr/sbin/policy-rc.d"
    no_services.write_text(_NO_SERVICES)
    no_services.chmod(0o755)
    proxies = root / "etc/apt/apt.conf.d/90proxies"
    settings = _run("apt-config", "dump").splitlines()
    proxies.write_text("\n".join(line for line in settings if "proxy" in line.lower()) + "\n")
    proxies.chmod(0o600)
    resolver = root / "etc/resolv.conf"
    resolver.unlink(missing_ok=True)
    shutil.copyfile("/etc/resolv.conf", resolver)
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    if authorities.exists():
        shutil.copyfile(authorities, root / authorities.relative_to("/"))
    return [no_services, proxies, resolver]


def _install_dependencies(recipe: Recipe, root: Path) -> None:
    """Install from outside, so that this machine's configuration of pip applies."""
    found = (root / "usr/bin/python3").readlink().name.removeprefix("python")
    if found != _PYTHON:
        raise LabError(
            f"Debian {recipe.suite} has Python {found}, not {_PYTHON}: change the recipe"
        )
    machine = platform.machine()
    target = root / LIBRARY
    _run(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"),
        *("--target", str(target), "--python-version", _PYTHON, "--implementation", "cp"),
        *(f"--platform={name}_{machine}" for name in _PLATFORMS),
        "--only-binary=:all:",
        *recipe.dependencies,
    )
    importable = root / "usr/lib/python3/dist-packages/quicferry-lab.pth"
    importable.write_text(f"/{SOURCE}\n/{LIBRARY}\n")


def _contained() -> tuple[str, ...]:
    """Return what runs a program such that its mounts and daemons end with it."""
    return ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def _run(*command: str) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_LIMIT,
            check=False,
        )
    except FileNotFoundError:
        raise LabError(f"there is no program {command[0]}; run: quicferry lab setup") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"{_named(command)} was not done within {_LIMIT:g} s") from None
    if done.returncode:
        told = " | ".join(done.stdout.strip().splitlines()[-_TOLD:])
        raise LabError(f"{_named(command)} failed with status {done.returncode}: {told}")
    return done.stdout


def _named(command: Sequence[str]) -> str:
    words = [word for word in command if not word.startswith("-")]
    return " ".join(words[:6])


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
