"""Adopts the connections of servers that are moved here: the destination's end of a handover.

An `Agent` listens for authenticated sources, and serves one application for them. Each handover is
an `Adoption`. The agent serves one server at a time, which may itself be handed over to another
agent; then it is free for the next one.
"""

from __future__ import annotations

import copy
import logging
from types import TracebackType
from typing import Self

from quicferry.io import DEFAULT_LINGER, EventStream
from quicferry.protocol import Address, MigrationProtocol, ServerMigration
from quicferry.server import (
    AsgiApplication,
    Phase,
    Server,
    serve,
)
from quicferry.transport import FORMAT_VERSION, Configuration

from . import messages
from .adoption import Adoption
from .channel import Channel
from .errors import ChannelClosed, MessageError
from .events import AgentEvent
from .history import History
from .identity import Identity
from .listener import Listener, listen
from .messages import Message

logger = logging.getLogger("quicferry.relocation")

DEFAULT_CAPACITY = 10_000
"""Connections that a server may have which is handed over."""


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
