"""Fills a root file system: the base, quicferry, the application, and what they need.

Nothing of the base is run but its Python: without rights to see what it is, as root to compile what
was installed, and as the user that the server will be, to see that the application is there.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from importlib.resources import files
from pathlib import Path

from .application import LIBRARY_FOLDER, NOBODY, PATH, SOURCE_FOLDER, TLS_FOLDER, Application
from .debian import make_debian
from .errors import ImageError
from .oci import MOUNT_POINTS
from .programs import run

Progress = Callable[[str], None]
"""Is told what is being done."""

_OLDEST_PYTHON = (3, 11)
_OLDEST_GLIBC = 5
_PACKAGES = ("python3", "ca-certificates")
_LEFT_OUT = ("__pycache__", ".git", ".venv")
_COPY_LIMIT = 600.0
_INSTALL_LIMIT = 900.0
_COMPILE_LIMIT = 300.0
_PYTHON_LIMIT = 60.0

_ASK = """
import json, platform, sys
print(json.dumps({
    "executable": sys.executable,
    "name": sys.implementation.name,
    "version": sys.version_info[:2],
    "machine": platform.machine(),
    "libc": platform.libc_ver(),
}))
"""
_COMPILE = """
import compileall, py_compile, sys
mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
for folder in sys.argv[1:]:
    compileall.compile_dir(folder, quiet=2, invalidation_mode=mode)
"""
_CHECK = """
import importlib.util, sys
import quicferry.cli
if importlib.util.find_spec(sys.argv[1]) is None:
    sys.exit(f"there is no module {sys.argv[1]}")
"""


@dataclass(frozen=True)
class Python:
    """The Python of a root file system.

    Attributes:
        executable: Its path there.
        version: Major and minor.
        machine: The processor, as ``uname -m`` names it.
        glibc: The minor version of the C library, whose major one is 2.
    """

    executable: str
    version: tuple[int, int]
    machine: str
    glibc: int

    @property
    def platforms(self) -> list[str]:
        """The platform tags of the packages that it can use, the best first."""
        versions = range(self.glibc, _OLDEST_GLIBC - 1, -1)
        modern = [f"manylinux_2_{version}_{self.machine}" for version in versions]
        former = [f"manylinux{name}_{self.machine}" for name in ("2014", "2010", "1")]
        return [*modern, *former]


def fill_root(
    root: Path, application: Application, base: Path | None, progress: Progress
) -> Python:
    """Make everything that a container needs in `root`, and return the Python there.

    Args:
        root: An empty directory.
        application: What is to run.
        base: A root file system to begin with, which stays as it is; None for a new Debian.
        progress: Is told what is being done.

    Raises:
        ImageError: If something is missing, or cannot be installed.
    """
    dependencies = _dependencies()
    if base is None:
        progress("making a Debian root file system (name a ready one with --base)")
        make_debian(root, _PACKAGES)
    else:
        progress(f"copying {base}")
        _copy_base(base, root)
    root.chmod(0o755)
    for name in MOUNT_POINTS:
        _folder(root, name)
    for name in (LIBRARY_FOLDER, SOURCE_FOLDER, TLS_FOLDER):
        shutil.rmtree(_folder(root, name))  # of an image that the base may be
    python = find_python(root)
    progress(f"installing packages for Python {'.'.join(map(str, python.version))}")
    _install(root, application, python, dependencies)
    if application.source is not None:
        progress(f"copying {application.source}")
        shutil.copytree(
            application.source,
            _folder(root, SOURCE_FOLDER),
            symlinks=True,
            ignore=shutil.ignore_patterns(*_LEFT_OUT),
            dirs_exist_ok=True,
        )
    progress("compiling")
    _compile(root, python)
    if application.source is not None:
        _give(_folder(root, SOURCE_FOLDER), application.user)
    if application.certificate is not None and application.key is not None:
        tls = _folder(root, TLS_FOLDER)
        _copy_tls(application.certificate, application.key, tls, application.user)
    _check(root, application, python)
    return python


def find_python(root: Path) -> Python:
    """Return the Python of a root file system.

    Raises:
        ImageError: If it has none, or one that quicferry cannot use.
    """
    remedy = (
        "the base must be a root file system of this machine's kind, with python3, sh and env; "
        "leave --base out to have one made"
    )
    answer = json.loads(
        _inside(
            root,
            NOBODY,
            {"PATH": PATH},
            "python3",
            "-I",
            "-c",
            _ASK,
            limit=_PYTHON_LIMIT,
            remedy=remedy,
        )
    )
    major, minor = answer["version"]
    if answer["name"] != "cpython" or (major, minor) < _OLDEST_PYTHON:
        raise ImageError(
            f"the base has {answer['name']} {major}.{minor}, but quicferry needs CPython "
            f"{'.'.join(map(str, _OLDEST_PYTHON))} or newer; choose another --base"
        )
    libc, version = answer["libc"]
    if libc != "glibc":
        raise ImageError(
            "the base has another C library than glibc, for which packages cannot be chosen here; "
            "choose another --base, for example Debian's"
        )
    glibc = int(version.split(".")[1])
    return Python(answer["executable"], (major, minor), answer["machine"], glibc)


def _copy_base(base: Path, root: Path) -> None:
    if not base.is_dir():
        raise ImageError(f"{base} is no directory; name a root file system: --base DIR")
    run(
        *("cp", "--archive", "--one-file-system", "--reflink=auto", f"{base}/.", root),
        limit=_COPY_LIMIT,
        remedy="make room, or choose another directory for the result",
    )


def _install(root: Path, application: Application, python: Python, dependencies: list[str]) -> None:
    library = _folder(root, LIBRARY_FOLDER)
    package = Path(str(files("quicferry")))
    shutil.copytree(package, library / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    wanted = [f"--platform={platform}" for platform in python.platforms]
    more: list[str | Path] = []
    if application.requirements is not None:
        more = ["--requirement", application.requirements]
    version = ".".join(map(str, python.version))
    run(
        *(sys.executable, "-P", "-m", "pip", "install", "--quiet", "--no-input", "--no-compile"),
        *("--disable-pip-version-check", "--target", library, "--only-binary=:all:"),
        *("--implementation=cp", f"--python-version={version}", *wanted),
        *dependencies,
        *more,
        limit=_INSTALL_LIMIT,
        remedy=f"what has no wheel for Python {version} on {python.machine} has to be made one "
        "(pip wheel), in a directory that PIP_FIND_LINKS names",
    )


def _dependencies() -> list[str]:
    """Return what quicferry needs, as its own package says."""
    try:
        return [text for text in requires("quicferry") or [] if "extra ==" not in text]
    except PackageNotFoundError:
        raise ImageError(
            "this quicferry does not know what it needs, because it is not installed; "
            "install it: pip install quicferry, or make setup in its source tree"
        ) from None


def _copy_tls(certificate: Path, key: Path, folder: Path, user: int) -> None:
    for source, name, mode in ((certificate, "certificate.pem", 0o644), (key, "key.pem", 0o600)):
        target = folder / name
        target.touch(mode=mode)
        target.write_bytes(source.read_bytes())
        os.chown(target, user, user)


def _give(folder: Path, user: int) -> None:
    """Let the server read what only its author could read where it comes from."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)


def _compile(root: Path, python: Python) -> None:
    """Compile what cannot be when it is run, because nothing can be written then."""
    run(
        *("chroot", root, "/usr/bin/env", "-i", python.executable, "-I", "-c", _COMPILE),
        *(LIBRARY_FOLDER, SOURCE_FOLDER),
        limit=_COMPILE_LIMIT,
        remedy="check that the base is whole, and that there is room",
    )


def _check(root: Path, application: Application, python: Python) -> None:
    environment = application.environment()
    if application.source is not None:
        environment["PYTHONPATH"] += f":{SOURCE_FOLDER}"
    _inside(
        *(root, application.user, environment),
        *(python.executable, "-c", _CHECK, application.module),
        limit=_PYTHON_LIMIT,
        remedy=f"{application.module} must be in the directory that --source names, or in a "
        "package that --requirements names, and so must be what it needs",
    )


def _inside(
    root: Path, user: int, environment: dict[str, str], *arguments: str, limit: float, remedy: str
) -> str:
    """Run a program of the root file system."""
    variables = [f"{name}={value}" for name, value in environment.items()]
    return run(
        *("chroot", f"--userspec={user}:{user}", root, "/usr/bin/env", "-i"),
        *variables,
        *arguments,
        limit=limit,
        remedy=remedy,
    )


def _folder(root: Path, path: str) -> Path:
    """Return a directory of the root file system, which is made if it is not there.

    Raises:
        ImageError: If the way there leads through a link, which may end outside.
    """
    folder = root
    for part in Path(path.lstrip("/")).parts:
        folder /= part
        if folder.is_symlink():
            raise ImageError(f"/{folder.relative_to(root)} is a link in the base; choose another")
        if not folder.is_dir():
            folder.mkdir()
            folder.chmod(0o755)
    return folder
