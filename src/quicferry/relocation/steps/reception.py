"""One relocation, as the agent sees it, whatever the technique.

A `Reception` does what `DestinationMachine` decides. What that means for a server is the
technique's business: `adoption` receives its connections, `container_reception` the container that
it runs in.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from quicferry.protocol import QuicferryError
from quicferry.server import Completion

from ..errors import HandoverError
from ..link import messages
from ..link.channel import Channel
from ..link.messages import Message
from ..ownership.destination import HOLD, DestinationMachine, Do
from ..ownership.history import History
from ..ownership.lease import Lease

logger = logging.getLogger("quicferry.relocation")

DEFAULT_PATIENCE = 900.0
"""Seconds that a source may say nothing between its offer and the freeze, while it waits for its
clients and their requests."""

REPORT_INTERVAL = 0.5
"""Seconds between two reports to the source about how the clients follow."""

REPORT_LIMIT = 60.0
"""Seconds for which they are sent."""


class Reception(ABC):
    """One relocation, as the destination sees it.

    Args:
        offer: What the source has offered.
        history: Of the agent.
        channel: Where the offer came from.
        hold: Seconds for which what has arrived is kept for the source to decide.
        patience: Seconds that the source may say nothing between its offer and the freeze.
    """

    carried: tuple[type[Message], ...]
    """What the source sends, by the technique, when its offer was accepted."""

    def __init__(
        self,
        offer: messages.AnyOffer,
        history: History,
        channel: Channel,
        *,
        hold: float = HOLD,
        patience: float,
    ) -> None:
        self._patience = patience
        self._silence = Lease(self._source_is_silent)
        self._machine = DestinationMachine(offer, history)
        self._hold = hold
        self._lease = Lease(lambda: self._act(self._machine.lease_over()))
        self._offered_on = channel
        self._channel = channel
        self._followed: messages.Followed | None = None
        self._offered: Message = offer
        self._received: Message = offer
        self._preparation: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def handover(self) -> bytes:
        """The id of the relocation."""
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
        if self._machine.awaits_freeze:
            self._silence.start(self._patience)
        if message is self._offered:
            self._preparation = self._spawn(self._prepare())
        elif not self._take_beside(message):
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
        self._act(self._machine.fail(reason))  # which may have something to undo
        self._lease.stop()
        self._silence.stop()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What a technique does

    @abstractmethod
    async def _prepare(self) -> None:
        """Get ready for the server, and accept the offer."""

    @abstractmethod
    def _take_beside(self, message: Message) -> bool:
        """Take a message that decides nothing; return whether it was one."""

    @abstractmethod
    def _do(self, do: Do) -> None:
        """Do what the machine has decided, except for the lease."""

    # What the machine decides

    def _act(self, actions: Sequence[Do | Message]) -> None:
        for action in actions:
            if isinstance(action, Message):
                if isinstance(action, messages.Accepted):
                    self._offered_on.accepts = {
                        **messages.FROM_SOURCE,
                        **messages.limits(self.carried),
                    }
                self._send(action)
                continue
            if action is Do.START_LEASE:
                self._lease.start(self._hold)
            elif action in (Do.DISCARD, Do.LIFT):
                self._lease.stop()
            self._silence.stop()
            try:
                self._do(action)
            except QuicferryError as exc:
                self._act(self._machine.fail(str(exc)))
                return

    # Helpers

    def _source_is_silent(self) -> None:
        if self._machine.awaits_freeze:
            self.refuse(
                f"the source has not begun within {self._patience:g} s; if it waits for its "
                "clients for longer than that, start the agent with a longer --patience"
            )

    async def _report(self, wait: Callable[[float], Awaitable[Completion]]) -> None:
        """Tell the source how the clients follow, until all have or it is gone.

        Args:
            wait: Waits for so many seconds at most until all have, and returns how far they are.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + REPORT_LIMIT
        while loop.time() < ends_at:
            completion = await wait(REPORT_INTERVAL)
            self._followed = messages.Followed(
                self.handover,
                seconds=completion.seconds,
                completed=len(completion.completed),
                pending=completion.pending[: messages.MOST_NAMES],
                lost=completion.lost[: messages.MOST_NAMES],
            )
            self._send(self._followed)
            if completion.is_complete or completion.is_final:
                return

    def _send(self, message: Message) -> None:
        self._channel.send_soon(messages.encode(message))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, (QuicferryError, OSError)):
            logger.error("a relocation fails", exc_info=error)
            error = HandoverError("internal error; the agent's log says more")
        elif self._machine.owns:
            logger.error("after a relocation: %s", error)
        self._act(self._machine.fail(str(error)))
