"""Receives whole containers that are moved here: the destination's end of cold, pre-copy & co.

A `ContainerAgent` has a container engine make containers of what sources send. Each relocation is a
`ContainerReception`. The containers live on when the agent ends.
"""

from __future__ import annotations

import logging
from pathlib import Path

from quicferry import __version__
from quicferry.protocol import Address

from ..errors import EngineError
from ..link import messages
from ..link.channel import Channel
from ..link.identity import Identity
from ..link.messages import Message
from ..steps.base_agent import BaseAgent
from ..steps.destinations import Destinations
from ..steps.reception import DEFAULT_PATIENCE
from .engines import Engine, Technique
from .images import wipe_leftovers
from .ledger import Ledger
from .reception import ContainerReception

logger = logging.getLogger("quicferry.relocation")

DIRECTORY = Path("/run/quicferry/agent")
"""Where an agent writes down what the next one has to know."""


class ContainerAgent(BaseAgent):
    """Listens for containers that are moved here; to be run as root.

    Used as an asynchronous context manager.

    Args:
        engine: Makes the containers.
        identity: What the agent proves itself with, and whom it trusts.
        listen: Where sources find it; TCP. Port 0 stands for any free one.
        container: The name of the containers here, whatever they are called at the source.
        room: How much memory images may take, in bytes; None for half of the host's.
        directory: Where the agent writes down what the next one has to know.
        destinations: Where servers may go. Ports that the engine's containers name are added.
        patience: Seconds that a source may say nothing between its offer and the freeze.
    """

    def __init__(
        self,
        engine: Engine,
        identity: Identity,
        listen: Address,
        *,
        container: str,
        room: int | None = None,
        directory: Path = DIRECTORY,
        destinations: Destinations | None = None,
        patience: float = DEFAULT_PATIENCE,
    ) -> None:
        super().__init__(identity, listen, destinations or Destinations(), patience)
        self.engine = engine
        self.container = container
        self.room = room
        self._version = ""
        self._ledger = Ledger(directory)
        self._history = self._ledger

    async def __aenter__(self) -> ContainerAgent:
        """Begin to listen.

        Raises:
            EngineError: If the engine is not there.
        """
        self._version = await self.engine.version()
        self._destinations = self._destinations.with_ports(await self.engine.ports())
        await wipe_leftovers()
        await self._remove_copies()
        await super().__aenter__()
        return self

    def _is_offer(self, message: Message) -> bool:
        return isinstance(message, messages.ContainerOffer)

    async def _receive(self, offer: Message, channel: Channel) -> ContainerReception | None:
        assert isinstance(offer, messages.ContainerOffer), "nothing else is an offer here"
        problem = self._problem(offer)
        reception = ContainerReception(self, offer, self._ledger, channel)
        if problem is not None:
            reception.refuse(problem)
            return None
        return reception

    async def _end(self) -> None:
        """End nothing: containers live on."""
        self._ledger.close()

    def _problem(self, offer: messages.ContainerOffer) -> str | None:
        """Return why an offer is refused, and what to do about it."""
        if self._reception is not None:
            return "this agent is busy with another relocation; try again when that is over"
        if offer.quicferry_version != __version__:
            return (
                f"the source has quicferry {offer.quicferry_version}, and the agent {__version__}; "
                "run the same quicferry on both hosts"
            )
        if offer.engine != self.engine.name:
            return (
                f"the container is one of {offer.engine}, and the agent's engine is "
                f"{self.engine.name}; start an agent with --engine {offer.engine}"
            )
        if (wrong := self._check_address(offer.address)) is not None:
            return wrong
        try:
            technique = Technique(offer.technique)
        except ValueError:
            return f"the agent knows no technique {offer.technique!r}"
        if technique not in self.engine.techniques:
            known = ", ".join(sorted(each.value for each in self.engine.techniques))
            return f"{self.engine.name} cannot do {technique.value}, only: {known}"
        if offer.engine_version != self._version:
            logger.warning(
                "the source has %s, and this host %s", offer.engine_version, self._version
            )
        return None

    async def _remove_copies(self) -> None:
        """End what an agent before this one was told to make, and was given no word for.

        This has to be done before a source can ask: the answer is that there is no copy.
        """
        for handover, name in self._ledger.copies().items():
            try:
                await self.engine.discard(name)
            except EngineError as exc:
                logger.error("a copy of the container %s is left: %s", name, exc)
                continue
            self._ledger.forget(handover)
