"""A server, and an agent that takes it over, in one process on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopback import at, demo_app, free_port, served, server_configuration

from quicferry import Address, Configuration, Server, ServerMigration
from quicferry.protocol import MigrationAddress
from quicferry.relocation.handover.agent import Agent
from quicferry.relocation.handover.technique import Handover, HandoverPlan
from quicferry.relocation.link.identity import Identity, make_identities
from quicferry.relocation.steps.orchestration import Gate
from quicferry.relocation.steps.report import RelocationReport, Step
from quicferry.server import RelocationEvent

SOURCE, DESTINATION = "127.0.0.1", "127.0.0.2"
APPLICATION = "tests:app"


@dataclass
class Hosts:
    """Two hosts that trust each other, and a server on one of them.

    Attributes:
        server: The server.
        agent: What it may be handed over to.
        identities: Of both hosts, by address.
        told: What the handovers have told.
    """

    server: Server
    agent: Agent
    identities: dict[str, Path]
    told: list[RelocationEvent] = field(default_factory=list)

    @property
    def destination(self) -> Address:
        return at(DESTINATION, self.server.address.port)

    def handover(
        self,
        gate: Gate | None = None,
        port: int | None = None,
        to: Address | None = None,
        **choices: Any,
    ) -> Handover:
        port = port or self.agent.address.port
        plan = HandoverPlan(DESTINATION, port, to or self.destination, **choices)
        identity = Identity.load(self.identities[SOURCE])
        return Handover(self.server, APPLICATION, plan, identity, tell=self.told.append, gate=gate)

    async def hand_over(self, **choices: Any) -> RelocationReport:
        return await self.handover(**choices).run()


def configuration(port: int) -> Configuration:
    """Return the configuration of a server that may move between the hosts."""
    pool = tuple(MigrationAddress.of(at(host, port)) for host in (DESTINATION, SOURCE))
    return server_configuration(ServerMigration(pool=pool))


@asynccontextmanager
async def agent_at(
    host: str, port: int, identities: dict[str, Path], app: Any = demo_app, **arguments: Any
) -> AsyncIterator[Agent]:
    """Provide an agent that listens at any port of a host."""
    arguments.setdefault("application", APPLICATION)
    arguments.setdefault("configuration", configuration(port))
    identity = Identity.load(identities[host])
    async with Agent(app, identity=identity, listen=at(host, 0), **arguments) as agent:
        yield agent


@asynccontextmanager
async def two_hosts(
    folder: Path, app: Any = demo_app, agent_app: Any = None, **arguments: Any
) -> AsyncIterator[Hosts]:
    """Provide a server at one host, and an agent at the other."""
    port = free_port(SOURCE, DESTINATION)
    identities = make_identities(folder / "identities", [SOURCE, DESTINATION])
    async with (
        served(app, host=SOURCE, port=port, configuration=configuration(port)) as server,
        agent_at(DESTINATION, port, identities, agent_app or app, **arguments) as agent,
    ):
        yield Hosts(server, agent, identities)


class Stop:
    """Holds a handover before a step.

    Args:
        step: Which one.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self.reached = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, step: Step) -> None:
        if step is self._step:
            self.reached.set()
            await self.go.wait()


class Relay:
    """A link between a source and an agent, on which messages can be kept from arriving.

    Attributes:
        loses_answers: Whether what the agent says is lost from now on.
        loses_orders: Whether what the source says is.
        lost: Set when something was.
    """

    def __init__(self, port: int) -> None:
        self.loses_answers = self.loses_orders = False
        self.lost = asyncio.Event()
        self._port = port
        self._writers: list[asyncio.StreamWriter] = []

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        agent_reader, agent_writer = await asyncio.open_connection(DESTINATION, self._port)
        self._writers += (writer, agent_writer)
        orders = self._copy(reader, agent_writer, lambda: self.loses_orders)
        answers = self._copy(agent_reader, writer, lambda: self.loses_answers)
        await asyncio.gather(orders, answers)

    def cut(self) -> None:
        """End the links that there are; the next ones are sound."""
        self.loses_answers = self.loses_orders = False
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _copy(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        loses: Callable[[], bool],
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if loses():
                    self.lost.set()
                else:
                    writer.write(data)
        writer.close()
