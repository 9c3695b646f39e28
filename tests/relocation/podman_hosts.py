"""Hosts of the laboratory with Podman, an image, and a small server to be moved."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quicferry_lab.hosts import Host, Lab

IMAGE = "localhost/echo:1"
NAME = "echo"
STORAGE = "/var/lib/containers"
SCRATCH = ("/tmp", "/var/tmp")
ROOM = 8
"""Megabytes that may be written to what stands for a disk once the image is there."""

IMAGES = Path("run/moving/images")

CONFIGURATION = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
[containers]
pids_limit = 0
"""

SERVER = """
import os, socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("0.0.0.0", 4433))
management = socket.socket(socket.AF_UNIX)
management.bind("/run/quicferry/server.sock")
management.listen()
memory = os.urandom(int(os.environ["MEMORY"]) << 20)
with open("/dev/shm/shared", "wb") as file:
    file.write(memory[: int(os.environ["SHARED"]) << 20])
count = 0
print("serving", flush=True)
while True:
    _, client = udp.recvfrom(100)
    count += 1
    with open("/dev/shm/shared", "rb") as file:
        shared = sum(file.read()[::512])
    udp.sendto(f"{count} {sum(memory[::512])} {shared}".encode(), client)
"""
"""Answers with how often it was asked, and with what its memory adds up to."""

CLIENT = """
import socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.settimeout(5)
udp.connect(("127.0.0.1", 4433))
udp.send(b"?")
print(udp.recv(100).decode())
"""

MAKE_ROOT = """
set -e
cd /
mkdir -p "$0"
cp -a --parents bin lib lib64 usr/bin/python3* usr/lib/python3.* srv/server.py "$0"
for library in $(ldd /usr/bin/python3 | grep -o '/[^ ]*'); do
    cp -L --parents "/usr$library" "$0"
done
exec tar -cf "$0.tar" -C "$0" .
"""


@dataclass
class PodmanHost:
    """A host with Podman and the image.

    Attributes:
        host: The host.
    """

    host: Host

    async def run(self, *command: str) -> str:
        """Run a program, and return what it prints."""
        return (await self.host.run(command)).stdout

    async def start_server(self, *options: str, memory: int = 1, shared: int = 0) -> None:
        """Start the server in a container.

        Args:
            options: Of ``podman run``, beside those that are needed.
            memory: Megabytes that it has.
            shared: Megabytes of them that it has in /dev/shm as well.
        """
        await self.run("mkdir", "-p", "-m", "700", f"/run/quicferry/{NAME}")
        await self.run(
            *("podman", "run", "--detach", "--name", NAME, "--network", "host"),
            *("--env", f"MEMORY={memory}", "--env", f"SHARED={shared}"),
            *("--volume", f"/run/quicferry/{NAME}:/run/quicferry", *options, IMAGE),
        )
        while "serving" not in await self.run("podman", "logs", NAME):
            status = await self.run("podman", "inspect", "--format", "{{.State.Status}}", NAME)
            assert status.strip() == "running"

    async def ask(self) -> list[int]:
        """Return what the server answers: how often it was asked, and what its memory is."""
        return [int(word) for word in (await self.run("python3", "-c", CLIENT)).split()]

    async def take(self, *steps: str, image: str = IMAGE) -> dict[str, Any]:
        """Take steps with the engine, and return what it has told."""
        told = json.loads(await self.run(*_driver(image, steps)))
        assert isinstance(told, dict)
        return told

    async def begin(self, *steps: str) -> asyncio.subprocess.Process:
        """Begin to take steps with the engine."""
        return await self.host.start(_driver(IMAGE, steps))

    async def succeed(self, *steps: str) -> dict[str, Any]:
        """Take steps with the engine, none of which fails."""
        told = await self.take(*steps)
        assert told["errors"] == {}, told["errors"]
        return told

    async def status(self) -> str:
        """Return what Podman says that the container does; nothing if there is none."""
        form = ("--format", "{{.State}}", "--all")
        return (await self.run("podman", "ps", *form)).strip()

    async def left(self) -> list[str]:
        """Return what is left in memory or on disk of checkpoints, beside the images."""
        mounts = await self.run("cat", "/proc/self/mounts")
        names = [line.split()[1] for line in mounts.splitlines() if "checkpoint" in line]
        found = await self.run("find", STORAGE, "-name", "*checkpoint*")
        return names + found.split()

    async def carry_to(self, other: PodmanHost) -> None:
        """Copy the images to another host; they are gone here then."""
        source, target = self.host.root / IMAGES, other.host.root / IMAGES
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in source.iterdir():
            shutil.copy(path, target / path.name)
        await self.run("rm", "-r", f"/{IMAGES.parent}")

    async def make_small(self, *places: str) -> None:
        """Leave little room in file systems."""
        for place in places:
            line = (await self.run("df", "--block-size", "1M", "--output=used", place)).split()
            size = f"remount,size={int(line[-1]) + ROOM}m"
            await self.run("mount", "-o", size, place)


def _driver(image: str, steps: Sequence[str]) -> list[str]:
    code = (Path(__file__).parent / "podman_driver.py").read_text()
    return ["python3", "-c", code, image, NAME, *steps]


@asynccontextmanager
async def podman_hosts(*names: str) -> AsyncIterator[list[PodmanHost]]:
    """Provide hosts with Podman and one image, whose disks have little room.

    A disk is a small file system here: a checkpoint that was written to it would not fit.
    """
    async with Lab() as lab:
        hosts = [PodmanHost(await lab.add_host(name)) for name in names]
        image = Path("run/image.tar")
        for host in hosts:
            for place in (STORAGE, "/var/tmp"):
                await host.run("mkdir", "-p", place)
                await host.run("mount", "-t", "tmpfs", "disk", place)
            (host.host.root / "etc/containers/containers.conf").write_text(CONFIGURATION)
            if host is hosts[0]:
                await _make_image(host, image)
            else:
                shutil.copy(hosts[0].host.root / image, host.host.root / image)
                await host.run("podman", "load", "--input", f"/{image}")
            await host.make_small(STORAGE, *SCRATCH)
        yield hosts


async def _make_image(host: PodmanHost, image: Path) -> None:
    (host.host.root / "srv/server.py").write_text(SERVER)
    await host.run("sh", "-c", MAKE_ROOT, "/run/root")
    command = json.dumps(["/usr/bin/python3", "/srv/server.py"])
    await host.run("podman", "import", "--change", f"CMD {command}", "/run/root.tar", IMAGE)
    await host.run("podman", "save", "--output", f"/{image}", IMAGE)
