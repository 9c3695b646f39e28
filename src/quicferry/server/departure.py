"""The source's side of a handover: a server lets its connections go.

A `Departure` begins when the server is ready to be moved (`Server.imminent`) and takes these steps:

    departure = server.departure()
    departure.reject_silent()              # nobody waits for clients that are gone
    await departure.drain(10)              # requests come to their end; new ones wait
    state = await departure.export()       # what the application carries along
    frozen = list(departure.freeze())      # the connections are silent from here on
    departure.depart(forward)              # another server has them; or
    departure.resume()                     # they go on here, as if nothing had happened

Nothing leaves this server between `freeze` and `resume`; after `depart` nothing ever does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from quicferry.io import ConnectionProtocol, ConnectionRouter, Forward, forward_nowhere
from quicferry.protocol import MigrationProtocol, ServerMigration
from quicferry.transport import (
    NetworkAddress,
    SnapshotError,
    freeze,
    prepare_snapshots,
    resume_after_freeze,
    unread_events,
)

from .application import TIME_TO_END, Application
from .asgi import AsgiProtocol
from .draining import Admission, Calls, RunningRequest
from .errors import RelocationError, RelocationErrorCode
from .relocator import Relocator

DEPARTED = "handed over to another server"
LOST = "the handover was not settled in time"


@dataclass(frozen=True)
class FrozenConnection:
    """A connection on its way to another server. It holds secrets.

    Attributes:
        connection_id: Its stable id.
        snapshot: The QUIC connection, as `quicferry.transport.freeze` returned it.
        state: What the application protocol knows of it.
    """

    connection_id: str
    snapshot: bytes = field(repr=False)
    state: bytes = field(repr=False)


class Departure:
    """Connections that leave a server; made by `Server.departure`.

    Args:
        relocator: Of the server.
        router: Of the server.
        application: Of the server.
    """

    def __init__(
        self, relocator: Relocator, router: ConnectionRouter, application: Application | None
    ) -> None:
        prepare_snapshots()
        self._loop = asyncio.get_running_loop()
        self._relocator = relocator
        self._router = router
        self._application = application
        self._calls = Calls() if application is None else application.calls
        self._frozen: dict[str, ConnectionProtocol] = {}

    # What the other server has to be able to do

    @property
    def negotiable(self) -> MigrationProtocol:
        """The migration protocols that clients are offered here."""
        options = getattr(self._router.configuration, "server_migration", None)
        none = MigrationProtocol(0)
        return options.protocols if isinstance(options, ServerMigration) else none

    @property
    def connection_id_length(self) -> int:
        """The length of connection IDs, in bytes."""
        return self._router.configuration.connection_id_length

    # Before the freeze

    @property
    def has_state(self) -> bool:
        """Whether the application carries state of its own."""
        return self._application is not None and self._application.has_hooks

    def running_requests(self) -> tuple[RunningRequest, ...]:
        """Return the requests that the application is working on, answered or not."""
        return running_requests(self._relocator.connections().values(), self._calls)

    def reject_silent(self) -> tuple[RunningRequest, ...]:
        """Reset the requests of silent clients, for which nobody waits, and return which."""
        silent = _served(self._relocator.silent())
        rejected = [request for protocol in silent for request in protocol.running_requests()]
        for protocol in silent:
            protocol.reject_requests()
        return tuple(rejected)

    async def drain(self, limit: float) -> None:
        """Wait until no request is running, and no call of the application that was one.

        Those that run now are waited for while others are served, if they are complete. In the end
        new ones wait; they are carried along, or served when the connections are resumed.

        Args:
            limit: Seconds to wait at most.

        Raises:
            RelocationError: REQUESTS_RUNNING, with their names, if some still are.
        """
        served = self._served()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit):
                self._admit(Admission.COMPLETE)
                running = (protocol.wait_running() for protocol in served)
                await asyncio.gather(*running, self._calls.wait_running())
                self._admit(Admission.NONE)
                idle = (protocol.wait_idle() for protocol in served)
                await asyncio.gather(*idle, self._calls.wait_idle())
        self._admit(Admission.NONE)
        self._check_idle("give them more time to finish, or reset them")

    async def reject_requests(self) -> tuple[RunningRequest, ...]:
        """Reset the requests that are running, end the application's calls, and return which.

        Each call is told of a disconnect. Those that have not ended a moment later are cancelled.

        Raises:
            RelocationError: REQUESTS_RUNNING, if one does not end even then.
        """
        rejected = self.running_requests()
        for protocol in self._served():
            protocol.reject_requests()
        await self._calls_end()
        self._calls.cancel()
        await self._calls_end()
        self._check_idle("they do not end although they were cancelled; give them more time")
        return rejected

    async def _calls_end(self) -> None:
        """Give the calls of the application a moment to end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TIME_TO_END):
                await self._calls.wait_idle()

    def _check_idle(self, remedy: str) -> None:
        running = self.running_requests()
        if running:
            names = ", ".join(str(request) for request in running[:_MOST_NAMED])
            more = f" and {len(running) - _MOST_NAMED} more" if len(running) > _MOST_NAMED else ""
            raise RelocationError(
                RelocationErrorCode.REQUESTS_RUNNING, f"still running: {names}{more}; {remedy}"
            )

    async def export(self) -> bytes | None:
        """Return the application's state; None if it has none to carry.

        Raises:
            ApplicationError: If the application fails at it.
        """
        return None if self._application is None else await self._application.export()

    # The freeze, and its end

    def freeze(self) -> Iterator[FrozenConnection]:
        """Freeze the connections that are ready, one after the other.

        Raises:
            RelocationError: If the server is not prepared, or a connection cannot be frozen. What
                is frozen by then waits for `resume`.
        """
        for name, protocol in self._relocator.freeze().items():
            connection = protocol.connection
            protocol.settle()
            unread_events(connection, protocol.withheld_events())
            try:
                snapshot = freeze(connection, now=self._loop.time())
                self._frozen[name] = protocol
                frozen = FrozenConnection(name, snapshot, protocol.export_state())
            except SnapshotError as exc:
                raise RelocationError(
                    RelocationErrorCode.CANNOT_FREEZE, f"connection {name}: {exc}"
                ) from exc
            protocol.settle()  # its timer is off
            yield frozen

    def show_held(self) -> Iterator[tuple[bytes, NetworkAddress]]:
        """Return the newest datagrams that have arrived since the freeze, so that they go ahead."""
        for protocol in self._frozen.values():
            yield from protocol.show_held()

    def resume(self) -> None:
        """Let everything go on here, because no other server ever will have the connections."""
        for protocol in self._thawed():
            resume_after_freeze(protocol.connection, now=self._loop.time())
            protocol.replay_held()
        self._relocator.resume()
        self._admit(Admission.ALL)

    def depart(self, forward: Forward) -> tuple[str, ...]:
        """Let the connections go, because another server owns them now.

        Args:
            forward: Takes the datagrams that arrived since the freeze, and those that still do.

        Returns:
            The ids of the connections that could not come along, and are closed.
        """
        self._frozen.clear()
        return self._relocator.depart(forward, DEPARTED)

    def call_off(self) -> None:
        """Go on as if no handover had been planned; nothing was frozen yet."""
        if self._relocator.sync.is_prepared:
            self._relocator.abort()
        self._admit(Admission.ALL)

    def drop(self) -> tuple[str, ...]:
        """Give the frozen connections up, because nobody knows who owns them.

        They stay silent for good; the server goes on without them.

        Returns:
            Their ids.
        """
        names = tuple(self._frozen)
        for protocol in self._thawed():
            protocol.depart(forward_nowhere, LOST)
            self._router.forget(protocol)
        self._relocator.resume()
        self._admit(Admission.ALL)
        return names

    def _thawed(self) -> list[ConnectionProtocol]:
        protocols = list(self._frozen.values())
        self._frozen.clear()
        return protocols

    def _admit(self, admission: Admission) -> None:
        for protocol in self._served():
            protocol.admit_requests(admission)

    def _served(self) -> list[AsgiProtocol]:
        return _served(self._relocator.connections().values())


def running_requests(
    connections: Iterable[ConnectionProtocol], calls: Calls
) -> tuple[RunningRequest, ...]:
    """Return the requests that an application is working on, answered or not.

    Args:
        connections: The connections of the server.
        calls: The calls of the application that run.
    """
    waiting = [each for protocol in _served(connections) for each in protocol.running_requests()]
    return tuple(dict.fromkeys([*waiting, *calls.requests]))


def _served(connections: Iterable[ConnectionProtocol]) -> list[AsgiProtocol]:
    return [protocol for protocol in connections if isinstance(protocol, AsgiProtocol)]


_MOST_NAMED = 10
