"""What `quicferry image` makes, run and moved by real engines on hosts of the laboratory."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from cli.command_line import CLI
from quicferry_lab.hosts import Host, Lab, rootfs

from quicferry.protocol import Address
from quicferry.relocation.container.image import Application, make_podman_image
from quicferry.relocation.container.image.application import NOBODY
from quicferry.relocation.container.image.oci import make_config
from quicferry.server import self_signed

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

NAME = "site"
SOCKET = f"/run/quicferry/{NAME}/server.sock"
IMAGES = "run/images"
URL = "https://127.0.0.1:443/"
START_LIMIT = 20.0
SHOP = """
import sniffio

count = 0

async def app(scope, receive, send):
    global count
    if scope["type"] == "http":
        count += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"visit %d" % count})
"""
BASE = """
set -e
cd "$0"
cp -a --parents bin lib lib64 usr/lib64 etc/ld.so.* usr/bin/python3* usr/bin/sh usr/bin/dash \\
    usr/bin/env usr/bin/cat usr/bin/touch usr/lib/python3* usr/lib/*-linux-gnu/*.so* "$1"
"""
"""What a base has to have, and no more."""

PODMAN = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
"""


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Application:
    """An application with everything that there can be: files, a package, a key, a low port."""
    folder = tmp_path_factory.mktemp("application")
    source = folder / "source"
    source.mkdir()
    (source / "shop.py").write_text(SHOP)
    (source / "shop.py").chmod(0o600)
    (folder / "requirements.txt").write_text("sniffio\n")
    certificate, key = self_signed(["localhost"])
    (folder / "certificate.pem").write_bytes(certificate)
    (folder / "key.pem").write_bytes(key)
    return Application(
        "shop:app",
        source=source,
        requirements=folder / "requirements.txt",
        certificate=folder / "certificate.pem",
        key=folder / "key.pem",
        bind=Address.parse("0.0.0.0:443"),
        options=("--protocols", "symmetric"),
        memory=0,
        processes=0,
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("base")
    command = ["sh", "-c", BASE, str(rootfs.find()), str(folder)]
    subprocess.run(command, check=True, timeout=60)
    yield folder
    shutil.rmtree(folder)


@dataclass(frozen=True)
class Made:
    """A bundle, and what `quicferry image` has said about it."""

    path: Path
    told: dict[str, Any]

    @property
    def start(self) -> str:
        """The command lines that start the container."""
        return "\n".join(["set -e", *self.told["next"]["start"]])


@pytest.fixture(scope="module")
def bundle(
    application: Application, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Made]:
    out = tmp_path_factory.mktemp("bundle") / NAME
    files = {
        "--out": out,
        "--base": base,
        "--source": application.source,
        "--requirements": application.requirements,
        "--cert": application.certificate,
        "--key": application.key,
    }
    done = subprocess.run(
        [
            *(*CLI, "image", application.name, "--json", "--bind", str(application.bind)),
            *("--memory", "0", "--processes", "0"),  # controllers may be in another hierarchy
            *(f"{option}={path}" for option, path in files.items()),
            *("--", *application.options),
        ],
        capture_output=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    yield Made(out, json.loads(done.stdout))
    shutil.rmtree(out)


@pytest.fixture(autouse=True)
def time_limit() -> None:
    """Leave it to the longer limit of this module."""


@asynccontextmanager
async def hosts(bundle: Made, *names: str) -> AsyncIterator[list[Host]]:
    async with Lab() as lab:
        yield [
            await lab.add_host(name, folders={str(bundle.path).lstrip("/"): bundle.path})
            for name in names
        ]


async def start(host: Host, bundle: Made) -> None:
    """Start the container as one is told to."""
    await host.run(["sh", "-c", bundle.start])


async def prepare(host: Host, user: int) -> None:
    """Make what a container needs to be restored."""
    owner = ["-o", str(user), "-g", str(user)]
    await host.run(["install", "-d", "-m", "700", *owner, f"/run/quicferry/{NAME}"])
    await host.run(["touch", f"/run/quicferry/{NAME}.criu.conf"])


async def visit(host: Host) -> str:
    return (await host.run(["quicferry", "fetch", URL, "--insecure"])).stdout


async def first_visit(host: Host) -> str:
    """Visit as soon as the server listens."""
    async with asyncio.timeout(START_LIMIT):
        while (await host.attempt(["quicferry", "ctl", "--socket", SOCKET, "status"])).returncode:
            pass
    return await visit(host)


async def inside(host: Host, *command: str) -> str:
    return (await host.run(["runc", "exec", NAME, *command])).stdout


async def test_a_bundle_serves_and_can_be_moved(bundle: Made) -> None:
    async with hosts(bundle, "ia", "ib") as (source, destination):
        await start(source, bundle)
        assert await first_visit(source) == "visit 1"
        assert "serves shop:app" in await inside(source, "cat", "/run/server.log")

        images = f"/{IMAGES}/1"
        paths = ["--image-path", images, "--work-path", f"/{IMAGES}/work"]
        await source.run(["mkdir", "-p", "-m", "700", images])
        await prepare(source, bundle.told["user"])
        await source.run(["runc", "pause", NAME])
        await source.run(["runc", "checkpoint", *paths, "--leave-running", NAME])
        shutil.copytree(source.root / IMAGES, destination.root / IMAGES)
        await prepare(destination, bundle.told["user"])
        restore = ["runc", "restore", "--detach", "--bundle", str(bundle.path), *paths, NAME]
        await destination.run(restore)

        assert await first_visit(destination) == "visit 2"
        assert "serves shop:app" in await inside(destination, "cat", "/run/server.log")
        state = json.loads((await destination.run(["runc", "state", NAME])).stdout)
        assert state["annotations"]["io.quicferry.image"] == bundle.told["digest"]
        assert state["status"] == "running"


async def test_a_server_in_a_bundle_can_do_little(bundle: Made) -> None:
    async with hosts(bundle, "ia") as (host,):
        await start(host, bundle)
        await first_visit(host)
        status = (await inside(host, "cat", "/proc/1/status")).split("\n")
        facts = dict(line.split(":\t") for line in status if ":\t" in line)
        assert int(facts["CapBnd"], 16) == 1 << 10 | 1 << 14  # NET_BIND_SERVICE, IPC_LOCK
        assert facts["CapEff"] == facts["CapBnd"]
        assert facts["NoNewPrivs"] == "1"
        for place in (
            "/srv/app/new",
            "/etc/new",
            "/opt/quicferry/new",
            "/proc/sys/kernel/domainname",
        ):
            command = ["runc", "exec", NAME, "sh", "-c", f"echo x >{place}"]
            assert "Read-only file system" in (await host.attempt(command)).stderr


async def test_in_the_foreground_one_hears_why_it_does_not_start(bundle: Made) -> None:
    async with hosts(bundle, "ia") as (host,):
        await start(host, bundle)
        await first_visit(host)
        done = await host.attempt(["runc", "run", "--bundle", str(bundle.path), "another"])
        assert done.returncode != 0
        assert done.stderr.startswith("Error: ")


async def test_nobody_special_can_serve_at_a_low_port(
    bundle: Made, application: Application
) -> None:
    other = replace(application, user=NOBODY, certificate=None, key=None)
    config = make_config(other, "/usr/bin/python3", NAME)
    config["root"]["path"] = f"{bundle.path}/rootfs"
    # The files of the bundle belong to another user.
    mount = {"destination": "/srv/app", "type": "bind", "source": "/run/app"}
    config["mounts"].append({**mount, "options": ["bind", "ro"]})
    async with hosts(bundle, "ia") as (host,):
        assert application.source is not None
        place = host.root / "run" / "app"
        shutil.copytree(application.source, place)
        for path in (place, *place.iterdir()):
            os.chown(path, NOBODY, NOBODY)
        folder = host.root / "run" / "other"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        await prepare(host, NOBODY)
        command = f"runc run --detach --bundle /run/other {NAME} </dev/null >/dev/null 2>&1"
        await host.run(["sh", "-c", command])
        assert await first_visit(host) == "visit 1"
        status = await inside(host, "cat", "/proc/1/status")
        assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}\n" in status
        assert "serves" in await inside(host, "cat", "/run/server.log")


async def test_podman_runs_and_moves_an_image(
    application: Application, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Lab() as lab:
        source, destination = [await lab.add_host(name) for name in ("ia", "ib")]
        for host in (source, destination):
            await host.run(["mkdir", "-p", "/var/lib/containers"])
            await host.run(["mount", "-t", "tmpfs", "disk", "/var/lib/containers"])
            (host.root / "etc/containers/containers.conf").write_text(PODMAN)
        _put_podman_first(source, tmp_path / "bin", monkeypatch)
        made = await asyncio.to_thread(make_podman_image, application, name=NAME, base=base)
        await source.run(["install", "-d", "-m", "700", str(made.socket_directory)])
        await source.run(made.command)
        assert await first_visit(source) == "visit 1"
        assert "serves shop:app" in (await source.run(["podman", "logs", NAME])).stderr

        await source.run(["podman", "save", "--output", f"/{IMAGES}.tar", made.reference])
        export = f"/{IMAGES}.checkpoint"
        await source.run(["podman", "container", "checkpoint", "--export", export, NAME])
        for name in (f"{IMAGES}.tar", f"{IMAGES}.checkpoint"):
            shutil.copy(source.root / name, destination.root / name)
        await destination.run(["podman", "load", "--input", f"/{IMAGES}.tar"])
        await destination.run(["install", "-d", "-m", "700", str(made.socket_directory)])
        await destination.run(["podman", "container", "restore", "--import", export])
        assert await first_visit(destination) == "visit 2"


def _put_podman_first(host: Host, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process's podman be the host's."""
    folder.mkdir()
    program = folder / "podman"
    program.write_text(f'#!/bin/sh\nexec {host.entered(["podman"])} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
