"""Adopts the connections of servers that are moved here: the destination's end of a handover.

An `Agent` serves one application for the sources. Each handover is an `Adoption`. The agent serves
one server at a time, which may itself be handed over to another agent; then it is free for the next
one.
"""

from __future__ import annotations

import copy

from quicferry.io import DEFAULT_LINGER, DEFAULT_MAX_HALF_OPEN
from quicferry.protocol import Address, MigrationProtocol, ServerMigration
from quicferry.server import (
    DEFAULT_LIMIT_CONCURRENCY,
    DEFAULT_STARTUP_TIMEOUT,
    AsgiApplication,
    Phase,
    Server,
    check_certificate,
    serve,
)
from quicferry.transport import FORMAT_VERSION, Configuration

from ..link import messages
from ..link.channel import Channel
from ..link.identity import Identity
from ..link.messages import Message
from ..steps.base_agent import BaseAgent
from ..steps.destinations import Destinations
from ..steps.reception import DEFAULT_PATIENCE
from .adoption import Adoption

DEFAULT_CAPACITY = 10_000
"""Connections that a server may have which is handed over."""
DEFAULT_ROOM = 1 << 30
"""Bytes that its connections and the state of its application may take on their way; ten thousand
connections take some thirty million."""


class Agent(BaseAgent):
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
        grace: As for `quicferry.serve`.
        startup_timeout: As for `quicferry.serve`.
        limit_concurrency: As for `quicferry.serve`.
        key: As for `quicferry.serve`.
        capacity: How many connections a server may have.
        room: How many bytes they and the state of the application may take on their way.
        destinations: Where servers may go. The ports of the configuration's pool are added.
        patience: Seconds that a source may say nothing between its offer and the freeze.
        max_half_open: As for `quicferry.serve`.

    Attributes:
        server: The server that was adopted; None while there is none.
        startup_timeout: Seconds that the application has to start.
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
        grace: float = 0.0,
        startup_timeout: float = DEFAULT_STARTUP_TIMEOUT,
        limit_concurrency: int = DEFAULT_LIMIT_CONCURRENCY,
        key: bytes | None = None,
        capacity: int = DEFAULT_CAPACITY,
        room: int = DEFAULT_ROOM,
        destinations: Destinations | None = None,
        patience: float = DEFAULT_PATIENCE,
        max_half_open: int = DEFAULT_MAX_HALF_OPEN,
    ) -> None:
        check_certificate(configuration)
        allowed = (destinations or Destinations()).with_ports(_ports(configuration))
        super().__init__(identity, listen, allowed, patience)
        self.room = room
        self.server: Server | None = None
        self.application = application
        self.capacity = capacity
        self.configuration = configuration
        self._app = app
        self._retry = retry
        self._linger = linger
        self._grace = grace
        self.startup_timeout = startup_timeout
        self._limit_concurrency = limit_concurrency
        self._key = key
        self._max_half_open = max_half_open

    def _is_offer(self, message: Message) -> bool:
        return isinstance(message, messages.Offer)

    async def _receive(self, offer: Message, channel: Channel) -> Adoption | None:
        assert isinstance(offer, messages.Offer), "nothing else is an offer here"
        if self.server is not None and self.server.phase is Phase.DEPARTED:
            await self.server.close(grace=0)  # it has only lingered for what was under way to it
            if (known := self._find(offer)) is not None or self._history.knows(offer.handover):
                assert known is None or isinstance(known, Adoption), "there are no others"
                return known  # it has come again meanwhile, and gone perhaps
        problem = self._problem(offer)
        adoption = Adoption(self, offer, self._history, channel)
        if problem is not None:
            adoption.refuse(problem)
            return None
        return adoption

    async def _end(self) -> None:
        if self.server is not None:
            await self.server.close()

    def _problem(self, offer: messages.Offer) -> str | None:
        """Return why an offer is refused, and what to do about it."""
        if self.server is not None:
            return f"this agent serves {self.server.address} already; use another one"
        if self._reception is not None and not self._reception.is_over:
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
        if (wrong := self._check_address(offer.address)) is not None:
            return wrong
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
            grace=self._grace,
            startup_timeout=self.startup_timeout,
            limit_concurrency=self._limit_concurrency,
            key=self._key,
            max_half_open=self._max_half_open,
        )

    def adopted(self, server: Server) -> None:
        """Take note of a server that lives here."""
        self.server = server

    def released(self, server: Server) -> None:
        """Take note that a server has ended."""
        if self.server is server:
            self.server = None


def _ports(configuration: Configuration) -> set[int]:
    """Return the ports of the addresses where a server may come up by its configuration."""
    options = configuration.server_migration
    pool = options.pool if isinstance(options, ServerMigration) else ()
    addresses = (each.for_family(family) for each in pool for family in (4, 6))
    return {address.port for address in addresses if address is not None}
