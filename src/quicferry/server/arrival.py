"""The destination's side of a handover: a server adopts the connections of another one.

A server that has just been started waits for connections instead of clients:

    server = await serve("127.0.0.2", 4433, configuration=configuration, app=app)
    arrival = server.arrival()
    arrival.thaw(frozen)               # once for each connection; they are silent
    await arrival.import_state(state)
    arrival.switch()                   # they are at the new address; still silent
    arrival.activate()                 # they live: the source has given them up
    arrival.commit()                   # the source has said that it knows; or
    arrival.discard()                  # instead of activate: the source keeps them
"""

from __future__ import annotations

import asyncio

from quicferry.io import ConnectionProtocol, ConnectionRouter
from quicferry.protocol import MigrationError
from quicferry.transport import (
    NetworkAddress,
    SnapshotError,
    activate,
    commit,
    prepare_snapshots,
)

from .application import Application
from .departure import FrozenConnection
from .errors import RelocationError, RelocationErrorCode
from .relocator import Relocator


class Arrival:
    """Connections that come to a server; made by `Server.arrival`.

    Args:
        relocator: Of the server.
        router: Of the server.
        application: Of the server.

    Raises:
        RelocationError: If the server has begun with something else.
    """

    def __init__(
        self, relocator: Relocator, router: ConnectionRouter, application: Application | None
    ) -> None:
        relocator.expect()
        prepare_snapshots()
        self._loop = asyncio.get_running_loop()
        self._relocator = relocator
        self._router = router
        self._application = application
        self._adopted: dict[str, ConnectionProtocol] = {}

    @property
    def has_hooks(self) -> bool:
        """Whether the application can carry on with the state of another one."""
        return self._application is not None and self._application.has_hooks

    def thaw(self, frozen: FrozenConnection) -> None:
        """Make a connection of its snapshot.

        Raises:
            RelocationError: If it cannot live here.
        """
        try:
            self._adopted[frozen.connection_id] = self._router.adopt(frozen.snapshot, frozen.state)
        except SnapshotError as exc:
            raise RelocationError(
                RelocationErrorCode.CANNOT_THAW, f"connection {frozen.connection_id}: {exc}"
            ) from exc

    async def import_state(self, data: bytes | None) -> None:
        """Hand the application's state to the application here; None if it has none.

        Raises:
            ApplicationError: If the application cannot use it.
        """
        if self._application is not None:
            await self._application.import_(data)

    def switch(self) -> None:
        """Put the connections at the new address.

        Raises:
            RelocationError: If one of them is not ready for that.
        """
        now = self._loop.time()
        for name, protocol in self._adopted.items():
            local = self._router.move(protocol, None)
            try:
                protocol.connection.network_switch(local, now=now)
            except MigrationError as exc:
                raise RelocationError(exc.code, f"connection {name}: {exc.code.value}") from exc

    def activate(self) -> None:
        """Let the connections live, because their source has given them up."""
        self._relocator.arrive(self._adopted)
        for protocol in self._adopted.values():
            activate(protocol.connection, now=self._loop.time())
            protocol.replay_held()
            protocol.settle()

    def commit(self) -> None:
        """Lift the limit on packet numbers, because the source never comes back."""
        for protocol in self._adopted.values():
            if protocol.closed_by is None:
                commit(protocol.connection)
                protocol.transmit()
        self._adopted.clear()

    def deliver(self, data: bytes, addr: NetworkAddress) -> None:
        """Take in a datagram that was sent to the address of the source."""
        self._router.deliver(data, addr)

    def discard(self) -> None:
        """Forget the connections, because the source keeps them; the server has to be closed."""
        for protocol in self._adopted.values():
            self._router.forget(protocol)
        self._adopted.clear()
