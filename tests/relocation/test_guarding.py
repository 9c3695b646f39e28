"""The guard of a relocation does what whoever was killed would have done.

It is the real process, and a real server. Only the engine is a program that says what runc would.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from loopback import at, free_port, http_client, served, server_configuration

from quicferry import HttpClient, Server
from quicferry.relocation import HandoverCommands
from quicferry.relocation.container.guard import Stage
from quicferry.server import ManagementClient, ManagementServer, Phase

RUNC = """#!/bin/sh
echo "$@" >> {folder}/runc.log
if [ "$1" = state ]; then cat {folder}/state.json; fi
"""


@dataclass
class Watched:
    """A server in something like a container, and its guard.

    Attributes:
        server: The server.
        client: A client of it.
        management: Its management interface.
        images: The directory with images, which the guard wipes.
    """

    server: Server
    client: HttpClient
    management: ManagementClient
    images: Path
    process: asyncio.subprocess.Process
    log: Path

    async def tell(self, stage: Stage, pages: Any = None) -> None:
        assert self.process.stdin is not None
        line = json.dumps({"stage": stage.value, "pages": pages}).encode() + b"\n"
        self.process.stdin.write(line)
        await self.process.stdin.drain()

    async def ends(self) -> tuple[int | None, str]:
        """Let whoever tells it end; return how the guard has ended, and what it has said."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        _, said = await self.process.communicate()
        return self.process.returncode, said.decode()

    def engine_was_told(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    async def is_well(self) -> None:
        assert self.server.phase is Phase.SERVING
        assert (await self.client.request("POST", "/echo", body=b"on")).body == b"on"


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Watched]:
    sockets, images, programs = (folder / name for name in ("run", "images", "bin"))
    for path in (sockets, images, programs):
        path.mkdir(mode=0o700)
    mount = {"destination": "/run/quicferry", "type": "bind", "source": str(sockets)}
    (folder / "config.json").write_text(json.dumps({"mounts": [mount]}))
    state = {"status": "paused", "bundle": str(folder), "pid": os.getpid()}
    (folder / "state.json").write_text(json.dumps(state))
    (programs / "runc").write_text(RUNC.format(folder=folder))
    (programs / "runc").chmod(0o755)
    configuration = server_configuration()
    port = free_port("127.0.0.1", "127.0.0.2")
    socket = sockets / "server.sock"
    async with (
        served(port=port, configuration=configuration) as server,
        http_client(server) as client,
        ManagementServer(server, socket, HandoverCommands(server, "app").commands),
        ManagementClient.connect(socket) as management,
    ):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "quicferry.relocation.container.guarding"),
            *("runc", "site", str(images)),
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
        )
        try:
            yield Watched(server, client, management, images, process, folder / "runc.log")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def prepare(guarded: Watched) -> str:
    """Have the server prepare for a move, and return where to."""
    there = str(at("127.0.0.2", guarded.server.address.port))
    await guarded.management.command("imminent", protocol="symmetric", destination=there)
    return there


async def test_once_it_is_over_nothing_happens(tmp_path: Path) -> None:
    async with watched(tmp_path) as guarded:
        await prepare(guarded)
        await guarded.tell(Stage.ANNOUNCED)
        await guarded.tell(Stage.OVER)
        assert await guarded.ends() == (0, "")
        assert not guarded.engine_was_told()
        assert guarded.images.exists(), "whoever it watched over has wiped them, or will"
        assert guarded.server.phase is not Phase.SERVING


async def test_who_was_killed_after_the_announcement(tmp_path: Path) -> None:
    async with watched(tmp_path) as guarded:
        await prepare(guarded)
        await guarded.tell(Stage.ANNOUNCED)
        assert await guarded.ends() == (0, "")
        assert guarded.engine_was_told() == ["state -- site"], "it was not stopped"
        assert not guarded.images.exists()
        await guarded.is_well()


@pytest.mark.parametrize("has_fallen_silent", [False, True])
async def test_who_was_killed_with_the_container_stopped(
    tmp_path: Path, has_fallen_silent: bool
) -> None:
    async with watched(tmp_path) as guarded:
        there = await prepare(guarded)
        if has_fallen_silent:
            await guarded.management.command("suspend", address=there)
        await guarded.tell(Stage.ANNOUNCED)
        await guarded.tell(Stage.SUSPENDED)
        assert await guarded.ends() == (0, "")
        assert "resume -- site" in guarded.engine_was_told()
        assert not guarded.images.exists()
        await guarded.is_well()


async def test_whoever_serves_memory_is_told_that_nobody_wants_it(tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def serve_pages(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b""
        asked.set()
        writer.close()

    async with (
        watched(tmp_path) as guarded,
        await asyncio.start_server(serve_pages, "127.0.0.1", 0) as pages,
    ):
        await prepare(guarded)
        port = pages.sockets[0].getsockname()[1]
        await guarded.tell(Stage.SUSPENDED, ("127.0.0.1", port))
        assert await guarded.ends() == (0, "")
        await asked.wait()
        await guarded.is_well()


async def test_who_was_killed_at_the_commitment_leaves_it_to_people(tmp_path: Path) -> None:
    async with watched(tmp_path) as guarded:
        there = await prepare(guarded)
        await guarded.management.command("suspend", address=there)
        await guarded.tell(Stage.SUSPENDED)
        await guarded.tell(Stage.COMMITTING)
        status, said = await guarded.ends()
        assert status == 0
        assert "if the agent there says that it has adopted it, remove it here" in said
        assert not guarded.engine_was_told(), "it stays stopped"
        assert not guarded.images.exists(), "they hold keys"


async def test_it_outlives_what_ends_the_others(tmp_path: Path) -> None:
    """Ctrl-C, the end of the session and a service manager reach the whole group."""
    async with watched(tmp_path) as guarded:
        await prepare(guarded)
        await guarded.tell(Stage.ANNOUNCED)
        await until_it_ignores(guarded.process.pid, signal.SIGHUP)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            guarded.process.send_signal(number)
        assert await guarded.ends() == (0, "")
        await guarded.is_well()


async def test_a_container_that_cannot_be_brought_back(tmp_path: Path) -> None:
    async with watched(tmp_path) as guarded:
        (tmp_path / "config.json").write_text("{}")
        await guarded.tell(Stage.SUSPENDED)
        status, said = await guarded.ends()
        assert status == 1
        assert said.startswith("the container site could not be brought back: ")
        assert "Traceback" not in said
        assert not guarded.images.exists()


async def until_it_ignores(pid: int, number: signal.Signals) -> None:
    """Wait until a process has set about ignoring a signal."""
    while not ignored(pid) >> (number - 1) & 1:  # noqa: ASYNC110 (another process does)
        await asyncio.sleep(0)


def ignored(pid: int) -> int:
    """Return the signals that a process ignores, as a mask (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("SigIgn:")[2].split()[0], 16)
