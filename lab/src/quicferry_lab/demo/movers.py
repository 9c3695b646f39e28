"""How the demo's server is moved: the processes that it takes, and what they are told.

- *rebind*: one server process, which binds another address.
- *handover*: the server process hands its connections over to an agent on the other side, which
  serves them from then on, and hands them back if the server is to return.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quicferry.relocation.link.identity import make_identities
from quicferry.server import ManagementClient
from quicferry.server.certificate import self_signed
from quicferry_lab.demo.processes import Child, DemoError, child
from quicferry_lab.demo.results import Relocation
from quicferry_lab.demo.settings import Settings, Technique
from quicferry_lab.memory import resident_memory

START_TIMEOUT = 20.0
RELOCATION_TIMEOUT = 15.0

APPLICATION = "quicferry_lab.demo.app:app"


@dataclass(frozen=True)
class Stage:
    """What a mover works with.

    Attributes:
        settings: What to do.
        port: Of the server, wherever it is.
        folder: For files, removed at the end.
        stack: Ends the processes.
        note: Is told what happens.
        told: Called right after each switch.
    """

    settings: Settings
    port: int
    folder: Path
    stack: AsyncExitStack
    note: Callable[[str], None]
    told: Callable[[], None]

    @property
    def certificate(self) -> Path:
        """The server's certificate, for its clients."""
        return self.folder / "certificate.pem"

    def ends(self, number: int) -> tuple[str, str]:
        """Return from where to where the server moves in a relocation, counted from 0."""
        there = f"{self.settings.source}:{self.port}", f"{self.settings.destination}:{self.port}"
        return there if number % 2 == 0 else (there[1], there[0])


class Mover(ABC):
    """Starts the demo's server, and relocates it.

    Args:
        stage: What to work with.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    @abstractmethod
    async def start(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Start all processes; return what watches them, and raises when one dies."""

    @abstractmethod
    async def relocate(self, number: int) -> Relocation:
        """Do a relocation, counted from 0."""

    async def _serve(self) -> Child:
        certificate, key = self_signed(
            [self._stage.settings.source, self._stage.settings.destination]
        )
        self._stage.certificate.write_bytes(certificate)
        self._key.touch(mode=0o600)
        self._key.write_bytes(key)
        address, _ = self._stage.ends(0)
        server = await self._child(
            "server", "serve", APPLICATION, "--bind", address, "--socket", str(self._socket("home"))
        )
        self._stage.note(f"the server listens on {address}")
        return server

    async def _child(self, name: str, *arguments: str) -> Child:
        """Start a process that serves the demo's application, and wait until it listens."""
        stage = self._stage
        options = ["--json", "--until-eof"]
        options += ["--cert", str(stage.certificate), "--key", str(self._key)]
        for address in stage.settings.pool(stage.port):
            options += ["--pool", str(address)]
        if stage.settings.qlog is not None:
            options += ["--qlog", str(stage.settings.qlog)]
        started = await stage.stack.enter_async_context(
            child(name, "quicferry.cli", [*arguments, *options])
        )
        async with limited(START_TIMEOUT, f"the {name} did not start"):
            async for message in started.messages():
                if message["event"] == "listening":
                    started.listening = message
                    return started
        raise await started.unexpected_end()

    @property
    def _key(self) -> Path:
        return self._stage.folder / "key.pem"

    def _socket(self, name: str) -> Path:
        return self._stage.folder / f"{name}.sock"


class Rebind(Mover):
    """The server binds another address."""

    async def start(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Start the server."""
        return [_watch(await self._serve())]

    async def relocate(self, number: int) -> Relocation:
        """Let the server move."""
        source, destination = self._stage.ends(number)
        note = self._stage.note
        async with ManagementClient.connect(self._socket("home")) as management:
            imminent_at = time.monotonic()
            preparation = await management.command(
                "imminent", address=destination, bind=destination
            )
            if not preparation["ready"]:
                raise DemoError(f"the server did not get ready to move: {preparation}")
            ready_at = time.monotonic()
            note(f"ready to move to {destination} after {(ready_at - imminent_at) * 1000:.1f} ms")
            switched_at = (await management.command("switch", address=destination))["switched_at"]
            self._stage.told()
            note(f"switched to {destination}")
            completion = await management.command("wait", timeout=RELOCATION_TIMEOUT)
        if not completion["completed"]:
            raise DemoError(f"not every client completed its migration: {completion}")
        note(f"all migrations completed {completion['seconds'] * 1000:.1f} ms after the switch")
        completed_at = switched_at + completion["seconds"]
        return Relocation(source, destination, imminent_at, ready_at, switched_at, completed_at)


class Handover(Mover):
    """The server hands its connections over to the agent on the other side."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._agents: list[Child] = []
        self._left = asyncio.Event()
        self._arrived = [asyncio.Event(), asyncio.Event()]

    async def start(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Start the server, and an agent on each side that it will come to."""
        stage = self._stage
        hosts = (stage.settings.destination, stage.settings.source)
        make_identities(stage.folder / "identities", hosts)
        server = await self._serve()
        for name, host in zip(("destination", "source"), hosts, strict=True):
            if len(self._agents) < stage.settings.relocations:
                agent = await self._child(
                    f"agent at {host}",
                    *("agent", "run", APPLICATION, "--listen", f"{host}:0"),
                    *("--identity", str(stage.folder / "identities" / host)),
                    *("--socket", str(self._socket(name))),
                )
                self._agents.append(agent)
        return [
            self._watch_server(server),
            *(self._watch_agent(side, agent) for side, agent in enumerate(self._agents)),
        ]

    async def relocate(self, number: int) -> Relocation:
        """Let the server hand over."""
        stage, side = self._stage, number % 2
        source, destination = stage.ends(number)
        if number == 0:
            socket = self._socket("home")
        else:
            socket = self._socket(("source", "destination")[side])
            await self._left.wait()  # its address is free again
            await self._arrived[1 - side].wait()
        self._arrived[side].clear()
        host = stage.settings.source if side == 0 else stage.settings.destination
        async with ManagementClient.connect(socket) as management:
            events = await management.events()
            telling = asyncio.create_task(self._tell(events))
            try:
                report = await management.command(
                    "handover",
                    agent=self._agents[side].listening["address"],
                    identity=str(stage.folder / "identities" / host),
                    address=destination,
                    timeout=RELOCATION_TIMEOUT,
                )
            finally:
                telling.cancel()
        if report["outcome"] != "committed":
            raise DemoError(f"the handover has failed: {report['reason']}")
        if not report["followed"]:
            raise DemoError(f"not every client completed its migration: {report}")
        phases = report["phases"]
        stage.note(
            f"{report['bytes']} bytes of state, silent for {report['silence'] * 1000:.1f} ms; "
            f"all migrations completed {phases['follow'] * 1000:.1f} ms after that"
        )
        imminent_at = report["started_at"] + phases["offer"]
        # The source hears of it later than the first clients may.
        switched_at = report["owned_at"] - phases["commit"]
        return Relocation(
            source,
            destination,
            imminent_at=imminent_at,
            ready_at=imminent_at + phases["imminent"],
            switched_at=switched_at,
            completed_at=report["owned_at"] + phases["follow"],
            phases=phases,
            memory=tuple(resident_memory(agent.listening["pid"]) for agent in self._agents),
        )

    async def _tell(self, events: AsyncIterator[dict[str, Any]]) -> None:
        async for event in events:
            if event["event"] == "StepEnded":
                self._stage.note(f"{event['step']}: {event['seconds'] * 1000:.1f} ms")
                if event["step"] == "commit":
                    self._stage.told()

    async def _watch_server(self, server: Child) -> None:
        """Let the server end by itself when it has been handed over."""
        left = False
        async for message in server.messages():
            left = left or message.get("phase") == "departed"
        if not left:
            raise await server.unexpected_end()
        self._left.set()

    async def _watch_agent(self, side: int, agent: Child) -> None:
        async for message in agent.messages():
            if message["event"] == "serving":
                self._arrived[side].set()
        raise await agent.unexpected_end()


def make_mover(stage: Stage) -> Mover:
    """Return the mover of the technique that the settings name."""
    movers = {Technique.REBIND: Rebind, Technique.HANDOVER: Handover}
    return movers[stage.settings.technique](stage)


async def _watch(process: Child) -> None:
    async for _ in process.messages():
        pass  # its events are in the results already
    raise await process.unexpected_end()


@asynccontextmanager
async def limited(seconds: float, problem: str) -> AsyncIterator[None]:
    """Fail with `problem` when the context takes too long."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise DemoError(f"{problem} within {seconds:.0f} s") from None
