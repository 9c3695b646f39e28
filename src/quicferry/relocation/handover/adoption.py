"""One handover, as the agent sees it, done to a server in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quicferry.protocol import Address
from quicferry.server import Arrival, FrozenConnection, Server

from ..errors import HandoverError
from ..link import messages
from ..link.channel import Channel
from ..link.messages import Message
from ..ownership.destination import Do
from ..ownership.history import History
from ..steps.events import Adopted, Discarded, Offered, Released
from ..steps.pause import CollectorPause
from ..steps.reception import Reception

if TYPE_CHECKING:
    from .agent import Agent


class Adoption(Reception):
    """One handover, as the destination sees it.

    Args:
        agent: Whose it is.
        offer: What the source has offered.
        history: Of the agent.
        channel: Where the offer came from.
    """

    carried = messages.CARRIES_CONNECTIONS

    def __init__(
        self, agent: Agent, offer: messages.Offer, history: History, channel: Channel
    ) -> None:
        super().__init__(offer, history, channel, patience=agent.patience)
        self._carried = 0
        self._size = 0
        self._agent = agent
        self._offer = offer
        self._pause = CollectorPause()
        self._server: Server | None = None
        self._arrival: Arrival | None = None
        self._state: bytes | None = None

    def _take_beside(self, message: Message) -> bool:
        if not isinstance(message, messages.Forward):
            return False
        if self._arrival is not None and self._machine.holds:
            self._arrival.deliver(message.data, message.address.value)
        return True

    # What takes time

    async def _prepare(self) -> None:
        """Start the server that is to adopt the connections, and accept the offer."""
        offer = self._offer
        try:
            address = Address.parse(offer.address)
        except ValueError as exc:
            raise HandoverError(f"the address {offer.address!r}: {exc}") from None
        self._send(messages.Starting(self.handover, self._agent.startup_timeout))
        server = await self._agent.start_server(address)
        if not self._machine.may_abort:
            await server.close(grace=0)  # the source has changed its mind meanwhile
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

    async def _watch(self, server: Server) -> None:
        await server.wait_closed()
        self._agent.released(server)
        self._agent.ended(self)
        self._lease.stop()
        self._agent.publish(Released(self._channel.peer))

    def _do(self, do: Do) -> None:
        arrival, server = self._arrival, self._server
        match do:
            case Do.START_LEASE:
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
                self._spawn(self._report(server.wait_completed))
                self._spawn(self._watch(server))
            case Do.LIFT:
                arrival.commit()

    def _take(self, arrival: Arrival) -> None:
        match self._received:
            case messages.Carry() as carry:
                self._carried += 1
                if self._carried > self._agent.capacity:
                    raise HandoverError(
                        f"more connections have come than the agent's {self._agent.capacity}; "
                        "start it with a larger --capacity"
                    )
                self._make_room(len(carry.connection) + len(carry.protocol))
                frozen = FrozenConnection(carry.connection_id, carry.connection, carry.protocol)
                arrival.thaw(frozen)
            case messages.CarryState() as carry:
                self._make_room(len(carry.data))
                self._state = carry.data

    def _make_room(self, size: int) -> None:
        self._size += size
        if self._size > self._agent.room:
            raise HandoverError(
                f"what has come takes more than the agent's {self._agent.room >> 20} MB; start it "
                "with more --room"
            )

    def _discard(self) -> None:
        self._pause.end()
        if self._preparation is not None and self._server is None:
            self._preparation.cancel()  # its application may still be starting
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
                await server.close(grace=0)
        finally:
            self._agent.ended(self)
