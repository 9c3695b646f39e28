"""Whoever moves the simulated server: announces, waits until all are ready, freezes, switches.

What happens on many connections is joined as on a real server, by
`quicferry.server.synchronisation`; here it is carried out on simulated endpoints. Instants are
those of the events themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from quicferry.protocol import (
    Address,
    ConnectionClosed,
    HandshakeFinished,
    MigrationCompleted,
    MigrationEvent,
    MigrationFailed,
    MigrationProtocol,
    MigrationReady,
    PoolAddressAcknowledged,
    ServerMigration,
)
from quicferry.server.planning import Situation, plan_for_all
from quicferry.server.synchronisation import Action, Phase, Prepare, Resume, Synchronisation
from quicferry.transport import address_from_network
from quicferry_lab.evaluation.result import Relocation
from quicferry_lab.simulation import Client, Endpoint, ServerHost, SimulatedAddress


class Mover:
    """Moves a server, and takes note of when what happened.

    Args:
        migration: The server's choices.
        protocol: By which its connections migrate.

    Attributes:
        relocations: Those so far; times are the simulation's.
        connected: How many clients have finished their handshakes.
        left_to_follow: The names of the clients that have not completed the latest migration.
    """

    def __init__(self, migration: ServerMigration | None, protocol: MigrationProtocol) -> None:
        self.relocations: list[Relocation] = []
        self.connected = 0
        self.left_to_follow: set[str] = set()
        self._migration = migration
        self._protocol = protocol
        self._sync = Synchronisation()
        self._host: ServerHost | None = None
        self._endpoints: dict[str, Endpoint] = {}
        self._clients: Sequence[Client] = ()
        self._last_completion = 0.0
        self._has_switched = False

    # Whom it moves

    def watch_server(self, endpoint: Endpoint) -> None:
        """Take part in a connection that a client has just begun."""
        self._endpoints[endpoint.migrating.stable_id] = endpoint
        endpoint.on_migration_event = partial(self._happened, endpoint)

    def move(self, host: ServerHost, clients: Sequence[Client]) -> None:
        """Take on a server and its clients."""
        self._host = host
        self._clients = clients
        for client in clients:
            client.on_migration_event = partial(self._happened_to_client, client)

    # What it does

    @property
    def is_ready(self) -> bool:
        """Whether the server may be frozen."""
        return self._sync.phase is Phase.READY

    @property
    def is_completed(self) -> bool:
        """Whether both sides of every connection that lives have migrated."""
        return self._sync.phase is Phase.SERVING and not self.left_to_follow

    def imminent(self, destination: SimulatedAddress) -> None:
        """Tell all connections that the server will be moved.

        Raises:
            RelocationError: They cannot migrate like that.
        """
        host = self._of()
        current, target = _address(host.address), _address(destination)
        connections = {
            name: each.migrating
            for name, each in self._endpoints.items()
            if each.terminated is None
        }
        is_explicit = self._protocol is MigrationProtocol.EXPLICIT
        plan = plan_for_all(
            Situation(self._migration, current, connections),
            self._protocol,
            target if is_explicit else None,
        )
        number = len(self.relocations) + 1
        self.relocations.append(Relocation(number, imminent_at=host.network.now))
        self._has_switched = False
        self._carry_out(self._sync.imminent(plan))

    def abort(self) -> None:
        """Let every connection go on where it is."""
        self._carry_out(self._sync.abort())

    def freeze(self) -> None:
        """Let the server fall silent.

        Raises:
            RelocationError: It is not ready.
        """
        host = self._of()
        self._sync.freeze()
        host.freeze()
        self.relocations[-1] = replace(self.relocations[-1], silent_at=host.network.now)

    def restore(self, destination: SimulatedAddress) -> None:
        """Let the server go on at its destination, and tell its connections."""
        host = self._of()
        self._has_switched = True
        self.relocations[-1] = replace(self.relocations[-1], restored_at=host.network.now)
        self.left_to_follow = {each.name for each in self._clients if each.terminated is None}
        self._sync.reappear()  # those that are told are told by the host
        host.resume(destination)

    def _of(self) -> ServerHost:
        assert self._host is not None, "there is a server to move"
        return self._host

    # What happens on connections

    def _happened(self, endpoint: Endpoint, event: MigrationEvent) -> None:
        name = endpoint.migrating.stable_id
        match event:
            case HandshakeFinished():
                self.connected += 1
            case PoolAddressAcknowledged():
                if not endpoint.migrating.migration_obstacle(self._protocol):
                    self._carry_out(self._sync.pool_acknowledged(name))
            case MigrationReady():
                self._carry_out(self._sync.ready(name))
            case MigrationCompleted():
                self._last_completion = self._of().network.now
                self._carry_out(self._sync.completed(name))
            case MigrationFailed(error=error):
                self._carry_out(self._sync.failed(name, error))
            case ConnectionClosed():
                self._carry_out(self._sync.closed(name))

    def _happened_to_client(self, client: Client, event: MigrationEvent) -> None:
        if not isinstance(event, MigrationCompleted | ConnectionClosed):
            return
        if isinstance(event, MigrationCompleted):
            self._last_completion = client.network.now
        self.left_to_follow.discard(client.name)
        self._settle()

    # What follows from it

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            endpoint = self._endpoints[action.connection_id]
            connection, now = endpoint.migrating, endpoint.network.now
            match action:
                case Prepare(assignment=assignment):
                    connection.imminent_migration(assignment.protocol, assignment.address, now=now)
                case Resume():
                    connection.abort_migration(now=now)
            # At this very instant, but not in the middle of what has led here.
            endpoint.network.call_later(0, endpoint.flush)
        self._settle()

    def _settle(self) -> None:
        if not self.relocations:
            return
        latest = self.relocations[-1]
        if latest.ready_at is None and self.is_ready:
            self.relocations[-1] = replace(self.relocations[-1], ready_at=self._of().network.now)
        if self._has_switched and latest.completed_at is None and self.is_completed:
            self.relocations[-1] = replace(self.relocations[-1], completed_at=self._last_completion)


def _address(network_address: SimulatedAddress) -> Address:
    address = address_from_network(network_address)
    assert address is not None
    return address
