"""Hands a running server's connections over to an agent: the source's end of a handover.

`Handover.run` takes the steps of `report.Step` in order. What may be done when is decided by
`SourceMachine`; this file does it: it talks to the server (`quicferry.server.Departure`) and to the
agent (`Channel`), and measures. Any failure before the commitment ends with the server serving its
clients as before, and a report that says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass

from quicferry import __version__
from quicferry.protocol import (
    Address,
    MigrationProtocol,
    QuicferryError,
)
from quicferry.server import (
    Departure,
    RelocationError,
    RelocationErrorCode,
    RelocationEvent,
    Server,
    Unready,
)
from quicferry.transport import FORMAT_VERSION, NetworkAddress

from . import messages
from .channel import Channel, connect
from .errors import ChannelClosed, ChannelError, MessageError
from .identity import Identity
from .lease import Lease
from .messages import HANDOVER_ID_SIZE, Message
from .pause import CollectorPause
from .report import Outcome, RelocationReport, Step, Stopwatch
from .source import LEASE, Do, SourceMachine, State

logger = logging.getLogger("quicferry.relocation")

TECHNIQUE = "handover"

FORWARDING = 3.0
"""Seconds for which datagrams that still come to the source are sent after the connections."""

PATIENCE = 10.0
"""Seconds that the agent may take for an answer while the clients wait."""

ANSWER_LIMIT = 1.0
"""Seconds after which a commitment without an answer is asked about on another link."""

_BACKOFF = (0.05, 1.0)


class Running(enum.Enum):
    """What becomes of requests that are still running when the time to drain is over."""

    ABANDON = "abandon"
    """The relocation is given up, and they go on."""
    RESET = "reset"
    """They are reset; clients are told whether they may simply send them again."""


@dataclass(frozen=True)
class HandoverPlan:
    """What is to be done.

    Attributes:
        host: Where the agent is: a name or an IP address.
        port: Its TCP port.
        address: Where the server goes; clients must reach it there.
        protocol: The migration protocol; None for the best one that each connection can use.
        deadline: Seconds that the connections have to get ready.
        unready: What to do if some are not by then.
        drain: Seconds that running requests have to come to their end.
        running: What to do with those that have not by then.
        follow: Seconds to wait for the clients to follow, for the report.
    """

    host: str
    port: int
    address: Address
    protocol: MigrationProtocol | None = None
    deadline: float = 5.0
    unready: Unready = Unready.ABORT
    drain: float = 5.0
    running: Running = Running.ABANDON
    follow: float = 10.0


Gate = Callable[[Step], Awaitable[None]]
"""Awaited before each step."""


async def _open(step: Step) -> None:
    """Let every step begin at once."""


class Handover:
    """One handover of a server's connections.

    Args:
        server: The server.
        application: What runs on it, by a name that the agent knows it by as well.
        plan: What to do.
        identity: What the source proves itself with.
        tell: Called with what happens.
        gate: Awaited before each step; None for no delay.
    """

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
        self._server = server
        self._source = server.address
        self._application = application
        self._plan = plan
        self._identity = identity
        self._gate = gate or _open
        self._departure: Departure = server.departure()
        self._machine = SourceMachine(os.urandom(HANDOVER_ID_SIZE))
        self._watch = Stopwatch(tell)
        self._lease = Lease(self._lease_over)
        self._pause = CollectorPause()
        self._channel: Channel | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._happened = asyncio.Event()
        self._has_announced = False
        self._lease_has_ended = False
        self._frozen_at: float | None = None
        self._ended_at: float | None = None
        self._connections: tuple[str, ...] = ()
        self._closed: tuple[str, ...] = ()
        self._rejected: tuple[str, ...] = ()
        self._size = 0
        self._followed: messages.Followed | None = None

    @property
    def step(self) -> Step | None:
        """The step that is under way."""
        return self._watch.current

    @property
    def state(self) -> str:
        """The state of the handover, by its name in `source.State`."""
        return self._machine.state.value

    def abort(self, reason: str) -> bool:
        """Give the handover up, and go on here; return whether that is possible still."""
        may = self._machine.may_abort
        self._act(self._machine.abort(reason))
        return may

    async def run(self) -> RelocationReport:
        """Do it, and return what has become of it.

        The server has nothing left to do after a commitment; `finish` ends it.
        """
        started_at = time.monotonic()
        steps = asyncio.create_task(self._take_steps())
        steps.add_done_callback(lambda _: self._happened.set())
        try:
            await self._until(lambda: steps.done() or self._machine.has_ended)
            if not steps.done():
                steps.cancel()
            await asyncio.gather(steps, return_exceptions=True)
            if not steps.cancelled() and (error := steps.exception()) is not None:
                if not isinstance(error, (QuicferryError, OSError, TimeoutError)):
                    logger.error("a handover fails", exc_info=error)
                self._act(self._machine.abort(_words(error)))
            await self._until(lambda: self._machine.has_ended)
            if self._machine.state is State.BACK and self._has_announced:
                self._departure.call_off()  # the last step may have gone on for a moment
            self._watch.end()
            if self._machine.state is State.GONE:
                await self._follow()
            elif self._machine.state is State.BACK and self._channel is None:
                await self._release_destination()
        except asyncio.CancelledError:
            steps.cancel()
            self._act(self._machine.abort("the server is being stopped"))
            raise
        finally:
            self._watch.end()
            if self._machine.state is not State.GONE:
                await self._close()
        return self._report(started_at)

    async def finish(self) -> None:
        """Forward what still arrives for a while, then close the server."""
        if self._machine.state is State.GONE:
            assert self._ended_at is not None, "it has gone"
            await asyncio.sleep(self._ended_at + FORWARDING - time.monotonic())
            await self._close()
            await self._server.close()

    # The steps

    async def _take_steps(self) -> None:
        await self._begin(Step.OFFER)
        await self._offer()
        await self._begin(Step.IMMINENT)
        await self._prepare()
        await self._begin(Step.DRAIN)
        await self._drain()
        state = await self._departure.export()
        await self._begin(Step.FREEZE)
        self._freeze()
        await self._begin(Step.TRANSFER)
        if state is not None:
            self._send(messages.CarryState(self._machine.handover, state))
        await self._gate(Step.THAW)
        self._send(messages.Carried(self._machine.handover, len(self._connections)))
        await self._until(lambda: self._machine.state is State.SWITCHED, limit=PATIENCE)
        await self._begin(Step.COMMIT)
        self._lease.check()
        for data, addr in self._departure.show_held():
            self._forward(data, addr)  # the copies hold them, too, until they may act on them
        self._act(self._machine.commit())
        while self._machine.state is State.IN_DOUBT:
            try:
                await self._until(lambda: self._machine.has_ended, limit=ANSWER_LIMIT)
            except TimeoutError:
                self._link_lost(self._channel, "the agent does not answer")

    async def _offer(self) -> None:
        plan, server = self._plan, self._server
        messages.prepare_messages()
        self._channel = await connect(plan.host, plan.port, self._identity, timeout=PATIENCE)
        self._spawn(self._read(self._channel))
        self._send(
            messages.Offer(
                self._machine.handover,
                quicferry_version=__version__,
                snapshot_version=FORMAT_VERSION,
                application=self._application,
                address=str(plan.address),
                connections=len(server.connections),
                has_state=self._departure.has_state,
                negotiable=int(self._departure.negotiable),
                connection_id_length=self._departure.connection_id_length,
            )
        )
        await self._until(lambda: self._machine.state is State.ACCEPTED, limit=PATIENCE)

    async def _prepare(self) -> None:
        plan = self._plan
        # Connections that can only be told an address are told the one where the server goes.
        explicit = plan.protocol in (None, MigrationProtocol.EXPLICIT)
        self._has_announced = True
        try:
            preparation = await self._server.imminent(
                plan.protocol, plan.address if explicit else None, deadline=plan.deadline
            )
        except RelocationError as exc:
            self._has_announced = exc.code is RelocationErrorCode.ABORTED
            raise
        if preparation.unready and plan.unready is Unready.ABORT:
            raise RelocationError(
                RelocationErrorCode.NOT_READY,
                f"connections are not ready: {', '.join(preparation.unready)}",
            )
        self._departure.check_destination(plan.address)

    async def _drain(self) -> None:
        try:
            await self._departure.drain(self._plan.drain)
        except RelocationError:
            if self._plan.running is Running.ABANDON:
                raise
            self._rejected = tuple(map(str, self._departure.reject_requests()))

    def _freeze(self) -> None:
        self._act(self._machine.freeze())
        names = []
        for frozen in self._departure.freeze():
            names.append(frozen.connection_id)
            self._send(
                messages.Carry(
                    self._machine.handover, frozen.connection_id, frozen.snapshot, frozen.state
                )
            )
        self._connections = tuple(names)

    async def _follow(self) -> None:
        await self._begin(Step.FOLLOW)
        with contextlib.suppress(TimeoutError):  # the report says so
            await self._until(
                lambda: self._followed is not None and not self._followed.pending,
                limit=self._plan.follow,
            )

    async def _begin(self, step: Step) -> None:
        self._watch.end()
        await self._gate(step)
        self._watch.begin(step)

    # The agent

    async def _read(self, channel: Channel) -> None:
        try:
            while True:
                self._received(messages.decode(await channel.receive()))
        except (ChannelClosed, MessageError) as exc:
            self._link_lost(channel, str(exc))

    def _received(self, message: Message) -> None:
        steps = {
            messages.Received: Step.THAW,
            messages.Thawed: Step.SWITCH,
        }
        if (step := steps.get(type(message))) is not None:
            self._watch.begin(step)
        elif isinstance(message, messages.Switched):
            self._watch.end()
        elif isinstance(message, messages.Followed):
            self._followed = message
        self._lease.check()
        self._act(self._machine.receive(message))

    def _link_lost(self, channel: Channel | None, reason: str) -> None:
        if channel is not None and channel is self._channel:
            self._channel = None
            channel.abort()
            self._lease.check()
            self._act(self._machine.link_lost(reason))

    async def _reconnect(self) -> None:
        """Connect again while that is of use."""
        delay, longest = _BACKOFF
        while self._machine.state in (State.IN_DOUBT, State.GONE):
            try:
                plan = self._plan
                channel = await connect(plan.host, plan.port, self._identity, timeout=ANSWER_LIMIT)
            except ChannelError as exc:
                logger.info("the agent cannot be asked: %s", exc)
                if self._lease_has_ended:
                    return
                await asyncio.sleep(delay)
                delay = min(2 * delay, longest)
            else:
                self._channel = channel
                self._spawn(self._read(channel))
                self._lease.check()
                self._act(self._machine.link_back())
                return

    async def _release_destination(self) -> None:
        """Tell the agent to forget its copies, if it can be told; otherwise its lease will."""
        if self._frozen_at is not None:
            with contextlib.suppress(ChannelError):
                plan = self._plan
                self._channel = await connect(
                    plan.host, plan.port, self._identity, timeout=ANSWER_LIMIT
                )
                self._act(self._machine.link_back())

    def _send(self, message: Message) -> None:
        if self._channel is None:
            return  # its loss is known
        data = messages.encode(message)
        self._size += len(data)
        self._channel.send_soon(data)

    def _forward(self, data: bytes, addr: NetworkAddress) -> None:
        if self._channel is not None and not self._channel.is_congested:
            self._send(messages.Forward.of(self._machine.handover, data, addr))

    # What the machine decides

    def _lease_over(self) -> None:
        self._lease_has_ended = True
        self._act(self._machine.lease_over())

    def _act(self, actions: Sequence[Do | Message]) -> None:
        for action in actions:
            match action:
                case Message():
                    self._send(action)
                case Do.START_LEASE:
                    self._lease.start(LEASE)
                    self._pause.begin()
                    self._frozen_at = time.monotonic()
                case Do.CALL_OFF:
                    if self._has_announced:
                        self._departure.call_off()
                case Do.RESUME:
                    self._ended_at = time.monotonic()
                    self._departure.resume()
                case Do.DEPART:
                    self._ended_at = time.monotonic()
                    self._closed = self._departure.depart(self._forward)
                case Do.DROP:
                    self._connections = ()
                    self._closed = self._departure.drop()
                case Do.RECONNECT:
                    self._spawn(self._reconnect())
        if self._machine.has_ended:
            self._pause.end()
        self._happened.set()

    # Helpers

    async def _until(self, is_so: Callable[[], bool], limit: float | None = None) -> None:
        """Wait until something is so.

        Raises:
            TimeoutError: If it is not within the limit, in seconds.
        """
        try:
            async with asyncio.timeout(limit):
                while not is_so():
                    self._happened.clear()
                    await self._happened.wait()
        except TimeoutError:
            raise TimeoutError(f"the agent did not answer within {limit:.0f} s") from None

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a handover fails", exc_info=error)
            self._act(self._machine.abort(f"internal error: {type(error).__name__}"))

    async def _close(self) -> None:
        self._lease.stop()
        self._pause.end()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
        for task in self._tasks:
            task.cancel()

    def _report(self, started_at: float) -> RelocationReport:
        outcomes = {State.GONE: Outcome.COMMITTED, State.BACK: Outcome.ROLLED_BACK}
        state, followed = self._machine.state, self._followed
        ended_at, frozen_at = self._ended_at, self._frozen_at
        silence = 0.0 if ended_at is None or frozen_at is None else ended_at - frozen_at
        return RelocationReport(
            technique=TECHNIQUE,
            outcome=outcomes.get(state, Outcome.GIVEN_UP),
            source=self._source,
            destination=self._plan.address,
            steps=dict(self._watch.steps),
            failed_step=None if state is State.GONE else self._watch.latest,
            reason=self._machine.reason,
            connections=self._connections if state is State.GONE else (),
            closed=self._closed,
            rejected=self._rejected,
            started_at=started_at,
            owned_at=ended_at if state is State.GONE else None,
            silence=silence,
            size=self._size,
            followed=followed is not None and not followed.pending,
            pending=() if followed is None else followed.pending,
            lost=() if followed is None else followed.lost,
        )


def _words(error: BaseException) -> str:
    if isinstance(error, (QuicferryError, OSError, TimeoutError)):
        return str(error)
    return f"internal error: {type(error).__name__}; the server's log says more"
