"""Moves a server to an agent, whatever the technique: the source's end of a relocation.

`Relocation.run` takes the steps of `report.Step` in order. What may be done when is decided by
`SourceMachine`; this file does it, talks to the agent (`Channel`), and measures. What a step does
to the server is the technique's business: `handover` moves its connections, `container` the
container that it runs in. Any failure before the commitment ends with the server serving its
clients as before, and a report that says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass

from quicferry.protocol import Address, MigrationProtocol, QuicferryError
from quicferry.server import RelocationEvent, Unready
from quicferry.transport import NetworkAddress

from ..errors import ChannelClosed, ChannelError, MessageError
from ..link import messages
from ..link.channel import Channel, connect
from ..link.identity import Identity
from ..link.messages import HANDOVER_ID_SIZE, Message
from ..ownership.lease import Lease
from ..ownership.source import LEASE, Do, SourceMachine, State
from .report import DestinationStarts, Outcome, RelocationReport, Step, Stopwatch

logger = logging.getLogger("quicferry.relocation")

PATIENCE = 10.0
"""Seconds that the agent may take for an answer while the clients wait."""

ANSWER_LIMIT = 1.0
"""Seconds after which a commitment without an answer is asked about on another link."""

MOST_ANSWERS = 1000
"""Messages of an agent on one link. It has ten to say, and how the clients follow twice a second
for a minute; more would keep the server from its clients."""

_BACKOFF = (0.05, 1.0)


@dataclass(frozen=True)
class Plan:
    """What is to be done, by whatever technique.

    Attributes:
        host: Where the agent is: a name or an IP address.
        port: Its TCP port.
        address: Where the server goes; clients must reach it there.
        protocol: The migration protocol; None for the best one that each connection can use.
        deadline: Seconds that the connections have to get ready.
        unready: What to do if some are not by then.
        follow: Seconds to wait for the clients to follow, for the report.
        peer: What the agent's certificate has to name; None for `host`.
    """

    host: str
    port: int
    address: Address
    protocol: MigrationProtocol | None = None
    deadline: float = 5.0
    unready: Unready = Unready.ABORT
    follow: float = 10.0
    peer: str | None = None


Gate = Callable[[Step], Awaitable[None]]
"""Awaited before each step."""


async def _open(step: Step) -> None:
    """Let every step begin at once."""


class Relocation(ABC):
    """One relocation of a server.

    What is abstract here is what a technique does in each step. What fails raises a
    `QuicferryError`; everything done so far is undone then.

    Args:
        plan: What to do.
        identity: What the source proves itself with.
        tell: Called with what happens.
        gate: Awaited before each step; None for no delay.
        lease: Seconds from the freeze within which it has to be committed.
    """

    technique: str
    """By which the server is moved, as the report names it."""

    def __init__(
        self,
        plan: Plan,
        identity: Identity,
        *,
        tell: Callable[[RelocationEvent], None],
        gate: Gate | None,
        lease: float = LEASE,
    ) -> None:
        self._plan = plan
        self._identity = identity
        self._gate = gate or _open
        self._machine = SourceMachine(os.urandom(HANDOVER_ID_SIZE))
        self._tell = tell
        self._watch = Stopwatch(tell)
        self._lease_time = lease
        self._lease = Lease(self._lease_over)
        self._channel: Channel | None = None
        self._steps: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._undertaken: list[asyncio.Task[None]] = []
        self._problems: list[str] = []
        self._happened = asyncio.Event()
        self._has_announced = False
        self._lease_has_ended = False
        self._frozen_at: float | None = None
        self._ended_at: float | None = None
        self._connections: tuple[str, ...] = ()
        self._closed: tuple[str, ...] = ()
        self._silent: tuple[str, ...] = ()
        self._rejected: tuple[str, ...] = ()
        self._announced: dict[str, str] = {}
        self._size = 0
        self._followed: messages.Followed | None = None
        self._starting: messages.Starting | None = None

    @property
    def step(self) -> Step | None:
        """The step that is under way."""
        return self._watch.current

    @property
    def state(self) -> str:
        """The state of the relocation, by its name in `source.State`."""
        return self._machine.state.value

    def abort(self, reason: str) -> bool:
        """Give the relocation up, and go on here; return whether that is possible still."""
        may = self._machine.may_abort
        self._act(self._machine.abort(reason))
        return may

    async def run(self) -> RelocationReport:
        """Do it, and return what has become of it.

        The server has nothing left to do here after a commitment.
        """
        started_at = time.monotonic()
        steps = self._steps = asyncio.create_task(self._take_steps())
        steps.add_done_callback(lambda _: self._happened.set())
        try:
            await self._until(lambda: steps.done() or self._machine.has_ended)
            if not steps.done():
                steps.cancel()
            await asyncio.gather(steps, return_exceptions=True)
            if not steps.cancelled() and (error := steps.exception()) is not None:
                if not isinstance(error, (QuicferryError, OSError, TimeoutError)):
                    logger.error("a relocation fails", exc_info=error)
                self._act(self._machine.abort(_words(error)))
            await self._until(lambda: self._machine.has_ended)
            if self._machine.state is State.BACK and self._has_announced:
                self._call_off()  # the last step may have gone on for a moment
            self._watch.end()
            await self._settled()
            if self._machine.state is State.GONE:
                await self._follow()
            elif self._machine.state is State.BACK and self._channel is None:
                await self._release_destination()
        except asyncio.CancelledError:
            steps.cancel()
            self._act(self._machine.abort("the server is being stopped"))
            await self._settled()
            raise
        finally:
            self._watch.end()
            if self._machine.state is not State.GONE:
                await self._close()
        return self._report(started_at)

    # What a technique does

    @property
    @abstractmethod
    def _source(self) -> Address:
        """Where the server is."""

    @abstractmethod
    async def _make_offer(self) -> Message:
        """Return the first message to the agent."""

    @abstractmethod
    async def _prepare(self) -> None:
        """Do what can be done while the server serves on; begin the steps that this takes."""

    @abstractmethod
    async def _freeze(self) -> None:
        """Let the server fall silent, and send what can be sent of it."""

    @abstractmethod
    async def _transfer(self) -> int:
        """Send the rest, and return how many pieces were sent in all."""

    def _newest(self) -> Iterable[tuple[bytes, NetworkAddress]]:
        """Return datagrams that have arrived since the freeze and may go ahead."""
        return ()

    @abstractmethod
    def _call_off(self) -> None:
        """Go on as if nothing had been announced; nothing was frozen yet."""

    @abstractmethod
    def _resume(self) -> None:
        """Begin to go on here after a freeze."""

    @abstractmethod
    def _depart(self) -> tuple[str, ...]:
        """Let the server go, and return the connections that could not come along."""

    @abstractmethod
    def _drop(self) -> tuple[str, ...]:
        """Give up what was frozen, and return the connections that were."""

    async def _settled(self) -> None:
        """Wait until what the last four have begun with `_undertake` is done."""
        for result in await asyncio.gather(*self._undertaken, return_exceptions=True):
            if isinstance(result, BaseException):
                logger.error("after a relocation", exc_info=result)
                self._problems.append(_words(result))

    async def _close(self) -> None:
        """Leave nothing behind."""
        self._lease.stop()
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()
        for task in self._tasks:
            task.cancel()

    @property
    def _patience(self) -> float:
        """Seconds that the agent may take for what is to be done after the freeze."""
        return PATIENCE

    # The steps

    async def _take_steps(self) -> None:
        await self._begin(Step.OFFER)
        await self._offer()
        await self._prepare()
        await self._begin(Step.FREEZE)
        self._act(self._machine.freeze())
        await self._freeze()
        await self._begin(Step.TRANSFER)
        pieces = await self._transfer()
        await self._gate(Step.THAW)
        self._send(messages.Carried(self._machine.handover, pieces))
        await self._until(lambda: self._machine.state is State.SWITCHED, limit=self._patience)
        await self._begin(Step.COMMIT)
        self._lease.check()
        for data, addr in self._newest():
            self._forward(data, addr)  # the copies hold them, too, until they may act on them
        self._act(self._machine.commit())
        while self._machine.state is State.IN_DOUBT:
            try:
                await self._until(lambda: self._machine.has_ended, limit=ANSWER_LIMIT)
            except TimeoutError:
                self._link_lost(self._channel, "the agent does not answer")

    async def _offer(self) -> None:
        messages.prepare_messages()
        self._channel = await self._connect(PATIENCE)
        self._spawn(self._read(self._channel))
        self._send(await self._make_offer())
        limit = self._patience
        await self._until(lambda: self._is_accepted or self._starting is not None, limit=limit)
        if self._starting is not None:
            limit += self._starting.limit
            await self._until(lambda: self._is_accepted, limit=limit)

    @property
    def _is_accepted(self) -> bool:
        return self._machine.state is State.ACCEPTED

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

    async def _connect(self, limit: float) -> Channel:
        plan = self._plan
        return await connect(
            plan.host,
            plan.port,
            self._identity,
            timeout=limit,
            peer=plan.peer,
            accepts=messages.FROM_DESTINATION,
        )

    async def _read(self, channel: Channel) -> None:
        try:
            for _ in range(MOST_ANSWERS):
                self._received(messages.decode(await channel.receive()))
            self._link_lost(channel, f"the agent has said more than {MOST_ANSWERS} things")
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
        elif isinstance(message, messages.Starting):
            self._starting = message
            self._tell(DestinationStarts(message.limit))
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
                channel = await self._connect(ANSWER_LIMIT)
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
                self._channel = await self._connect(ANSWER_LIMIT)
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
                    self._lease.start(self._lease_time)
                    self._frozen_at = time.monotonic()
                case Do.CALL_OFF:
                    if self._has_announced:
                        self._call_off()
                case Do.RESUME:
                    self._ended_at = time.monotonic()
                    self._resume()
                case Do.DEPART:
                    self._ended_at = time.monotonic()
                    self._closed = self._depart()
                case Do.DROP:
                    self._connections = ()
                    self._closed = self._drop()
                case Do.RECONNECT:
                    self._spawn(self._reconnect())
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

    async def _end_steps(self) -> None:
        """Take no further step; return when what was begun has ended."""
        if self._steps is not None:
            self._steps.cancel()
            await asyncio.wait([self._steps])

    def _undertake(self, work: Coroutine[None, None, None]) -> None:
        """Begin with something that the report waits for."""
        self._undertaken.append(asyncio.create_task(work))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a handover fails", exc_info=error)
            self._act(self._machine.abort(f"internal error: {type(error).__name__}"))

    def _report(self, started_at: float) -> RelocationReport:
        outcomes = {State.GONE: Outcome.COMMITTED, State.BACK: Outcome.ROLLED_BACK}
        state, followed = self._machine.state, self._followed
        ended_at, frozen_at = self._ended_at, self._frozen_at
        silence = 0.0 if ended_at is None or frozen_at is None else ended_at - frozen_at
        return RelocationReport(
            technique=self.technique,
            outcome=outcomes.get(state, Outcome.GIVEN_UP),
            source=self._source,
            destination=self._plan.address,
            steps=dict(self._watch.steps),
            failed_step=None if state is State.GONE else self._watch.latest,
            reason="; then: ".join(filter(None, [self._machine.reason, *self._problems])),
            connections=self._connections if state is State.GONE else (),
            closed=self._closed,
            silent=self._silent,
            rejected=self._rejected,
            announced=self._announced if state is State.BACK else {},
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
