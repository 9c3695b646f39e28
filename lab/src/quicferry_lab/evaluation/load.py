"""The clients of a run, as the orchestrator sees them: what they are told, and what they tell."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quicferry.protocol import QuicferryError
from quicferry_lab.demo.processes import Child
from quicferry_lab.evaluation.orders import Answer, Found, Orders
from quicferry_lab.evaluation.result import At, Request
from quicferry_lab.evaluation.run import Run
from quicferry_lab.ground import START_LIMIT, Ground
from quicferry_lab.patience import patient

PROGRAM = ("python3", "-m", "quicferry_lab.evaluation.clients")
FEWEST_CLIENTS = 10
"""How many clients a process carries before one more processor is used."""
MOST_CLIENTS = 250
"""How many clients a process carries at most."""
CONNECT_LIMIT = patient(0.2)
"""Seconds that each client may take to connect, beside the time that the processes take to start.
"""
FOUND_LIMIT = patient(70.0)
"""Seconds until all have told what they have found: a request may have to fail before."""


class LoadError(QuicferryError):
    """Clients did not do what they were to do."""


@dataclass
class _Process:
    child: Child
    orders: Orders


class Load:
    """The clients at work.

    Args:
        run: Whose clients they are.
        processes: The processes that they live in, with their orders.

    Attributes:
        answers: Their requests so far, in the order of their ends.
        found: What those have found that have come to an end.
    """

    def __init__(self, run: Run, processes: Sequence[tuple[Child, Orders]]) -> None:
        self.answers: list[Answer] = []
        self.found: list[Found] = []
        self._run = run
        self._processes = [_Process(child, orders) for child, orders in processes]
        self._connected = 0
        self._finished = 0
        self._reached = 0
        self._problem: BaseException | None = None
        self._happened = asyncio.Event()
        self._reading: list[asyncio.Task[None]] = []

    @classmethod
    async def start(cls, run: Run, ground: Ground, *, server: str, ca_file: str) -> Load:
        """Start the processes on the client's host; they end with the ground.

        Args:
            run: Whose clients they are.
            ground: Where.
            server: The address to connect to.
            ca_file: The certificate that the server must present, as the host sees it.
        """
        processes = []
        for number, clients in enumerate(share(run.clients, os.cpu_count() or 1), 1):
            child = await ground.child(f"client process {number}", ground.client, list(PROGRAM))
            processes.append((child, Orders.of(run, clients, server=server, ca_file=ca_file)))
        return cls(run, processes)

    async def connect(self) -> None:
        """Wait until all clients are connected.

        Raises:
            DemoError: A process has ended.
            LoadError: They are not connected in time.
        """
        for process in self._processes:
            process.child.say(**process.orders.encode())
            self._reading.append(asyncio.create_task(self._read(process)))
        try:
            async with asyncio.timeout(START_LIMIT + CONNECT_LIMIT * self._run.clients):
                await self._until(lambda: self._connected == self._run.clients)
        except TimeoutError:
            raise LoadError(
                f"{self._connected} of {self._run.clients} clients were connected in time"
            ) from None

    def go_on(self, up_to: int | None = None) -> None:
        """Let them send requests.

        Args:
            up_to: The number of the last one; None for no such limit.
        """
        self._say(do="go-on", up_to=up_to)

    def probe(self) -> None:
        """Let proactive clients look for the server."""
        self._say(do="probe")

    async def answered(self, number: int) -> None:
        """Wait until the first client's request of that number has come to its end.

        Raises:
            DemoError: A process has ended.
            LoadError: The clients have finished before.
        """
        await self._until(lambda: self._reached >= number or self._all_finished)
        if self._reached < number:
            raise LoadError(f"the first client has not got as far as request {number}")

    async def finished(self) -> None:
        """Wait until all have sent all of their requests, or have lost their connections.

        Raises:
            DemoError: A process has ended.
        """
        await self._until(lambda: self._all_finished)

    async def stop(self, migrations: int) -> None:
        """Let them come to an end, and wait until they have told what they have found.

        Args:
            migrations: How many each of them should have completed.

        Raises:
            DemoError: A process has ended.
            LoadError: They do not come to an end.
        """
        self._say(do="stop", migrations=migrations)
        try:
            async with asyncio.timeout(FOUND_LIMIT):
                await self._until(lambda: len(self.found) == self._run.clients)
        except TimeoutError:
            raise LoadError(
                f"{self._run.clients - len(self.found)} clients have not come to an end"
            ) from None

    async def close(self) -> None:
        """Listen no longer."""
        for task in self._reading:
            task.cancel()
        await asyncio.gather(*self._reading, return_exceptions=True)

    @property
    def began_at(self) -> float | None:
        """When the first request was sent, on the monotonic clock."""
        return min((answer.started for answer in self.answers), default=None)

    def requests(self, hosts: Mapping[str, At]) -> tuple[Request, ...]:
        """Return all requests so far, by client and number.

        Args:
            hosts: Where the server was, by the host of its address.
        """
        began_at = self.began_at or 0.0
        ordered = sorted(self.answers, key=lambda answer: (answer.client, answer.number))
        return tuple(
            Request(
                client=answer.client,
                number=answer.number,
                started=answer.started - began_at,
                service_time=answer.seconds,
                method=answer.method,
                upload=answer.upload,
                download=answer.download,
                server=hosts.get(answer.server.rpartition(":")[0]),
                error=answer.error,
            )
            for answer in ordered
        )

    @property
    def _all_finished(self) -> bool:
        return self._finished == self._run.clients

    def _say(self, **message: object) -> None:
        for process in self._processes:
            process.child.say(**message)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            if self._problem is not None:
                raise self._problem
            self._happened.clear()
            await self._happened.wait()

    async def _read(self, process: _Process) -> None:
        try:
            async for message in process.child.messages():
                self._heard(message.pop("event"), message)
                self._happened.set()
            told = {found.client for found in self.found}
            if not told.issuperset(process.orders.clients):
                self._problem = await process.child.unexpected_end()
        except (ValueError, TypeError, KeyError) as exc:
            self._problem = LoadError(f"the {process.child.name} has said something strange: {exc}")
        finally:
            self._happened.set()

    def _heard(self, event: str, message: dict[str, Any]) -> None:
        match event:
            case "request":
                answer = Answer(**message)
                self.answers.append(answer)
                if answer.client == 1:
                    self._reached = answer.number
            case "connected":
                self._connected += 1
            case "finished":
                self._finished += 1
            case "found":
                self.found.append(Found(**message))


def share(clients: int, processors: int) -> list[tuple[int, ...]]:
    """Spread clients, numbered from 1, evenly over processes.

    Elsewhere each client is a machine: here they get all processors as soon as there are enough of
    them to be in each other's way, and never more processes than it takes.
    """
    processes = max(min(processors, -(-clients // FEWEST_CLIENTS)), -(-clients // MOST_CLIENTS))
    return [tuple(range(first, clients + 1, processes)) for first in range(1, processes + 1)]
