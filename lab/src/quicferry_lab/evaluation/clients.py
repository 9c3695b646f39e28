"""A client process of the evaluation: some of a run's clients, on real sockets.

Run as ``python -m quicferry_lab.evaluation.clients``. It reads one JSON object per line from
standard input and writes one per line to standard output.

In: first the `Orders`; the clients connect at once, a few at a time. Then:

- ``{"do": "go-on", "up_to": 10}``: each client sends its requests, but none after the tenth; null
  stands for no such limit. Given again, the clients go on.
- ``{"do": "probe"}``: proactive clients look for the server, which has moved.
- ``{"do": "stop", "migrations": 1}``: each client finishes the request that is under way, waits for
  a moment until it has completed so many migrations, and closes its connection.

When the input ends, so does the process.

Out: ``{"event": "connected", "client": 1}``; for each request ``{"event": "request", ...}`` with
what an `Answer` has; ``{"event": "finished", "client": 1}`` when a client has sent all that it was
to, or has lost its connection; and at the end ``{"event": "found", ...}`` with what a `Found` has.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import json
import signal
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from quicferry.client import HttpClient, connect
from quicferry.io import ConnectionLost, DatagramLink
from quicferry.protocol import (
    Address,
    ClientMigration,
    MigrationCompleted,
    MigrationEvent,
    Policy,
    QuicferryError,
    Scheduler,
    protocol_from_name,
)
from quicferry.transport import Configuration
from quicferry_lab.demo import content
from quicferry_lab.demo.content import Verifier, WrongBodyError
from quicferry_lab.demo.lines import open_input, say
from quicferry_lab.demo.load import SEARCHING_PROTOCOLS, RequestFailedError
from quicferry_lab.demo.watch import Watch
from quicferry_lab.evaluation.orders import Answer, Found, Orders
from quicferry_lab.evaluation.run import Workload
from quicferry_lab.evaluation.workload import Requests, Wanted, get_sizes, phase, post_sizes
from quicferry_lab.patience import patient

ABREAST = 4
"""How many clients of a process connect at the same time."""
REQUEST_LIMIT = patient(60.0)
"""Seconds after which a request has failed. A search through a pool with losses took 26."""
MIGRATION_LIMIT = patient(2.0)
"""Seconds that a client waits in the end for a migration to be completed."""


class Orchestrated:
    """What the clients of a process are told while they are at work."""

    def __init__(self) -> None:
        self.began_at: float | None = None
        self.has_stopped = False
        self.migrations = 0
        self._up_to: int | None = 0
        self._changed = asyncio.Event()

    def go_on(self, up_to: int | None) -> None:
        """Let the clients send requests up to that number."""
        if self.began_at is None:
            self.began_at = time.monotonic()
        self._up_to = up_to
        self._tell()

    def stop(self, migrations: int) -> None:
        """Let them come to an end."""
        self.has_stopped = True
        self.migrations = migrations
        self._tell()

    async def may_send(self, number: int, not_before: float = 0.0) -> bool:
        """Wait until a request may be sent; return whether it is to be sent at all.

        Args:
            number: Of the request.
            not_before: The instant from which on it may be, on the monotonic clock.
        """
        while not self.has_stopped:
            waits = not_before - time.monotonic()
            if self._up_to is None or number <= self._up_to:
                if waits <= 0:
                    return True
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._changed.wait(), waits)
            else:
                await self._changed.wait()
        return False

    async def stopped(self) -> None:
        """Wait until the clients are to come to an end."""
        while not self.has_stopped:
            await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Client:
    """One client.

    Args:
        number: Which one, from 1.
        orders: What it does.
        told: What it is told meanwhile.
    """

    def __init__(self, number: int, orders: Orders, told: Orchestrated) -> None:
        self.number = number
        self._orders = orders
        self._told = told
        self._requests = Requests(Workload(orders.workload), orders.seed, number)
        self._http: HttpClient | None = None
        self._watch: Watch | None = None
        self._migrations = 0
        self._lost = ""
        self._completed = asyncio.Event()

    async def run(self, doors: asyncio.Semaphore) -> None:
        """Connect, send requests, and come to an end when that is asked for.

        Args:
            doors: Lets few clients connect at a time.

        Raises:
            QuicferryError: The client could not connect.
        """
        server = Address.parse(self._orders.server)
        async with contextlib.AsyncExitStack() as stack:
            async with doors:
                self._http = await stack.enter_async_context(
                    connect(
                        str(server.host),
                        server.port,
                        configuration=self._configuration(),
                        create_protocol=HttpClient,
                        wrap_transport=self._wrap,
                    )
                )
            self._http.on_migration_event(self._on_migration_event)
            say("connected", client=self.number)
            await self._send_requests(self._http)
            say("finished", client=self.number)
            await self._told.stopped()
            if not self._lost:
                await self._complete_migrations()

    def probe(self) -> None:
        """Look for the server, as the proactive policy does when it is told to."""
        orders = self._orders
        if self._http is None or not orders.has_extension or orders.policy != "proactive":
            return
        if protocol_from_name(orders.protocol) in SEARCHING_PROTOCOLS:
            self._http.probe_server_address()

    def found(self) -> Found:
        """Return what became of it."""
        return Found(self.number, self._migrations, self._lost)

    async def _send_requests(self, http: HttpClient) -> None:
        orders, told, number, not_before = self._orders, self._told, 1, 0.0
        if not await told.may_send(1):
            return
        if orders.spread and told.began_at is not None:
            not_before = told.began_at + orders.spread * phase(orders.seed, self.number)
        while orders.requests is None or number <= orders.requests:
            if not await told.may_send(number, not_before):
                return
            answer = await self._send(http, number, next(self._requests))
            say("request", **asdict(answer))
            if self._lost:
                return
            not_before = time.monotonic() + orders.pause
            number += 1

    async def _send(self, http: HttpClient, number: int, wanted: Wanted) -> Answer:
        body = content.body(wanted.body_seed, wanted.upload) if wanted.upload else b""
        seconds, error, server = None, "", ""
        started = time.monotonic()
        try:
            async with asyncio.timeout(REQUEST_LIMIT):
                response = await http.request(wanted.method, wanted.path, body=body)
            ended = time.monotonic()
            server = "" if self._watch is None else self._watch.server
            if response.status != 200:
                raise RequestFailedError(f"it was answered with {response.status}")
            _verify(wanted, body, response.body)
            seconds = ended - started
        except TimeoutError:
            error = f"it was not answered within {REQUEST_LIMIT:g} s"
        except ConnectionLost as exc:
            error = self._lost = str(exc)
        except QuicferryError as exc:
            error = str(exc)
        return Answer(
            client=self.number,
            number=number,
            started=started,
            seconds=seconds,
            method=wanted.method,
            upload=wanted.upload,
            download=wanted.download,
            server=server,
            error=error,
        )

    async def _complete_migrations(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MIGRATION_LIMIT):
                while self._migrations < self._told.migrations:
                    self._completed.clear()
                    await self._completed.wait()
        if self._http is not None and self._http.closed_by is not None:
            self._lost = str(self._http.closed_by)

    def _configuration(self) -> Configuration:
        orders = self._orders
        migration = None
        if orders.has_extension:
            migration = ClientMigration(
                protocols=protocol_from_name(orders.protocol),
                policy=Policy(orders.policy),
                scheduler=Scheduler(orders.scheduler),
                seed=orders.seed * 10_000 + self.number,
            )
        configuration = Configuration(
            is_client=True, verify_mode=ssl.CERT_REQUIRED, server_migration=migration
        )
        configuration.load_verify_locations(cafile=orders.ca_file)
        return configuration

    def _wrap(self, inner: DatagramLink) -> DatagramLink:
        self._watch = Watch(inner)
        return self._watch

    def _on_migration_event(self, event: MigrationEvent) -> None:
        if isinstance(event, MigrationCompleted):
            self._migrations += 1
            self._completed.set()


def _verify(wanted: Wanted, sent: bytes, received: bytes) -> None:
    """Check a response, byte by byte.

    Raises:
        WrongBodyError: It is not what it should be.
    """
    if wanted.is_upload:
        if f'"sha256": "{hashlib.sha256(sent).hexdigest()}"'.encode() not in received:
            raise WrongBodyError(f"an upload of {len(sent)} bytes arrived changed")
        return
    verifier = Verifier(wanted.body_seed, wanted.download)
    verifier.feed(received)
    verifier.finish()


async def _obey(lines: asyncio.StreamReader, clients: Sequence[Client], told: Orchestrated) -> None:
    """Follow the orchestrator's commands.

    Raises:
        QuicferryError: The orchestrator is gone.
    """
    while line := await lines.readline():
        command = json.loads(line)
        match command["do"]:
            case "go-on":
                _settle_memory()
                told.go_on(command["up_to"])
            case "probe":
                for client in clients:
                    client.probe()
            case "stop":
                told.stop(command["migrations"])
    raise QuicferryError("the run has ended, so its clients end as well")


def _settle_memory() -> None:
    """Leave the collector little to do: a pause of it would look like one of the server."""
    gc.collect()
    gc.freeze()


async def _run_all(clients: Sequence[Client]) -> None:
    doors = asyncio.Semaphore(ABREAST)
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run(doors))


async def work() -> None:
    """Run the clients that the first line of the input names, and tell what they have found.

    Raises:
        ExceptionGroup: A client could not connect.
        QuicferryError: The orchestrator is gone.
    """
    lines = await open_input()
    orders = Orders.decode(json.loads(await lines.readline()))
    if Workload(orders.workload) is Workload.DISTRIBUTION:
        get_sizes()  # they are read once, and not while it counts
        post_sizes()
    told = Orchestrated()
    clients = [Client(number, orders, told) for number in orders.clients]
    running = asyncio.create_task(_run_all(clients))
    obeying = asyncio.create_task(_obey(lines, clients, told))
    try:
        await asyncio.wait((running, obeying), return_when=asyncio.FIRST_COMPLETED)
        for task in (running, obeying):
            if task.done():
                task.result()
    finally:
        for task in (running, obeying):
            task.cancel()
        await asyncio.gather(running, obeying, return_exceptions=True)
    for client in clients:
        say("found", **asdict(client.found()))


def main() -> int:
    """Run the process and return its exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who has started it
    try:
        asyncio.run(work())
    except QuicferryError as exc:
        print(exc, file=sys.stderr)
        return 1
    except ExceptionGroup as group:
        expected, unexpected = group.split(QuicferryError)
        if unexpected is not None:
            raise unexpected from None
        if expected is not None:
            print(_first(expected), file=sys.stderr)
        return 1
    return 0


def _first(group: BaseExceptionGroup[QuicferryError]) -> BaseException:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


if __name__ == "__main__":
    sys.exit(main())
