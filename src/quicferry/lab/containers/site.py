"""Two hosts that can have the server, and one with its clients.

Everything is done as a user would: the container is started by its engine, each host has an agent,
and the server is moved by `quicferry migrate`.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from quicferry.lab.containers.bundle import CERTIFICATE, NAME, prepare_bundle
from quicferry.lab.containers.deployment import Deployment, deploy
from quicferry.lab.containers.settings import Settings, Whereabouts
from quicferry.lab.demo.processes import Child
from quicferry.lab.demo.results import ClientReport
from quicferry.lab.demo.settings import LINE_LIMIT, ClientPlan, WorkerSettings
from quicferry.lab.hosts import Host, Lab, Link
from quicferry.lab.patience import VARIABLE, patient
from quicferry.protocol import QuicferryError, protocol_name
from quicferry.relocation import make_identities

PORT = 4433
AGENT_PORT = 4434
SOURCE, DESTINATION, CLIENT = "10.77.0.1", "10.77.0.2", "10.77.0.3"

SYSCTLS = ("fs.pipe-user-pages-soft=0", "fs.pipe-max-size=33554432")
"""What CRIU's page server needs where root lacks CAP_SYS_RESOURCE; they are the machine's."""
_IDENTITY = "/run/identity"
_CA = "/run/ca.pem"
_START_LIMIT = patient(20.0)
_REPORT_LIMIT = patient(30.0)
_MIGRATE_LIMIT = patient(90.0)
_LEASE = patient(60.0)
_DEADLINE = patient(5.0)


class SiteError(QuicferryError):
    """Something of a trial did not go as it should."""


class Site:
    """The hosts, the links and the container of a trial; an asynchronous context manager.

    Attributes:
        source: The host that has the server first.
        destination: The host that it goes to.
        client: The host of the clients.
        between: The link between the first two.
        deployment: What the engine has to do with it.
    """

    source: Host
    destination: Host
    client: Host
    between: Link
    deployment: Deployment

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._folder = Path()
        self.agents: dict[Host, Child] = {}

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

    async def _set_up(self) -> None:
        settings = self._settings
        self._folder = await asyncio.to_thread(prepare_bundle, (SOURCE, DESTINATION))
        self.deployment = await deploy(settings.engine, self._folder)
        lab = await self._stack.enter_async_context(Lab())
        folders = self.deployment.folders
        self.source = await lab.add_host("source", folders=folders, run_size=4 << 30)
        self.destination = await lab.add_host(
            "destination",
            folders=folders,
            run_size=4 << 30,
            clock_offset=settings.clock_offset,
        )
        self.client = await lab.add_host("client")
        if settings.technique.copies_after:
            for setting in SYSCTLS:
                await self.source.run(["sysctl", "--write", "--quiet", setting])
        addresses = [str(host.address) for host in (self.source, self.destination, self.client)]
        assert addresses == [SOURCE, DESTINATION, CLIENT], "hosts are numbered from the first on"
        paths = {self.source: settings.near, self.destination: settings.far}
        if settings.clients_are is Whereabouts.BEHIND_NAT:
            await lab.add_nat("nat", self.client, paths)
        else:
            for host, path in paths.items():
                await lab.connect(self.client, host, path)
        self.between = await lab.connect(self.source, self.destination, settings.between)
        with tempfile.TemporaryDirectory() as made:
            folders_of = make_identities(Path(made), [SOURCE, DESTINATION])
            for host in (self.source, self.destination):
                _copy(folders_of[str(host.address)], host.root / _IDENTITY.lstrip("/"))
                await self.deployment.prepare(host)
        certificate = self._folder / CERTIFICATE
        (self.client.root / _CA.lstrip("/")).write_bytes(certificate.read_bytes())

    # The server

    async def start_server(self) -> None:
        """Start the container at the source, and wait until its server answers."""
        await self.deployment.start(self.source)
        socket = self.deployment.image.socket_directory / "server.sock"
        wait = f"until test -S {socket}; do sleep 0.05; done"
        await self.source.run(["timeout", str(_START_LIMIT), "sh", "-c", wait])

    async def ask(self, path: str, *, of: Host, post: bool = False) -> str:
        """Return what the server answers to a request of a client."""
        method = ["--data", ""] if post else []
        url = f"https://{of.address}:{PORT}{path}"
        # One without the extension, so that it is in nobody's way if its last words are lost.
        fetch = ["quicferry", "fetch", url, "--ca", _CA, "--protocols", "none", *method]
        done = await self.client.run(fetch)
        return done.stdout

    async def start_agent(self, host: Host, *options: str) -> Child:
        """Start an agent, and wait until it listens."""
        command = self.agent_command(host, *options)
        agent = await self._child(f"agent on {host.name}", host, command, Child.stop)
        await _message(agent, "listening")
        self.agents[host] = agent
        return agent

    def agent_command(self, host: Host, *options: str) -> list[str]:
        """Return the command that is an agent."""
        return [
            *("quicferry", "agent", "receive", "--json", "--engine", self._settings.engine),
            *(*self.deployment.options, "--identity", _IDENTITY),
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
            *("--technique", settings.technique.value, "--identity", _IDENTITY),
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
        worker = await self._child(
            "clients", self.client, ["python3", "-m", "quicferry.lab.demo.worker"]
        )
        orders = WorkerSettings(
            server=f"{self.source.address}:{PORT}",
            ca_file=_CA,
            clients=plans,
            paths={},
            scheduler="parallel",
        )
        load = Load(worker, plans)
        await load.begin(orders)
        return load

    async def _child(
        self,
        name: str,
        host: Host,
        command: list[str],
        end: Callable[[Child], Awaitable[None]] = Child.end,
    ) -> Child:
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
        async with asyncio.timeout(_START_LIMIT):
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


async def _message(child: Child, event: str) -> dict[str, Any]:
    """Return the next message of a kind that a child says."""
    async with asyncio.timeout(_START_LIMIT):
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
