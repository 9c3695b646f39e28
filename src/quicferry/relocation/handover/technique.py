"""Hands a running server's connections over to an agent: the technique *handover*.

`Handover` is a `Relocation` of a server in this process (`quicferry.server.Departure`): its
connections are frozen, carried one by one, and live again in another process or on another host.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from quicferry import __version__
from quicferry.protocol import Address, MigrationProtocol
from quicferry.server import (
    Departure,
    RelocationError,
    RelocationErrorCode,
    RelocationEvent,
    Server,
    Unready,
)
from quicferry.transport import FORMAT_VERSION, NetworkAddress

from ..link import messages
from ..link.identity import Identity
from ..link.messages import Message
from ..ownership.source import Do, State
from ..steps.orchestration import Gate, Plan, Relocation
from ..steps.pause import CollectorPause
from ..steps.report import Step

FORWARDING = 3.0
"""Seconds for which datagrams that still come to the source are sent after the connections."""


class Running(enum.Enum):
    """What becomes of requests that are still running when the time to drain is over."""

    ABANDON = "abandon"
    """The relocation is given up, and they go on."""
    RESET = "reset"
    """They are reset; clients are told whether they may simply send them again."""


@dataclass(frozen=True)
class HandoverPlan(Plan):
    """What is to be done.

    Attributes:
        drain: Seconds that running requests have to come to their end.
        running: What to do with those that have not by then.
    """

    drain: float = 5.0
    running: Running = Running.ABANDON


class Handover(Relocation):
    """One handover of a server's connections.

    Args:
        server: The server.
        application: What runs on it, by a name that the agent knows it by as well.
        plan: What to do.
        identity: What the source proves itself with.
        tell: Called with what happens.
        gate: Awaited before each step; None for no delay.
    """

    technique = "handover"

    def __init__(
        self,
        server: Server,
        application: str,
        plan: HandoverPlan,
        identity: Identity,
        *,
        tell: Callable[[RelocationEvent], None] = lambda event: None,
        gate: Gate | None = None,
    ) -> None:
        super().__init__(plan, identity, tell=tell, gate=gate)
        self._server = server
        self._address = server.address
        self._application = application
        self._drain_limit = plan.drain
        self._running = plan.running
        self._departure: Departure = server.departure()
        self._pause = CollectorPause()
        self._state: bytes | None = None

    async def finish(self) -> None:
        """Forward what still arrives for a while, then close the server."""
        if self._machine.state is State.GONE:
            assert self._ended_at is not None, "it has gone"
            await asyncio.sleep(self._ended_at + FORWARDING - time.monotonic())
            await self._close()
            await self._server.close(grace=0)

    @property
    def _source(self) -> Address:
        return self._address

    async def _make_offer(self) -> Message:
        return messages.Offer(
            self._machine.handover,
            quicferry_version=__version__,
            snapshot_version=FORMAT_VERSION,
            application=self._application,
            address=str(self._plan.address),
            connections=len(self._server.connections),
            has_state=self._departure.has_state,
            negotiable=int(self._departure.negotiable),
            connection_id_length=self._departure.connection_id_length,
        )

    async def _prepare(self) -> None:
        await self._begin(Step.IMMINENT)
        await self._announce()
        await self._begin(Step.DRAIN)
        await self._drain()
        self._state = await self._departure.export()

    async def _announce(self) -> None:
        plan = self._plan
        # Connections that can only be told an address are told the one where the server goes.
        explicit = plan.protocol in (None, MigrationProtocol.EXPLICIT)
        self._has_announced = True
        try:
            preparation = await self._server.imminent(
                plan.protocol,
                plan.address if explicit else None,
                deadline=plan.deadline,
                unready=plan.unready,
                destination=plan.address,
            )
        except RelocationError as exc:
            self._has_announced = exc.code is RelocationErrorCode.ABORTED
            raise
        self._silent = preparation.silent
        if preparation.unready and plan.unready is Unready.ABORT:
            raise RelocationError(
                RelocationErrorCode.NOT_READY,
                f"connections are not ready: {', '.join(preparation.unready)}",
            )

    async def _drain(self) -> None:
        self._rejected = tuple(map(str, self._departure.reject_silent()))
        try:
            await self._departure.drain(self._drain_limit)
        except RelocationError:
            if self._running is Running.ABANDON:
                raise
            self._rejected += tuple(map(str, await self._departure.reject_requests()))

    async def _freeze(self) -> None:
        names = []
        for frozen in self._departure.freeze():
            names.append(frozen.connection_id)
            self._send(
                messages.Carry(
                    self._machine.handover, frozen.connection_id, frozen.snapshot, frozen.state
                )
            )
        self._connections = tuple(names)

    async def _transfer(self) -> int:
        if self._state is not None:
            self._send(messages.CarryState(self._machine.handover, self._state))
        return len(self._connections)

    def _newest(self) -> Iterable[tuple[bytes, NetworkAddress]]:
        return self._departure.show_held()

    def _call_off(self) -> None:
        self._departure.call_off()
        self._announced = self._server.still_announced()

    def _resume(self) -> None:
        self._departure.resume()
        self._announced = self._server.still_announced()

    def _depart(self) -> tuple[str, ...]:
        return self._departure.depart(self._forward)

    def _drop(self) -> tuple[str, ...]:
        return self._departure.drop()

    def _act(self, actions: Sequence[Do | Message]) -> None:
        if Do.START_LEASE in actions:
            self._pause.begin()
        super()._act(actions)
        if self._machine.has_ended:
            self._pause.end()

    async def _close(self) -> None:
        self._pause.end()
        await super()._close()
