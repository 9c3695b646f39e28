"""The three parties of a handover as processes: the server, the agent, and who orders it.

What a process says, line by line, is what tests wait for. Every process is killed at the end of the
test that has started it, whatever happens.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loopback import (
    Filter,
    at,
    certificate,
    client_configuration,
    free_port,
    http_client,
    served,
)
from quicferry_lab.demo.app import app
from relocation.agents import agent_at, configuration

import quicferry
from quicferry import Address, ClientMigration, HttpClient, MigrationProtocol
from quicferry.relocation import (
    Handover,
    HandoverPlan,
    Identity,
    Outcome,
    make_identities,
)
from quicferry.server import ManagementClient

CLI = [sys.executable, "-m", "quicferry.cli"]
APPLICATION = "quicferry_lab.demo.app:app"
SOURCE, DESTINATION = "127.0.0.1", "127.0.0.2"

PROTOCOLS = (
    MigrationProtocol.EXPLICIT,
    MigrationProtocol.POOL_OF_ADDRESSES,
    MigrationProtocol.SYMMETRIC,
    MigrationProtocol.SYNCHRONIZED_SYMMETRIC,
)


class Party:
    """One process that says what happens to it, a JSON object in each line.

    Attributes:
        said: What it has said so far.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._news = asyncio.Event()
        self._reading = asyncio.gather(self._read_events(), self._read_errors())
        self._text = self._errors = b""
        self.said: list[dict[str, Any]] = []

    @classmethod
    async def start(cls, folder: Path, *arguments: str | Path) -> Party:
        """Start a command of the command line in a directory."""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *CLI,
            *map(str, arguments),
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            cwd=folder,
            start_new_session=True,
        )
        return cls(process)

    async def hears(self, event: str, **fields: Any) -> dict[str, Any]:
        """Wait until it has said that an event has happened, and return what it said of it."""
        wanted = {"event": event, **fields}
        while True:
            for message in self.said:
                if wanted.items() <= message.items():
                    return message
            assert not self._reading.done(), f"it never said {wanted}: {self.account()}"
            self._news.clear()
            await self._news.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        self._process.send_signal(number)

    async def kill(self) -> None:
        """End it as nothing can defend itself against."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self.end()

    async def end(self) -> int:
        """Wait for its end, and return its status."""
        await self._reading
        return await self._process.wait()

    def press_enter(self) -> None:
        """Write a line to its input."""
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.write(b"\n")

    def end_input(self) -> None:
        """Close its input."""
        assert self._process.stdin is not None, "it is a pipe"
        self._process.stdin.close()

    def account(self) -> str:
        """Return everything that it has said."""
        return self.text + self.errors

    @property
    def text(self) -> str:
        """What it has written to stdout."""
        return self._text.decode()

    @property
    def errors(self) -> str:
        """What it has written to stderr."""
        return self._errors.decode()

    async def _read_events(self) -> None:
        assert self._process.stdout is not None, "it is a pipe"
        try:
            while line := await self._process.stdout.readline():
                self._text += line
                if line.startswith(b"{"):
                    self.said.append(json.loads(line))
                self._news.set()
        finally:
            self._news.set()

    async def _read_errors(self) -> None:
        assert self._process.stderr is not None, "it is a pipe"
        while data := await self._process.stderr.read(4096):
            self._errors += data


@dataclass
class Client:
    """A client, and what it waits for.

    Attributes:
        http: Its connection.
        protocol: The migration protocol that it supports.
        asked: Requests that are not known to be answered.
        link: What its datagrams go through, which can be cut.
    """

    http: HttpClient
    protocol: MigrationProtocol | None = None
    asked: list[asyncio.Task[None]] = field(default_factory=list)
    link: Filter = field(default_factory=Filter)

    async def work(self) -> None:
        """Send a request, and check the answer."""
        body = b"request %d " % len(self.asked) * 20
        assert (await self.http.request("POST", "/echo", body=body)).body == body

    def ask(self) -> None:
        """Send a request, and do not wait for the answer."""
        self.asked.append(asyncio.create_task(self.work()))


class Stage:
    """A server with clients, an agent, and room for more; made by `stage`.

    Attributes:
        server: The process of the server.
        agent: The process of the agent.
        clients: Clients of the server, one for each migration protocol.
    """

    server: Party
    agent: Party

    def __init__(self, folder: Path, stack: AsyncExitStack, application: str) -> None:
        self.folder = folder
        self.application = application
        self.clients: list[Client] = []
        self._stack = stack
        self._port = free_port(SOURCE, DESTINATION)
        self._agent_port = 0
        self._identities = make_identities(folder / "identities", [SOURCE, DESTINATION])
        self._certificate, self._key = folder / "certificate.pem", folder / "key.pem"
        self._certificate.write_bytes(certificate()[0])
        self._key.write_bytes(certificate()[1])

    @property
    def source(self) -> str:
        """Where the server is at first."""
        return f"{SOURCE}:{self._port}"

    @property
    def destination(self) -> str:
        """Where it goes."""
        return f"{DESTINATION}:{self._port}"

    @property
    def agent_address(self) -> str:
        """Where the agent listens."""
        return f"{DESTINATION}:{self._agent_port}"

    @property
    def socket(self) -> Path:
        """The management socket of the server, before it is handed over."""
        return self.folder / f"{SOURCE}.sock"

    def identity(self, host: str) -> Path:
        """Return the identity of a host."""
        return self._identities[host]

    async def run(self, *arguments: str | Path) -> Party:
        """Start a command that is killed at the end of the test at the latest."""
        party = await Party.start(self.folder, *arguments)
        self._stack.push_async_callback(party.kill)
        return party

    async def start_server(self) -> None:
        """Start the server."""
        self.server = await self.run(
            *("serve", self.application, "--bind", self.source, "--socket", str(self.socket)),
            *self._common(),
        )
        await self.server.hears("listening")

    async def start_agent(self) -> None:
        """Start the agent; the first one takes a port, the others the same one."""
        self.agent = await self.run_agent(DESTINATION, self._agent_port)
        listening = await self.agent.hears("listening")
        self._agent_port = Address.parse(listening["address"]).port

    async def run_agent(self, host: str, port: int = 0) -> Party:
        """Start an agent on a host. What it adopts has the management socket HOST.sock."""
        socket = self.folder / f"{host}.sock"
        return await self.run(
            *("agent", "run", self.application, "--listen", f"{host}:{port}"),
            *("--identity", str(self.identity(host))),
            *("--socket", str(socket), *self._common()),
        )

    async def migrate(self, *arguments: str, source: str = SOURCE, agent: str = "") -> Party:
        """Order the handover of what is served on a host, by default to the agent."""
        return await self.run(
            *("migrate", "--from", str(self.folder / f"{source}.sock")),
            *("--to", agent or self.agent_address),
            *("--identity", str(self.identity(source)), "--json", *arguments),
        )

    async def rehearse(self, until: str, agent: str = "") -> Party:
        """Order the handover step by step, and let it come to where a step waits.

        The clients send requests before each step.
        """
        party = await self.migrate("--step", "--timeout", "1", agent=agent)
        for step in STEPS:
            await party.hears("StepWaits", step=step)
            for client in self.clients:
                client.ask()
            if step == until:
                break
            party.press_enter()
        return party

    async def connect_all(self) -> None:
        """Connect one client for each migration protocol."""
        for protocol in PROTOCOLS:
            configuration = client_configuration(ClientMigration(protocol, seed=len(self.clients)))
            link = Filter()
            http = await self._stack.enter_async_context(
                self._client(self.source, configuration=configuration, wrap_transport=link)
            )
            self.clients.append(Client(http, protocol, link=link))
        await asyncio.gather(*(client.work() for client in self.clients))

    def _client(self, address: str, **arguments: Any) -> AbstractAsyncContextManager[HttpClient]:
        where = Address.parse(address)
        arguments.setdefault("configuration", client_configuration())
        return quicferry.connect(
            str(where.host), where.port, create_protocol=HttpClient, **arguments
        )

    async def status(self) -> dict[str, Any]:
        """Return what the server says about itself."""
        async with ManagementClient.connect(self.socket) as management:
            return await management.command("status")

    async def idle_status(self) -> dict[str, Any]:
        """Return what the server says about itself once no handover is under way."""
        while (status := await self.status())["handover"] is not None:
            pass
        return status

    async def served_at(self, address: str) -> None:
        """Check that everyone is served there.

        All clients on the connections that they have, and nothing that they have asked for has
        failed; new ones as well.
        """
        for client in self.clients:
            await asyncio.gather(*client.asked)
            await client.work()
            assert str(client.http.server_address) == address
        async with self._client(address) as newcomer:
            await Client(newcomer).work()

    async def moves_to_another_agent(self) -> None:
        """Check that the server can be handed over to an agent that has just been started."""
        async with agent_at(
            DESTINATION, self._port, self._identities, app, application=self.application
        ) as agent:
            await self._moves_to(str(agent.address))

    async def moves_to_the_agent(self) -> None:
        """Check that the server can be handed over to the agent."""
        await self._moves_to(self.agent_address)

    async def _moves_to(self, agent: str) -> None:
        async with ManagementClient.connect(self.socket) as management:
            moving = asyncio.create_task(
                management.command(
                    "handover",
                    agent=agent,
                    identity=str(self.identity(SOURCE)),
                    address=self.destination,
                )
            )
            while not moving.done():  # the clients notice earlier if they have something to ask
                await asyncio.gather(*(client.work() for client in self.clients))
            report = await moving
        assert report["outcome"] == Outcome.COMMITTED.value, report
        await self.served_at(self.destination)

    async def agent_takes_another_server(self) -> None:
        """Check that the agent is free for a server, at the same address as well."""
        destination = at(DESTINATION, self._port)
        plan = HandoverPlan(DESTINATION, self._agent_port, destination, follow=0.0)
        identity = Identity.load(self.identity(SOURCE))
        async with (
            served(
                app, host=SOURCE, port=self._port, configuration=configuration(self._port)
            ) as server,
            http_client(server) as client,
        ):
            await Client(client).work()
            report = await Handover(server, self.application, plan, identity).run()
            assert report.outcome is Outcome.COMMITTED, report.reason
            await Client(client).work()
            assert client.server_address == destination

    def _common(self) -> list[str]:
        return [
            *("--pool", self.destination, "--pool", self.source),
            *("--cert", str(self._certificate), "--key", str(self._key), "--json"),
            "--until-eof",  # so that they end with the tests, however those end
        ]


STEPS = ("offer", "imminent", "drain", "freeze", "transfer", "thaw", "commit", "follow")
"""What waits in a handover step by step."""


@asynccontextmanager
async def stage(folder: Path, application: str = APPLICATION) -> AsyncIterator[Stage]:
    """Provide a server with clients, and an agent."""
    async with AsyncExitStack() as stack:
        made = Stage(folder, stack, application)
        await asyncio.gather(made.start_server(), made.start_agent())
        await made.connect_all()
        try:
            yield made
        finally:
            asked = [task for client in made.clients for task in client.asked]
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
