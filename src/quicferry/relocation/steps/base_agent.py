"""Listens for servers that are moved here, whatever the technique.

A `BaseAgent` listens for authenticated sources. Each relocation is a `Reception`; what is received
is the business of `agent.Agent` (connections) and `container_agent.ContainerAgent` (containers).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from quicferry.io import EventStream
from quicferry.protocol import Address

from ..errors import ChannelClosed, MessageError
from ..link import messages
from ..link.channel import Channel
from ..link.identity import Identity
from ..link.listener import Listener, listen
from ..link.messages import Message
from ..ownership.history import History
from .destinations import Destinations
from .events import AgentEvent
from .reception import Reception

logger = logging.getLogger("quicferry.relocation")


class BaseAgent(ABC):
    """Listens for servers that are moved here; used as an asynchronous context manager.

    Args:
        identity: What the agent proves itself with, and whom it trusts.
        listen: Where sources find it; TCP. Port 0 stands for any free one.
        destinations: Where it lets servers go.
        patience: Seconds that a source may say nothing between its offer and the freeze.

    Attributes:
        patience: As given.
    """

    def __init__(
        self, identity: Identity, listen: Address, destinations: Destinations, patience: float
    ) -> None:
        self.patience = patience
        self._destinations = destinations
        self._identity = identity
        self._listen_at = listen
        self._history = History()
        self._listener: Listener | None = None
        self._reception: Reception | None = None
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
            str(self._listen_at.host),
            self._listen_at.port,
            self._identity,
            self._serve_source,
            messages.FROM_SOURCE,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # In this order: once nobody listens, a source may take the copies for gone.
        if self._reception is not None:
            await self._reception.close("the agent is being stopped")
        await self._end()
        if self._listener is not None:
            await self._listener.close()
        for stream in self._streams:
            stream.end()

    def ended(self, reception: Reception) -> None:
        """Take note that a relocation has ended."""
        if self._reception is reception:
            self._reception = None

    def _check_address(self, offered: str) -> str | None:
        """Return why no server may go to an address, and what to do about it."""
        try:
            return self._destinations.problem(Address.parse(offered))
        except ValueError as exc:
            return f"the address {offered!r}: {exc}"

    # What is received

    @abstractmethod
    async def _receive(self, offer: Message, channel: Channel) -> Reception | None:
        """Return the reception that an offer begins; None if the message is none, or is refused.

        Args:
            offer: A message of a relocation that nothing is known of.
            channel: Where it came from.
        """

    @abstractmethod
    def _is_offer(self, message: Message) -> bool:
        """Whether a message begins a relocation here."""

    @abstractmethod
    async def _end(self) -> None:
        """End what was received, as far as it ends with the agent."""

    # The sources

    async def _serve_source(self, channel: Channel) -> None:
        """Obey a source for as long as its channel lasts."""
        reception: Reception | None = None
        try:
            while True:
                message = messages.decode(await channel.receive())
                reception = self._find(message) or await self._begin(message, channel)
                if reception is not None:
                    reception.received(message, channel)
        except ChannelClosed:
            pass
        except MessageError as exc:
            logger.warning("the source %s: %s", channel.peer, exc)
        finally:
            if self._reception is not None:
                self._reception.link_lost(channel)

    def _find(self, message: Message) -> Reception | None:
        reception = self._reception
        return reception if reception and reception.handover == message.handover else None

    async def _begin(self, message: Message, channel: Channel) -> Reception | None:
        """Return the reception that an offer begins; anything else is answered from memory."""
        if not self._is_offer(message) or self._history.knows(message.handover):
            answer = self._history.answer(message)
            if answer is not None:
                channel.send_soon(messages.encode(answer))
            return None
        reception = await self._receive(message, channel)
        if reception is not None:
            self._reception = reception
        return reception
