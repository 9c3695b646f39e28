"""Adopts the connections of servers that are moved here: the destination's end of a handover.

An `Agent` listens for authenticated sources, and serves one application for them. What may be done
when is decided by `DestinationMachine`; this file does it. It serves one server at a time, which
may itself be handed over to another agent; then the agent is free for the next one.
"""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from quicferry.io import DEFAULT_LINGER, EventStream
from quicferry.protocol import Address, MigrationProtocol, QuicferryError, ServerMigration
from quicferry.server import (
    Arrival,
    AsgiApplication,
    FrozenConnection,
    Phase,
    Server,
    serve,
)
from quicferry.transport import FORMAT_VERSION, Configuration

from . import messages
from .channel import Channel
from .destination import HOLD, DestinationMachine, Do
from .errors import ChannelClosed, HandoverError, MessageError
from .history import History
from .identity import Identity
from .lease import Lease
from .listener import Listener, listen
from .messages import Message
from .pause import CollectorPause

logger = logging.getLogger("quicferry.relocation")

DEFAULT_CAPACITY = 10_000
"""Connections that a server may have which is handed over."""

REPORT_INTERVAL = 0.5
"""Seconds between two reports to the source about how the clients follow."""

REPORT_LIMIT = 60.0
"""Seconds for which they are sent."""


@dataclass(frozen=True)
class AgentEvent:
    """The base of what an agent has to tell.

    Attributes:
        source: Who hands over, by the name in its certificate.
    """

    source: str


@dataclass(frozen=True)
class Offered(AgentEvent):
    """A source wants to hand a server over, and was not refused.

    Attributes:
        address: Where the server is to go.
        connections: How many connections it has.
    """

    address: Address
    connections: int


@dataclass(frozen=True)
class Discarded(AgentEvent):
    """A handover was refused, or came to nothing; the source goes on.

    Attributes:
        reason: Why.
    """

    reason: str


@dataclass(frozen=True)
class Adopted(AgentEvent):
    """The server lives here now; `Agent.server` is that server.

    Attributes:
        address: Where it listens.
        connections: How many connections it has adopted.
    """

    address: Address
    connections: int


@dataclass(frozen=True)
class Released(AgentEvent):
    """The adopted server has ended, or was handed over to another agent."""


class Agent:
    """Listens for servers that are handed over, and serves what it adopts.

    Used as an asynchronous context manager; at its end the adopted server is closed.

    Args:
        app: The ASGI application that adopted servers run.
        application: Its name. A source has to name the same.
        configuration: Of the adopted servers' connections, with a certificate for new clients.
        identity: What the agent proves itself with, and whom it trusts.
        listen: Where sources find it; TCP. Port 0 stands for any free one.
        retry: As for `quicferry.serve`.
        linger: As for `quicferry.serve`.
        capacity: How many connections a server may have.

    Attributes:
        server: The server that was adopted; None while there is none.
    """

    def __init__(
        self,
        app: AsgiApplication,
        *,
        application: str,
        configuration: Configuration,
        identity: Identity,
        listen: Address,
        retry: bool = False,
        linger: float = DEFAULT_LINGER,
        capacity: int = DEFAULT_CAPACITY,
    ) -> None:
        self.server: Server | None = None
        self.application = application
        self.capacity = capacity
        self.configuration = configuration
        self._app = app
        self._identity = identity
        self._listen_at = listen
        self._retry = retry
        self._linger = linger
        self._listener: Listener | None = None
        self._history = History()
        self._adoption: Adoption | None = None
        self._streams: list[EventStream[AgentEvent]] = []

    @property
    def address(self) -> Address:
        """Where sources find the agent.

        Raises:
            RuntimeError: If it does not listen.
        """
        if self._listener is None:
            raise RuntimeError("the agent does not listen; use it as a context manager")
        return self._listener.address

    def events(self) -> EventStream[AgentEvent]:
        """Return an iterator over what happens from now on, until the agent ends."""
        stream: EventStream[AgentEvent] = EventStream()
        self._streams = [*(each for each in self._streams if not each.has_ended), stream]
        return stream

    def publish(self, event: AgentEvent) -> None:
        """Tell everyone who iterates over `events`."""
        for stream in self._streams:
            stream.put(event)

    async def __aenter__(self) -> Self:
        messages.prepare_messages()
        self._listener = await listen(
            str(self._listen_at.host), self._listen_at.port, self._identity, self._serve_source
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # In this order: once nobody listens, a source may take the copies for gone.
        if self._adoption is not None:
            await self._adoption.close("the agent is being stopped")
        if self.server is not None:
            await self.server.close()
        if self._listener is not None:
            await self._listener.close()
        for stream in self._streams:
            stream.end()

    async def _serve_source(self, channel: Channel) -> None:
        """Obey a source for as long as its channel lasts."""
        adoption: Adoption | None = None
        try:
            while True:
                message = messages.decode(await channel.receive())
                adoption = self._find(message) or await self._begin(message, channel)
                if adoption is not None:
                    adoption.received(message, channel)
        except ChannelClosed:
            pass
        except MessageError as exc:
            logger.warning("the source %s: %s", channel.peer, exc)
        finally:
            if self._adoption is not None:
                self._adoption.link_lost(channel)

    def _find(self, message: Message) -> Adoption | None:
        adoption = self._adoption
        return adoption if adoption and adoption.handover == message.handover else None

    async def _begin(self, message: Message, channel: Channel) -> Adoption | None:
        """Return the adoption that an offer begins; anything else is answered from memory."""
        if not isinstance(message, messages.Offer) or self._history.knows(message.handover):
            answer = self._history.answer(message)
            if answer is not None:
                channel.send_soon(messages.encode(answer))
            return None
        if self.server is not None and self.server.phase is Phase.DEPARTED:
            await self.server.close()  # it has only lingered for what was under way to it
            if self._find(message) is not None or self._history.knows(message.handover):
                return self._find(message)  # it has come again meanwhile, and gone perhaps
        problem = self._problem(message)
        adoption = Adoption(self, message, self._history, channel)
        if problem is not None:
            adoption.refuse(problem)
            return None
        self._adoption = adoption
        return adoption

    def _problem(self, offer: messages.Offer) -> str | None:
        """Return why an offer is refused, and what to do about it."""
        if self.server is not None:
            return f"this agent serves {self.server.address} already; use another one"
        if self._adoption is not None and not self._adoption.is_over:
            return "this agent is busy with another handover; try again when that is over"
        if offer.snapshot_version != FORMAT_VERSION:
            return (
                f"the source (quicferry {offer.quicferry_version}) has snapshots of version "
                f"{offer.snapshot_version}, and the agent of version {FORMAT_VERSION}; run the "
                "same quicferry on both hosts"
            )
        if offer.application != self.application:
            return (
                f"the source runs {offer.application}, and the agent {self.application}; start an "
                "agent with the same application"
            )
        if offer.connections > self.capacity:
            return f"{offer.connections} connections are more than the agent's {self.capacity}"
        if offer.connection_id_length != self.configuration.connection_id_length:
            return "the connection IDs have another length; use the same connection_id_length"
        options = self.configuration.server_migration
        own = options.protocols if isinstance(options, ServerMigration) else MigrationProtocol(0)
        if MigrationProtocol(offer.negotiable) & ~own:
            return "the agent does not offer all migration protocols of the source; let it"
        return None

    async def start_server(self, address: Address) -> Server:
        """Return a server at an address, whose application is running."""
        return await serve(
            str(address.host),
            address.port,
            configuration=copy.copy(self.configuration),
            app=self._app,
            retry=self._retry,
            linger=self._linger,
        )

    def adopted(self, server: Server) -> None:
        """Take note of a server that lives here."""
        self.server = server

    def ended(self, adoption: Adoption) -> None:
        """Take note that a handover has ended."""
        if self._adoption is adoption:
            self._adoption = None

    def released(self, server: Server) -> None:
        """Take note that a server has ended."""
        if self.server is server:
            self.server = None


class Adoption:
    """One handover, as the destination sees it.

    Args:
        agent: Whose it is.
        offer: What the source has offered.
        history: Of the agent.
        channel: Where the offer came from.
    """

    def __init__(
        self, agent: Agent, offer: messages.Offer, history: History, channel: Channel
    ) -> None:
        self._agent = agent
        self._offer = offer
        self._machine = DestinationMachine(offer, history)
        self._lease = Lease(lambda: self._act(self._machine.lease_over()))
        self._pause = CollectorPause()
        self._offered_on = channel
        self._channel = channel
        self._server: Server | None = None
        self._arrival: Arrival | None = None
        self._state: bytes | None = None
        self._followed: messages.Followed | None = None
        self._received: Message = offer
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def handover(self) -> bytes:
        """The id of the handover."""
        return self._machine.handover

    @property
    def is_over(self) -> bool:
        """Whether the server that it is about lives here, or did."""
        return self._machine.owns

    def refuse(self, reason: str) -> None:
        """Refuse the offer."""
        self._act(self._machine.fail(reason))

    def received(self, message: Message, channel: Channel) -> None:
        """Take a message of the source."""
        if channel is not self._channel:
            self._channel = channel
            if self._followed is not None:
                self._send(self._followed)
        self._received = message
        if message is self._offer:
            self._spawn(self._prepare())
            return
        if isinstance(message, messages.Forward):
            if self._arrival is not None and self._machine.holds:
                self._arrival.deliver(message.data, message.address.value)
            return
        self._lease.check()
        self._act(self._machine.receive(message))

    def link_lost(self, channel: Channel) -> None:
        """Take note that a channel is lost."""
        if channel is self._offered_on:
            self._act(self._machine.link_lost())

    async def close(self, reason: str) -> None:
        """Discard what may be discarded, because the agent ends."""
        for task in list(self._tasks):
            task.cancel()
        self._act(self._machine.fail(reason))  # which may have an address to free
        self._lease.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What takes time

    async def _prepare(self) -> None:
        """Start the server that is to adopt the connections, and accept the offer."""
        offer = self._offer
        try:
            address = Address.parse(offer.address)
        except ValueError as exc:
            raise HandoverError(f"the address {offer.address!r}: {exc}") from None
        server = await self._agent.start_server(address)
        if not self._machine.may_abort:
            await server.close()  # the source has changed its mind meanwhile
            return
        self._server = server
        self._arrival = server.arrival()
        if offer.has_state and not self._arrival.has_hooks:
            raise HandoverError(
                "the application of the source carries state, and the one here has no "
                "quicferry.import; run the same application on both hosts"
            )
        self._agent.publish(Offered(self._channel.peer, server.address, offer.connections))
        self._act(self._machine.accept(str(server.address)))

    async def _import(self) -> None:
        assert self._arrival is not None, "the offer was accepted"
        await self._arrival.import_state(self._state)
        self._state = None
        self._act(self._machine.thawed())

    async def _report(self, server: Server) -> None:
        """Tell the source how the clients follow, until all have or it is gone."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + REPORT_LIMIT
        while loop.time() < ends_at:
            completion = await server.wait_completed(REPORT_INTERVAL)
            self._followed = messages.Followed(
                self.handover,
                seconds=completion.seconds,
                completed=len(completion.completed),
                pending=completion.pending,
                lost=completion.lost,
            )
            self._send(self._followed)
            if completion.is_complete:
                return

    async def _watch(self, server: Server) -> None:
        await server.wait_closed()
        self._agent.released(server)
        self._agent.ended(self)
        self._lease.stop()
        self._agent.publish(Released(self._channel.peer))

    # What the machine decides

    def _act(self, actions: Sequence[Do | Message]) -> None:
        for action in actions:
            if isinstance(action, Message):
                self._send(action)
                continue
            try:
                self._do(action)
            except QuicferryError as exc:
                self._act(self._machine.fail(str(exc)))
                return

    def _do(self, do: Do) -> None:
        arrival, server = self._arrival, self._server
        match do:
            case Do.START_LEASE:
                self._lease.start(HOLD)
                self._pause.begin()
            case Do.DISCARD:
                self._discard()
            case _ if arrival is None or server is None:
                raise HandoverError("internal error: nothing was prepared")
            case Do.TAKE:
                self._take(arrival)
            case Do.IMPORT:
                self._spawn(self._import())
            case Do.SWITCH:
                arrival.switch()
                self._act(self._machine.switched())
            case Do.ACTIVATE:
                arrival.activate()
                self._pause.end()
                self._agent.adopted(server)
                connections = len(server.connections)
                self._agent.publish(Adopted(self._channel.peer, server.address, connections))
                self._spawn(self._report(server))
                self._spawn(self._watch(server))
            case Do.LIFT:
                self._lease.stop()
                arrival.commit()

    def _take(self, arrival: Arrival) -> None:
        match self._received:
            case messages.Carry() as carry:
                frozen = FrozenConnection(carry.connection_id, carry.connection, carry.protocol)
                arrival.thaw(frozen)
            case messages.CarryState() as carry:
                self._state = carry.data

    def _discard(self) -> None:
        self._lease.stop()
        self._pause.end()
        self._state = None
        if self._arrival is not None:
            self._arrival.discard()
        server, self._server = self._server, None
        self._agent.publish(Discarded(self._channel.peer, self._machine.reason))
        self._spawn(self._end(server))

    async def _end(self, server: Server | None) -> None:
        """Free the address."""
        try:
            if server is not None:
                await server.close()
        finally:
            self._agent.ended(self)

    # Helpers

    def _send(self, message: Message) -> None:
        self._channel.send_soon(messages.encode(message))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, (QuicferryError, OSError)):
            logger.error("a handover fails", exc_info=error)
            error = HandoverError("internal error; the agent's log says more")
        self._act(self._machine.fail(str(error)))
