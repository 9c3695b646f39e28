"""Two hosts that can have a server, one with its clients, and the links between them.

What stands on it, and how the server is moved, is up to whoever uses it: see
`quicferry_lab.containers.site` and `quicferry_lab.evaluation`.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from quicferry.relocation import make_identities
from quicferry_lab.demo.processes import Child
from quicferry_lab.demo.settings import LINE_LIMIT
from quicferry_lab.emulation import PathSpec
from quicferry_lab.hosts import Host, Lab, Link
from quicferry_lab.patience import VARIABLE, patient

PORT = 4433
AGENT_PORT = 4434
SOURCE, DESTINATION, CLIENT = "10.77.0.1", "10.77.0.2", "10.77.0.3"

GIGABIT = PathSpec(rate_mbit=1000, queue_ms=10)
"""The link between the two hosts."""

IDENTITY = "/run/identity"
"""Where each of the two hosts has its identity."""
CA = "/run/ca.pem"
"""Where the client's host has the server's certificate."""
START_LIMIT = patient(20.0)


class Ground(ABC):
    """The hosts and the links; an asynchronous context manager.

    Attributes:
        lab: The laboratory that they are in.
        source: The host that has the server first.
        destination: The host that it goes to.
        client: The host of the clients.
        between: The link between the first two.
        links: From the client to each of them, if it is connected directly.
    """

    lab: Lab
    source: Host
    destination: Host
    client: Host
    between: Link

    def __init__(self) -> None:
        self.links: dict[Host, Link] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._set_up()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    @abstractmethod
    async def _set_up(self) -> None:
        """Make the hosts and the links, with the methods below, and what else there is to be."""

    async def _add_hosts(
        self,
        *,
        folders: Mapping[str, Path] | None = None,
        run_size: int = 1 << 30,
        clock_offset: int | None = None,
    ) -> None:
        """Make the hosts.

        Args:
            folders: What the two see of the machine, as for `Lab.add_host`.
            run_size: How large their /run may become, in bytes.
            clock_offset: Seconds by which the destination's clocks are ahead.
        """
        lab = self.lab = await self._stack.enter_async_context(Lab())
        self.source, self.destination, self.client = await asyncio.gather(
            lab.add_host("source", folders=folders, run_size=run_size),
            lab.add_host(
                "destination", folders=folders, run_size=run_size, clock_offset=clock_offset
            ),
            lab.add_host("client"),
        )
        addresses = [str(host.address) for host in (self.source, self.destination, self.client)]
        assert addresses == [SOURCE, DESTINATION, CLIENT], "hosts are numbered from the first on"

    async def _connect_hosts(self, between: PathSpec) -> None:
        self.between = await self.lab.connect(self.source, self.destination, between)

    async def _connect_client(self, paths: Mapping[Host, PathSpec]) -> None:
        links = await asyncio.gather(
            *(self.lab.connect(self.client, host, path) for host, path in paths.items())
        )
        self.links = dict(zip(paths, links, strict=True))

    def _trust(self, certificate: bytes) -> None:
        """Give the two hosts their identities, and the client what it has to trust."""
        with tempfile.TemporaryDirectory() as made:
            folders = make_identities(Path(made), [SOURCE, DESTINATION])
            for host in (self.source, self.destination):
                _copy(folders[str(host.address)], inside(host, IDENTITY))
        inside(self.client, CA).write_bytes(certificate)

    async def child(
        self,
        name: str,
        host: Host,
        command: list[str],
        end: Callable[[Child], Awaitable[None]] = Child.end,
    ) -> Child:
        """Start a process that speaks JSON lines; it ends with this ground.

        Args:
            name: What it is called in errors.
            host: Where it runs.
            command: The program and its arguments.
            end: How it is ended.
        """
        process = await host.start(
            command,
            env={"PYTHONUNBUFFERED": "1", VARIABLE: os.environ.get(VARIABLE, "1")},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            longest_line=LINE_LIMIT,
        )
        child = Child(name, process)
        self._stack.push_async_callback(end, child)
        return child


def inside(host: Host, path: str) -> Path:
    """Return where a path of a host is, as seen from outside."""
    return host.root / path.lstrip("/")


async def next_message(child: Child, event: str) -> dict[str, Any]:
    """Return the next message of a kind that a child says.

    Raises:
        DemoError: It has ended.
        TimeoutError: It does not say so in time.
    """
    async with asyncio.timeout(START_LIMIT):
        async for message in child.messages():
            if message["event"] == event:
                return message
    raise await child.unexpected_end()


def _copy(folder: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    for path in folder.iterdir():
        copy = target / path.name
        copy.touch(mode=path.stat().st_mode & 0o777)
        copy.write_bytes(path.read_bytes())
