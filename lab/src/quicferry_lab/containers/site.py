"""Two hosts that can have the server, and one with its clients.

Everything is done as a user would: the container is started by its engine, each host has an agent,
and the server is moved by `quicferry migrate`.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from quicferry.protocol import QuicferryError, protocol_name
from quicferry_lab.containers.bundle import CERTIFICATE, NAME, prepare_bundle
from quicferry_lab.containers.deployment import Deployment, deploy
from quicferry_lab.containers.settings import Settings, Whereabouts
from quicferry_lab.demo.processes import Child
from quicferry_lab.demo.results import ClientReport
from quicferry_lab.demo.settings import ClientPlan, WorkerSettings
from quicferry_lab.ground import (
    AGENT_PORT,
    CA,
    DESTINATION,
    IDENTITY,
    PORT,
    SOURCE,
    START_LIMIT,
    Ground,
    next_message,
)
from quicferry_lab.hosts import Host
from quicferry_lab.patience import patient

POOL = (f"{SOURCE}:{PORT}", f"{DESTINATION}:{PORT}")
"""Where the server comes up in a trial."""

SYSCTLS = ("fs.pipe-user-pages-soft=0", "fs.pipe-max-size=33554432")
"""What CRIU's page server needs where root lacks CAP_SYS_RESOURCE; they are the machine's."""
_REPORT_LIMIT = patient(30.0)
_MIGRATE_LIMIT = patient(90.0)
_LEASE = patient(60.0)
_DEADLINE = patient(5.0)


class SiteError(QuicferryError):
    """Something of a trial did not go as it should."""


class Site(Ground):
    """The hosts, the links and the container of a trial; an asynchronous context manager.

    Args:
        settings: Of the trial.
        pool: Addresses, as text, where the server may come up.

    Attributes:
        deployment: What the engine has to do with it.
        agents: Those that were started, by host.
    """

    deployment: Deployment

    def __init__(self, settings: Settings, pool: tuple[str, ...] = POOL) -> None:
        super().__init__()
        self._settings = settings
        self._pool = pool
        self._folder = Path()
        self.agents: dict[Host, Child] = {}

    async def _set_up(self) -> None:
        settings = self._settings
        self._folder = await asyncio.to_thread(prepare_bundle, (SOURCE, DESTINATION), self._pool)
        self.deployment = await deploy(settings.engine, self._folder)
        await self._add_hosts(
            folders=self.deployment.folders,
            run_size=4 << 30,
            clock_offset=settings.clock_offset,
        )
        if settings.technique.copies_after:
            for setting in SYSCTLS:
                await self.source.run(["sysctl", "--write", "--quiet", setting])
        paths = {self.source: settings.near, self.destination: settings.far}
        if settings.clients_are is Whereabouts.BEHIND_NAT:
            await self.lab.add_nat("nat", self.client, paths)
        else:
            await self._connect_client(paths)
        await self._connect_hosts(settings.between)
        self._trust((self._folder / CERTIFICATE).read_bytes())
        for host in (self.source, self.destination):
            await self.deployment.prepare(host)

    # The server

    async def start_server(self) -> None:
        """Start the container at the source, and wait until its server answers."""
        await self.deployment.start(self.source)
        socket = self.deployment.image.socket_directory / "server.sock"
        wait = f"until test -S {socket}; do sleep 0.05; done"
        await self.source.run(["timeout", str(START_LIMIT), "sh", "-c", wait])

    async def ask(self, path: str, *, of: Host, post: bool = False) -> str:
        """Return what the server answers to a request of a client."""
        method = ["--data", ""] if post else []
        url = f"https://{of.address}:{PORT}{path}"
        # One without the extension, so that it is in nobody's way if its last words are lost.
        fetch = ["quicferry", "fetch", url, "--ca", CA, "--protocols", "none", *method]
        done = await self.client.run(fetch)
        return done.stdout

    async def start_agent(self, host: Host, *options: str) -> Child:
        """Start an agent, and wait until it listens."""
        command = self.agent_command(host, *options)
        agent = await self.child(f"agent on {host.name}", host, command, Child.stop)
        await next_message(agent, "listening")
        self.agents[host] = agent
        return agent

    def agent_command(self, host: Host, *options: str) -> list[str]:
        """Return the command that is an agent."""
        return [
            *("quicferry", "agent", "receive", "--json", "--engine", self._settings.engine),
            *(*self.deployment.options, "--container", NAME, "--identity", IDENTITY),
            *("--listen", f"{host.address}:{AGENT_PORT}", *options),
        ]

    async def migrate(self, source: Host, destination: Host, *options: str) -> dict[str, Any]:
        """Move the server, and return the report."""
        done = await source.attempt(
            self.migrate_command(destination, *options), limit=_MIGRATE_LIMIT
        )
        lines = done.stdout.splitlines()
        if not lines or "outcome" not in lines[-1]:
            raise SiteError(f"quicferry migrate has ended with {done.returncode}: {done.stderr}")
        report: dict[str, Any] = json.loads(lines[-1])
        return report

    def migrate_command(self, destination: Host, *options: str) -> list[str]:
        """Return the command that moves the server."""
        settings = self._settings
        return [
            *("quicferry", "migrate", "--json", "--engine", settings.engine, "--container", NAME),
            *("--technique", settings.technique.value, "--identity", IDENTITY),
            *("--to", f"{destination.address}:{AGENT_PORT}"),
            *("--protocol", protocol_name(settings.protocol)),
            *("--compress", settings.compression.value, "--lease", f"{_LEASE:g}"),
            *("--deadline", f"{_DEADLINE:g}", *options),
        ]

    # The clients

    async def start_load(self) -> Load:
        """Let clients connect to the server at the source, and begin with their requests."""
        settings = self._settings
        plans = tuple(
            ClientPlan(number, protocol_name(settings.protocol), settings.policy.value, seed)
            for number in range(1, settings.clients + 1)
            for seed in [settings.seed * 1_000_003 + number]
        )
        worker = await self.child(
            "clients", self.client, ["python3", "-m", "quicferry_lab.demo.worker"]
        )
        orders = WorkerSettings(
            server=f"{self.source.address}:{PORT}",
            ca_file=CA,
            clients=plans,
            paths={},
            scheduler="parallel",
        )
        load = Load(worker, plans)
        await load.begin(orders)
        return load


class Load:
    """Clients at work.

    Args:
        worker: The process that they live in.
        plans: Who they are.
    """

    def __init__(self, worker: Child, plans: tuple[ClientPlan, ...]) -> None:
        self._worker = worker
        self._plans = plans
        self._messages = worker.messages()

    async def begin(self, orders: WorkerSettings) -> None:
        """Wait until all are connected, and let them begin."""
        self._worker.say(**orders.encode())
        connected = 0
        async with asyncio.timeout(START_LIMIT):
            async for message in self._messages:
                connected += message["event"] == "connected"
                if connected == len(self._plans):
                    self._worker.say(do="begin")
                    return
        raise await self._worker.unexpected_end()

    def probe(self) -> None:
        """Tell proactive clients that the server has moved."""
        self._worker.say(do="probe")

    async def run(self, seconds: float) -> None:
        """Let so much time pass, in which they work."""
        ends_at = asyncio.get_running_loop().time() + seconds
        async for _ in self._messages:
            if asyncio.get_running_loop().time() >= ends_at:
                return
        raise await self._worker.unexpected_end()

    async def stop(self) -> list[ClientReport]:
        """End it, and return what each client has found."""
        self._worker.say(do="stop")
        reports: list[ClientReport] = []
        async with asyncio.timeout(_REPORT_LIMIT):
            async for message in self._messages:
                if message["event"] == "report":
                    reports.append(ClientReport.decode(message["client"]))
                    if len(reports) == len(self._plans):
                        return reports
        raise await self._worker.unexpected_end()
