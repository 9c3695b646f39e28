"""One relocation of a container, as the agent sees it.

The container is made of its images as soon as they are there. The server in it is silent then; it
gets its commands through its management socket. What takes time is done one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from quicferry.io import UdpSocket
from quicferry.protocol import Address
from quicferry.server import Completion, ManagementError

from ..doctor import problems
from ..errors import HandoverError
from ..link import messages
from ..link.channel import Channel
from ..link.messages import Message
from ..ownership.destination import LEASE_MARGIN, Do
from ..steps.events import Adopted, Discarded, Offered
from ..steps.reception import Reception
from ..steps.urgency import Urgency
from .engines import DestinationContainer, LazyRestore, Technique
from .images import Compression, ImageDirectory, ImageReceiver
from .ledger import Ledger
from .pages import write_page_tls
from .socket import manage

if TYPE_CHECKING:
    from .agent import ContainerAgent

ANSWER_LIMIT = 10.0
"""Seconds that a restored server may take to say that it is there."""

PAGES_LIMIT = 600.0
"""Seconds that fetching the memory may take after the restore."""


class ContainerReception(Reception):
    """One relocation of a container, as the destination sees it.

    Args:
        agent: Whose it is.
        offer: What the source has offered.
        ledger: Of the agent.
        channel: Where the offer came from.
    """

    carried = messages.CARRIES_CONTAINER

    def __init__(
        self,
        agent: ContainerAgent,
        offer: messages.ContainerOffer,
        ledger: Ledger,
        channel: Channel,
    ) -> None:
        hold = offer.lease + LEASE_MARGIN
        super().__init__(offer, ledger, channel, hold=hold, patience=agent.patience)
        self._agent = agent
        self._offer = offer
        self._ledger = ledger
        self._resources = AsyncExitStack()
        self._directory: ImageDirectory | None = None
        self._receiver: ImageReceiver | None = None
        self._container: DestinationContainer | None = None
        self._lazy: LazyRestore | None = None
        self._urgency = Urgency()
        self._over = asyncio.Event()
        self._page_port: int | None = None
        self._latest: asyncio.Task[None] | None = None

    def received(self, message: Message, channel: Channel) -> None:
        """Take a message of the source; the word to commit only if the copy can live."""
        is_word = isinstance(message, messages.Commit) and message.handover == self.handover
        if is_word and self._machine.holds and not self._machine.owns:
            self._channel = channel
            self._then(partial(self._commit, message))
        else:
            super().received(message, channel)

    async def close(self, reason: str) -> None:
        """Discard what may be discarded, because the agent ends; or see what was committed through.

        The container has to be told that it may live, and that its original is gone, and it has to
        get all of its memory.
        """
        if self.is_over:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PAGES_LIMIT):
                    await self._over.wait()
        await super().close(reason)

    # What takes time

    async def _prepare(self) -> None:
        offer = self._offer
        try:
            address = Address.parse(offer.address)
            compression = Compression(offer.compression)
        except ValueError as exc:
            raise HandoverError(f"the offer cannot be used: {exc}") from None
        if found := await problems(Technique(offer.technique), self._agent.engine.name):
            raise HandoverError(f"the agent's host cannot do {offer.technique}: {'; '.join(found)}")
        container = await self._agent.engine.destination(self._agent.container)
        if container.image != offer.image:
            raise HandoverError(
                f"the container was made of {offer.image or 'something unnamed'}, and here it "
                f"would be of {container.image or 'something unnamed'}; build the image once, and "
                "copy it to both hosts"
            )
        # A server at all addresses of its host would be restored, and clients not find it.
        UdpSocket.bind(address).close()
        self._directory = await self._resources.enter_async_context(
            ImageDirectory(room=self._agent.room)
        )
        if not self._machine.may_abort:  # the source has changed its mind meanwhile
            await self._resources.aclose()
            return
        if self._directory.free < offer.memory * self._agent.engine.room:
            raise HandoverError(
                f"the container uses {offer.memory >> 20} MB, and there are "
                f"{self._directory.free >> 20} MB in memory for its images; give them more room"
            )
        self._container = container
        self._receiver = ImageReceiver(self._directory.images, compression)
        self._agent.publish(Offered(self._channel.peer, address, offer.connections))
        self._act(self._machine.accept(str(address)))

    async def _restore(self) -> None:
        container, directory, receiver = self._container, self._directory, self._receiver
        if container is None or directory is None or receiver is None:
            raise HandoverError("internal error: nothing was prepared")
        receiver.close()
        receiver.check()
        self._ledger.begin(self.handover, container.name)
        if self._offer.page_key:
            tls = write_page_tls(directory.path, self._offer.page_certificate, self._offer.page_key)
            if self._page_port is None:
                raise HandoverError("the source has not said where the memory can be fetched")
            self._lazy = await container.restore_lazily(
                directory.images, tls, self._offered_on.remote_host, self._page_port
            )
        else:
            await container.restore(directory.images)
        self._act(self._machine.thawed())

    async def _appear(self) -> None:
        await self._command("appear", address=self._offer.address)
        self._act(self._machine.switched())

    async def _commit(self, message: Message) -> None:
        """Take the word to commit, unless the copy has died: then the source goes on."""
        try:
            async with asyncio.timeout(ANSWER_LIMIT):
                await self._command("status")
        except (ManagementError, TimeoutError) as exc:
            raise HandoverError("the restored server does not answer any more") from exc
        self._lease.check()
        self._act(self._machine.receive(message))

    async def _activate(self) -> None:
        await self._command("activate", hold=self._hold)
        self._urgency.end()
        address = Address.parse(self._offer.address)
        self._agent.publish(Adopted(self._channel.peer, address, self._offer.connections))

    async def _wait_completed(self, within: float) -> Completion:
        found = await self._command("wait", timeout=within)
        return Completion(
            is_complete=found["completed"],
            seconds=found["seconds"],
            completed=found["completed_seconds"],
            pending=tuple(found["pending"]),
            lost=tuple(found["lost"]),
        )

    async def _finish(self) -> None:
        """Leave nothing behind but the container."""
        try:
            if self._lazy is not None:
                async with asyncio.timeout(PAGES_LIMIT):
                    await self._lazy.wait()
        finally:
            await self._resources.aclose()
            self._over.set()
            self._agent.ended(self)

    async def _discard(self) -> None:
        try:
            if self._lazy is not None:
                self._lazy.kill()
            if self._container is not None:
                await self._container.remove()
            self._ledger.forget(self.handover)
        finally:
            await self._resources.aclose()
            self._agent.ended(self)

    # What the machine decides

    def _take_beside(self, message: Message) -> bool:
        match message:
            case messages.CopyAhead() if self._receiver is not None and self._machine.may_abort:
                self._take(message)
            case messages.PageServer():
                self._page_port = message.port
        return isinstance(message, messages.CopyAhead | messages.PageServer)

    def _take(self, message: messages.CopyAhead | messages.CarryImage) -> None:
        if self._receiver is not None:
            self._receiver.take(message.file, message.data)

    def _do(self, do: Do) -> None:
        match do:
            case Do.START_LEASE:
                self._urgency.begin()
            case Do.TAKE:
                assert isinstance(self._received, messages.CarryImage), "nothing else is carried"
                self._take(self._received)
            case Do.IMPORT:
                self._then(self._restore)
            case Do.SWITCH:
                self._then(self._appear)
            case Do.ACTIVATE:
                self._then(self._activate)
            case Do.LIFT:
                self._then(self._settle)
            case Do.DISCARD:
                self._urgency.end()
                if self._receiver is not None:
                    self._receiver.close()
                self._agent.publish(Discarded(self._channel.peer, self._machine.reason))
                if self._latest is not None:
                    self._latest.cancel()  # a restore that hangs, for example
                self._then(self._discard)

    async def _settle(self) -> None:
        with contextlib.suppress(ManagementError):  # it does so by itself when the time is over
            await self._command("settle")
        self._spawn(self._report(self._wait_completed))
        await self._finish()

    def _then(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something when what was begun before is over."""
        before = self._latest

        async def run() -> None:
            if before is not None:
                await asyncio.wait([before])
            await work()

        self._latest = self._spawn(run())

    async def _command(self, name: str, **fields: Any) -> dict[str, Any]:
        assert self._container is not None, "it was restored"
        async with manage(self._container.socket) as management:
            return await management.command(name, **fields)
