"""Runs between hosts that are namespaces: real processes, sockets and links.

The server is `quicferry serve`, an agent waits for it at the destination, and it is moved as the
how-to says: its connections are handed over by the management command ``handover``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from quicferry.protocol import MigrationProtocol, protocol_from_name
from quicferry.relocation import Step
from quicferry.server import ManagementClient, ManagementError, self_signed
from quicferry_lab.demo.processes import Child
from quicferry_lab.evaluation import scripts
from quicferry_lab.evaluation.move import FOLLOW_LIMIT, Move
from quicferry_lab.evaluation.result import Relocation, Result
from quicferry_lab.evaluation.run import WITHOUT, Run, Script
from quicferry_lab.evaluation.scripts import RunError, Stage
from quicferry_lab.ground import (
    AGENT_PORT,
    DESTINATION,
    GIGABIT,
    IDENTITY,
    PORT,
    SOURCE,
    START_LIMIT,
    Ground,
    inside,
    next_message,
)
from quicferry_lab.hosts import Host, PathSpec
from quicferry_lab.patience import patient

APPLICATION = "quicferry_lab.demo.app:app"
_CERTIFICATE, _KEY = "/run/certificate.pem", "/run/key.pem"
_SERVER_SOCKET, _AGENT_SOCKET = "/run/server.sock", "/run/agent.sock"
_DEADLINE = patient(30.0)
"""Seconds within which a server with very many clients has to be ready."""
_FREE_LIMIT = patient(10.0)
"""Seconds until a server that has been moved away has forwarded what came late, and ended."""


async def carry_out(run: Run) -> Result:
    """Carry out a run; what fails is in its result.

    Args:
        run: What to do. It needs root, and the laboratory's system.
    """
    return await scripts.carry_out(NetnsStage(run))


def near_path(run: Run) -> PathSpec:
    """Return the path between the clients and the destination, or to the host that is near."""
    return PathSpec(
        rtt_ms=run.destination_rtt_ms,
        rate_mbit=run.destination_rate_mbit,
        loss_percent=run.loss_percent,
        seed=run.seed,
    )


def far_path(run: Run) -> PathSpec:
    """Return the path between the clients and the source, or to the host that is far."""
    return PathSpec(
        rtt_ms=run.source_rtt_ms,
        rate_mbit=run.source_rate_mbit,
        loss_percent=run.loss_percent,
        seed=run.seed,
    )


class PlainGround(Ground):
    """Hosts for processes that are no containers.

    Args:
        at_source: The path from the client to the source, when the run begins.
        at_destination: The path from it to the destination.
    """

    def __init__(self, at_source: PathSpec, at_destination: PathSpec) -> None:
        super().__init__()
        self._paths = at_source, at_destination

    async def _set_up(self) -> None:
        await self._add_hosts()
        at_source, at_destination = self._paths
        certificate, key = self_signed((SOURCE, DESTINATION))
        await asyncio.gather(
            self._connect_client({self.source: at_source, self.destination: at_destination}),
            self._connect_hosts(GIGABIT),
        )
        self._trust(certificate)
        for host in (self.source, self.destination):
            inside(host, _CERTIFICATE).write_bytes(certificate)
            inside(host, _KEY).touch(mode=0o600)
            inside(host, _KEY).write_bytes(key)


@dataclass
class _Side:
    """One of the two hosts.

    Attributes:
        host: The host.
        socket: Of the server there that was started or adopted last.
        agent: What takes servers there.
        arrived: Whether a server serves there.
        free: Whether a server can come there.
    """

    host: Host
    socket: str
    agent: Child | None = None
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    free: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def address(self) -> str:
        """Where a server here is."""
        return f"{self.host.address}:{PORT}"


class NetnsStage(Stage):
    """A server in a process of its own, and agents."""

    def __init__(self, run: Run) -> None:
        follows = run.script is Script.FOLLOW  # then the client begins beside the server
        paths = (near_path(run), far_path(run)) if follows else (far_path(run), near_path(run))
        super().__init__(run, PlainGround(*paths))
        self._server: Child | None = None
        self._sides: list[_Side] = []

    async def _start_server(self) -> None:
        ground, run = self._ground, self.run
        here = _Side(ground.source, _SERVER_SOCKET)
        there = _Side(ground.destination, _AGENT_SOCKET)
        self._sides = [here, there]
        here.arrived.set()
        there.free.set()
        options = ["--json", "--until-eof", "--cert", _CERTIFICATE, "--key", _KEY]
        for address in scripts.pool(run):
            options += ["--pool", address]
        serve = ["quicferry", "serve", APPLICATION, "--bind", here.address]
        serve += ["--socket", _SERVER_SOCKET, *options]
        self._server = await ground.child("server", ground.source, serve, _kill)
        started = [self._server]
        if run.technique != WITHOUT:
            for side in self._sides if run.script is Script.FOLLOW else [there]:
                listen = f"{side.host.address}:{AGENT_PORT}"
                command = ["quicferry", "agent", "run", APPLICATION, "--listen", listen]
                command += ["--identity", IDENTITY, "--socket", _AGENT_SOCKET, *options]
                name = f"agent on {side.host.name}"
                side.agent = await ground.child(name, side.host, command, _kill)
                started.append(side.agent)
        try:
            for child in started:
                await next_message(child, "listening")
        except TimeoutError:
            raise RunError(f"server and agents were not there within {START_LIMIT:g} s") from None

    def watchers(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Return what watches the server and the agents."""
        watchers = [self._watch_agent(side) for side in self._sides if side.agent is not None]
        if self._server is not None:
            watchers.append(self._watch_server(self._server, self._sides[0]))
        return watchers

    async def _watch_server(self, server: Child, side: _Side) -> None:
        """Let the server end by itself when it has been handed over."""
        departed = False
        async for message in server.messages():
            departed = departed or message.get("phase") == "departed"
        if not departed:
            raise await server.unexpected_end()
        side.free.set()

    async def _watch_agent(self, side: _Side) -> None:
        assert side.agent is not None, "it is there"
        async for message in side.agent.messages():
            match message["event"]:
                case "serving":
                    side.socket = _AGENT_SOCKET
                    side.arrived.set()
                case "Released":
                    side.free.set()
        raise await side.agent.unexpected_end()

    def move(self) -> Move:
        """Return a handover from the one host to the other."""
        here, there = self._sides if len(self.moves) % 2 == 0 else reversed(self._sides)
        move = _Handover(self.run, len(self.moves) + 1, here, there, self._stack)
        self.moves.append(move)
        return move

    async def get_ready(self) -> Relocation:
        """Let the server get ready, and give that up.

        Its time is what the server itself has measured.
        """
        here, there = self._sides
        protocol = protocol_from_name(self.run.protocol)
        async with ManagementClient.connect(inside(here.host, here.socket)) as management:
            imminent_at = time.monotonic()
            preparation = await management.command(
                "imminent",
                protocol=self.run.protocol,
                address=there.address if protocol is MigrationProtocol.EXPLICIT else None,
                deadline=_DEADLINE,
            )
            with contextlib.suppress(ManagementError):  # it has given that up by itself
                await management.command("abort")
        relocation = Relocation(len(self.preparations) + 1, imminent_at=imminent_at)
        ready = len(preparation["connections"])
        if not preparation["ready"] or ready != self.run.clients:
            self.problems.append(f"{ready} of {self.run.clients} connections got ready")
            return relocation
        ready_at = imminent_at + preparation["seconds"]
        return Relocation(relocation.number, imminent_at=imminent_at, ready_at=ready_at)

    async def move_client(self) -> None:
        """Exchange the paths between the client and the two hosts."""
        one, other = self._ground.links.values()
        path_of_one, path_of_other = one.path, other.path
        await asyncio.gather(one.set(path_of_other), other.set(path_of_one))


class _Handover(Move):
    """A handover by the management command of that name."""

    _held = Step.DRAIN

    def __init__(
        self,
        run: Run,
        number: int,
        here: _Side,
        there: _Side,
        stack: contextlib.AsyncExitStack,
    ) -> None:
        super().__init__(number)
        self._run = run
        self._here = here
        self._there = there
        self._stack = stack
        self._management: ManagementClient | None = None

    async def _begin_at_once(self) -> None:
        await self._begin("at-once")

    async def _begin_held(self) -> None:
        await self._begin("step-by-step")

    async def _begin(self, pace: str) -> None:
        here, there = self._here, self._there
        try:
            async with asyncio.timeout(_FREE_LIMIT):
                await here.arrived.wait()
                await there.free.wait()
        except TimeoutError:
            raise RunError(
                f"the server could not be moved from {here.host.name} to {there.host.name}: the "
                f"one that was there before has not ended within {_FREE_LIMIT:g} s"
            ) from None
        here.arrived.clear()
        there.free.clear()
        connecting = ManagementClient.connect(inside(here.host, here.socket))
        management = self._management = await self._stack.enter_async_context(connecting)
        events = await management.events()
        for work in (self._listen(events), self._ask(management, pace)):
            task = asyncio.create_task(work)
            self._stack.push_async_callback(_end, task)

    async def _proceed(self) -> None:
        await self._command("proceed")

    async def _release(self) -> None:
        await self._command("proceed", pace="at-once")

    async def _command(self, name: str, **fields: Any) -> None:
        assert self._management is not None, "it has begun"
        await self._management.command(name, **fields)

    async def _listen(self, events: AsyncIterator[dict[str, Any]]) -> None:
        try:
            async for event in events:
                await self._heard(event)
        except ManagementError as exc:
            self._failed(exc)

    async def _ask(self, management: ManagementClient, pace: str) -> None:
        try:
            report = await management.command(
                "handover",
                agent=f"{self._there.host.address}:{AGENT_PORT}",
                identity=IDENTITY,
                address=self._there.address,
                protocol=self._run.protocol,
                deadline=_DEADLINE,
                timeout=FOLLOW_LIMIT + self._run.quiet,
                pace=pace,
            )
        except ManagementError as exc:
            self._failed(exc)
        else:
            self._reported(report)


async def _kill(child: Child) -> None:
    """End a process whose host is about to end as well."""
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        child.kill()
    await child.end()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
