"""What happens in a run, in order: the scripts, on whatever kind of stage.

A `Stage` has the server, its clients and the links. What differs between the backends is how a
server is moved, and whether it can be told to get ready without being moved.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from quicferry.protocol import QuicferryError
from quicferry_lab.demo.processes import while_watched
from quicferry_lab.evaluation.load import Load
from quicferry_lab.evaluation.move import Move, since
from quicferry_lab.evaluation.result import At, Relocation, Result, failure
from quicferry_lab.evaluation.run import WITHOUT, Run, Script
from quicferry_lab.ground import CA, DESTINATION, PORT, SOURCE, Ground
from quicferry_lab.patience import patient

_HOSTS = {SOURCE: At.SOURCE, DESTINATION: At.DESTINATION}
_SET_UP_LIMIT = patient(120.0)
"""Seconds that a run may take beside what its clients do."""
_ROUND_TRIPS = 12
"""How many a request may take on average: there are losses, and large bodies."""

logger = logging.getLogger("quicferry_lab")


SETTLING = 0.2
"""Seconds from the last response until a quiet server is moved, as in the simulation: the client
has acknowledged it by then, so that the server has nothing to say after its relocation."""


class RunError(QuicferryError):
    """A run cannot be carried out, or has not come to its end."""


class Stage(ABC):
    """Where a run takes place; an asynchronous context manager.

    Args:
        run: The run.
        ground: The hosts and the links; they are made when this is entered.

    Attributes:
        load: Its clients, once they are there.
        moves: The relocations that were begun.
        preparations: What was prepared without being followed by a relocation.
        problems: What was not as it should be, in words.
    """

    def __init__(self, run: Run, ground: Ground) -> None:
        self.run = run
        self.load: Load | None = None
        self.moves: list[Move] = []
        self.preparations: list[Relocation] = []
        self.problems: list[str] = []
        self._ground = ground
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._stack.enter_async_context(self._ground)
            # First the clients, whose processes take a moment to come up.
            server = f"{SOURCE}:{PORT}"
            self.load = await Load.start(self.run, self._ground, server=server, ca_file=CA)
            self._stack.push_async_callback(self.load.close)
            await self._start_server()
            await self.load.connect()
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

    @property
    def clients(self) -> Load:
        """The clients.

        Raises:
            RunError: There are none yet.
        """
        if self.load is None:
            raise RunError("the clients have not been started")
        return self.load

    @abstractmethod
    async def _start_server(self) -> None:
        """Start the server at the source, and what it can be moved to."""

    def watchers(self) -> Sequence[Coroutine[Any, Any, None]]:
        """Return what watches the processes, and raises when one has ended that should not."""
        return ()

    @abstractmethod
    def move(self) -> Move:
        """Return the next relocation, which has not been begun."""

    async def relocate_quietly(self, move: Move) -> None:
        """Carry a relocation out while no client has a request under way."""
        await move.go()

    async def examine(self) -> list[str]:
        """Return in words what is wrong with the server after the last request."""
        return []

    async def get_ready(self) -> Relocation:
        """Let the server get ready, and give that up.

        Raises:
            RunError: This stage has no such thing.
        """
        raise RunError("a server in a container is not told to get ready for nothing")

    async def move_client(self) -> None:
        """Let the client move to its other access point.

        Raises:
            RunError: This stage has no such thing.
        """
        raise RunError("clients of servers in containers stay where they are")


async def play(stage: Stage) -> None:
    """Do what the script of a stage's run says, from the first request to the last.

    Raises:
        QuicferryError: Something has failed.
    """
    await _SCRIPTS[stage.run.script](stage)
    await stage.clients.stop(sum(move.relocation.restored_at is not None for move in stage.moves))
    stage.problems += await stage.examine()


def result(stage: Stage, error: BaseException | None = None) -> Result:
    """Return what a stage's run has found.

    Args:
        stage: The stage.
        error: Why the run has not come to its end; None if it has.
    """
    run, load = stage.run, stage.load
    found = Result(run) if error is None else failure(run, error)
    if load is None:
        return found
    began_at = load.began_at or 0.0
    relocations = [*stage.preparations, *(move.relocation for move in stage.moves)]
    problems = list(found.problems)
    problems += stage.problems
    problems += [problem for move in stage.moves for problem in move.problems]
    problems += _problems_of_clients(stage, load)
    return replace(
        found,
        requests=load.requests(_HOSTS),
        relocations=tuple(since(relocation, began_at) for relocation in relocations),
        lost_clients=sum(bool(client.lost) for client in load.found),
        problems=tuple(problems),
    )


def _problems_of_clients(stage: Stage, load: Load) -> list[str]:
    problems = [
        f"client {answer.client}, request {answer.number}: {answer.error}"
        for answer in load.answers
        if answer.error
    ]
    moved = sum(move.relocation.restored_at is not None for move in stage.moves)
    for client in load.found:
        if client.lost:
            problems.append(f"client {client.client} has lost its connection: {client.lost}")
        elif client.migrations < moved:
            problems.append(
                f"client {client.client} has completed {client.migrations} of {moved} migrations"
            )
    if load.found and not load.answers:
        problems.append("no request was sent")
    return problems


def limit(run: Run) -> float:
    """Return how long a run may take altogether, in seconds."""
    longest = max(run.source_rtt_ms, run.destination_rtt_ms) / 1000
    requests = (run.requests or 0) * (run.pause + _ROUND_TRIPS * longest)
    moves = run.duration / run.interval if run.interval else 1
    waits = run.before + run.after + run.duration + moves * run.quiet
    return _SET_UP_LIMIT + patient(requests) + waits + patient(0.5) * run.clients


def pool(run: Run) -> tuple[str, ...]:
    """Return the server's pool, as text: where it will come up last, and before that decoys.

    A server that follows its client comes up at either host.
    """
    hosts = (SOURCE, DESTINATION) if run.script is Script.FOLLOW else (DESTINATION,)
    decoys = max(0, run.pool_size - len(hosts))
    return (
        *(f"{DESTINATION}:{PORT + number}" for number in range(1, decoys + 1)),
        *(f"{host}:{PORT}" for host in hosts if run.pool_size),
    )


# The scripts


async def _baseline(stage: Stage) -> None:
    stage.clients.go_on()
    await stage.clients.finished()


async def _first_request(stage: Stage) -> None:
    run, clients = stage.run, stage.clients
    assert run.imminent_after is not None, "such a run has a relocation"
    assert run.relocate_after is not None, "such a run has a relocation"
    clients.go_on(run.imminent_after)
    await clients.answered(run.imminent_after)
    move = stage.move()
    await move.get_ready()
    clients.go_on(run.relocate_after)
    await clients.answered(run.relocate_after)
    answered_at = time.monotonic()
    await asyncio.sleep(SETTLING)
    await stage.relocate_quietly(move)
    left = answered_at + run.quiet - time.monotonic()
    if left < 0:
        stage.problems.append(f"the relocation took {-left:.2f} s longer than the quiet time")
    await asyncio.sleep(left)
    clients.probe()
    clients.go_on()
    await clients.finished()
    await move.end()


async def _under_load(stage: Stage) -> None:
    run, clients = stage.run, stage.clients
    assert run.imminent_after is not None, "such a run has a relocation"
    assert run.relocate_after is not None, "such a run has a relocation"
    # The next request is on its way when the server falls silent, however long it takes to prepare.
    clients.go_on(run.relocate_after)
    await clients.answered(run.imminent_after)
    move = stage.move()
    await move.get_ready()
    await clients.answered(run.relocate_after)
    clients.go_on()
    await move.go()
    clients.probe()
    await clients.finished()
    await move.end()


async def _notification(stage: Stage) -> None:
    stage.clients.go_on()
    await asyncio.sleep(stage.run.before)
    stage.preparations.append(await stage.get_ready())


async def _over_time(stage: Stage) -> None:
    run, clients = stage.run, stage.clients
    clients.go_on()
    await asyncio.sleep(run.before)
    move = stage.move()
    await move.go()
    clients.probe()
    await asyncio.sleep(run.after)
    await move.end()


async def _follow(stage: Stage) -> None:
    run, clients = stage.run, stage.clients
    clients.go_on()
    began_at = time.monotonic()
    moved_at = began_at + run.interval
    while moved_at < began_at + run.duration:
        await _sleep_until(moved_at)
        await stage.move_client()
        if run.technique != WITHOUT:
            await _sleep_until(moved_at + run.quiet)
            move = stage.move()
            await move.go()
            clients.probe()
            await move.end()
        moved_at += run.interval
    await _sleep_until(began_at + run.duration)


async def _sleep_until(instant: float) -> None:
    await asyncio.sleep(instant - time.monotonic())


_SCRIPTS: dict[Script, Callable[[Stage], Awaitable[None]]] = {
    Script.BASELINE: _baseline,
    Script.FIRST_REQUEST: _first_request,
    Script.UNDER_LOAD: _under_load,
    Script.NOTIFICATION: _notification,
    Script.OVER_TIME: _over_time,
    Script.FOLLOW: _follow,
}


async def carry_out(stage: Stage) -> Result:
    """Carry out the run of a stage, and return what it has found, whatever happens."""
    seconds = limit(stage.run)
    try:
        try:
            async with asyncio.timeout(seconds), stage:
                await while_watched(play(stage), stage.watchers())
        except TimeoutError as exc:
            raise RunError(str(exc) or f"the run was not over within {seconds:.0f} s") from exc
    except Exception as exc:  # whatever a run brings to light is a finding
        logger.debug("%s", stage.run, exc_info=exc)
        return result(stage, exc)
    return result(stage)
