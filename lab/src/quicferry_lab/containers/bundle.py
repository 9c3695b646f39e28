"""The laboratory's application as a bundle: made once for each state of the code, and kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

from quicferry.protocol import Address
from quicferry.relocation.container.image import Application, make_bundle
from quicferry.server import self_signed
from quicferry_lab.hosts import rootfs

APPLICATION = "quicferry_lab.containers.app:app"
NAME = "site"
CERTIFICATE = "certificate.pem"
"""What clients have to trust, beside the bundle."""

_PORT = 4433
_KEPT = 3
_IN_USE = 3600.0
"""Seconds since it was last used after which nobody is taken to be using it any more."""


def prepare_bundle(hosts: tuple[str, ...], pool: tuple[str, ...]) -> Path:
    """Return a directory with the laboratory's application as a bundle, and its certificate.

    It takes some ten seconds if it has to be made. Some former ones are kept, and removed when
    others are made, or the laboratory is cleaned.

    Args:
        hosts: The addresses of the hosts that the server will be at.
        pool: Addresses, with ports, where clients are told that it may come up.

    Raises:
        LabError: If the laboratory has not been set up.
        ImageError: If the bundle cannot be made.
    """
    root = rootfs.find()
    folder = rootfs.directory() / f"site-{_state_of_the_code(pool)}-{root.name}"
    with (rootfs.directory() / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / NAME).exists():
            _remove_former()
            folder.mkdir(exist_ok=True)
            _make(folder, hosts, pool, root)
        # In a virtual machine it is on a disk for reading only, where nobody removes it.
        if os.access(folder, os.W_OK):
            os.utime(folder)
    return folder


def _make(folder: Path, hosts: tuple[str, ...], pool: tuple[str, ...], root: Path) -> None:
    certificate, key = self_signed(hosts)
    (folder / CERTIFICATE).write_bytes(certificate)
    (folder / "key.pem").touch(mode=0o600)
    (folder / "key.pem").write_bytes(key)
    with tempfile.TemporaryDirectory() as source:
        _, package = rootfs.packages()
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, Path(source) / package.name, ignore=ignored)
        application = Application(
            APPLICATION,
            source=Path(source),
            certificate=folder / CERTIFICATE,
            key=folder / "key.pem",
            bind=Address.parse(f"0.0.0.0:{_PORT}"),
            options=tuple(word for address in pool for word in ("--pool", address)),
            memory=0,  # a machine may have the controllers elsewhere than in the hosts' hierarchy
            processes=0,
        )
        make_bundle(folder / NAME, application, name=NAME, base=root)


def _remove_former() -> None:
    """Keep those that were used of late: one of a run that is under way must not disappear."""
    used = {folder: folder.stat().st_mtime for folder in rootfs.directory().glob("site-*")}
    for folder in sorted(used, key=used.__getitem__)[:-_KEPT]:
        if used[folder] < time.time() - _IN_USE:
            shutil.rmtree(folder, ignore_errors=True)


def _state_of_the_code(pool: tuple[str, ...]) -> str:
    digest = hashlib.sha256(" ".join(pool).encode())
    for package in rootfs.packages():
        for path in sorted(package.rglob("*.py")):
            name = str(path.relative_to(package.parent))
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
