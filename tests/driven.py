"""Drives the state machines as a transport would, for tests of what they decide."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from quicferry.protocol import (
    ALL_PROTOCOLS,
    Address,
    ClientMachine,
    ClientMigration,
    ConnectionErrorCode,
    MigrationAddress,
    MigrationError,
    MigrationErrorCode,
    MigrationEvent,
    MigrationFrame,
    MigrationProtocol,
    PeerError,
    Policy,
    PoolMigrationAddressFrame,
    Scheduler,
    ServerMachine,
    ServerMigratedFrame,
    ServerMigration,
    ServerMigrationFrame,
)
from quicferry.protocol import client as client_module
from quicferry.protocol import server as server_module

HOME, AWAY, THIRD, FOURTH, ELSEWHERE = (Address.parse(f"192.0.2.{n}:4433") for n in range(1, 6))
HOME6, AWAY6 = (Address.parse(f"[2001:db8::{n}]:4433") for n in range(1, 3))

EXPLICIT = MigrationProtocol.EXPLICIT
POOL = MigrationProtocol.POOL_OF_ADDRESSES
SYMMETRIC = MigrationProtocol.SYMMETRIC
SYNCHRONIZED = MigrationProtocol.SYNCHRONIZED_SYMMETRIC

MIGRATED = ServerMigratedFrame()
UNKNOWN = ServerMigrationFrame(None)


def announced(*addresses: Address) -> ServerMigrationFrame:
    return ServerMigrationFrame(MigrationAddress.of(*addresses))


def pooled(*addresses: Address) -> PoolMigrationAddressFrame:
    return PoolMigrationAddressFrame(MigrationAddress.of(*addresses))


class DrivenClient:
    """A client's machine, whose packets are numbered as they come, and the traces it leaves.

    Attributes:
        machine: The machine.
        events: What the application was told.
        actions: Everything that the transport was told to do, apart from events.
    """

    def __init__(
        self,
        negotiated: MigrationProtocol = ALL_PROTOCOLS,
        *,
        policy: Policy = Policy.REACTIVE,
        scheduler: Scheduler = Scheduler.CYCLIC,
        pool: Iterable[Address] = (),
        home: Address = HOME,
        seed: int = 0,
        knows_withdrawals: bool = True,
    ) -> None:
        options = ClientMigration(policy=policy, scheduler=scheduler, seed=seed)
        self.machine = ClientMachine(options, negotiated, home, knows_withdrawals=knows_withdrawals)
        self.events: list[MigrationEvent] = []
        self.actions: list[client_module.Action] = []
        self.number = 0
        for address in pool:
            self.receive(pooled(address))

    @property
    def state(self) -> str:
        return self.machine.state.name

    @property
    def pool(self) -> tuple[Address, ...]:
        return self.machine.pool

    def receive(
        self, *frames: MigrationFrame, source: Address | None = None, number: int | None = None
    ) -> list[client_module.Action]:
        """A non-probing packet arrives: the next one, or a late one, which has a number."""
        is_newest = number is None
        if number is None:
            self.number = number = self.number + 1
        source = source or self.machine.home
        before = len(self.actions)
        for frame in frames:
            self._note(
                self.machine.frame_received(
                    frame, source=source, packet_number=number, is_newest=is_newest
                )
            )
        if is_newest:
            self._note(self.machine.packet_received(source, number))
        return self.actions[before:]

    def timeout(self) -> list[client_module.Action]:
        return self._note(self.machine.timeout())

    def probe_due(self) -> list[client_module.Action]:
        return self._note(self.machine.probe_due())

    def answered(
        self, address: Address, *, source: Address | None = None
    ) -> list[client_module.Action]:
        """A PATH_RESPONSE arrives for a challenge that was sent to `address`."""
        self.number += 1
        return self._note(self.machine.path_answered(address, source or address, self.number))

    def validation_failed(self) -> list[client_module.Action]:
        return self._note(self.machine.validation_failed())

    def migrate(self, protocol: MigrationProtocol, to: Address) -> None:
        """Live through a whole migration."""
        if protocol is EXPLICIT:
            self.receive(announced(to))
        elif protocol is SYNCHRONIZED:
            self.receive(UNKNOWN)
        self.receive(source=to)
        self.answered(to)
        assert self.state == "IDLE"
        assert self.machine.home == to

    def _note(self, actions: list[client_module.Action]) -> list[client_module.Action]:
        for action in actions:
            if isinstance(action, client_module.Emit):
                self.events.append(action.event)
            else:
                self.actions.append(action)
        return [action for action in actions if not isinstance(action, client_module.Emit)]


def violates(client: DrivenClient, *frames: MigrationFrame, source: Address | None = None) -> None:
    """Assert that frames are a PROTOCOL_VIOLATION, and that nothing is told or done for them."""
    events, actions = list(client.events), list(client.actions)
    with pytest.raises(PeerError) as caught:
        client.receive(*frames, source=source)
    assert caught.value.code is ConnectionErrorCode.PROTOCOL_VIOLATION
    assert int(caught.value.code) == 0xA
    assert caught.value.reason
    assert (client.events, client.actions) == (events, actions)


def ignores(
    client: DrivenClient,
    *frames: MigrationFrame,
    source: Address | None = None,
    number: int | None = None,
) -> None:
    """Assert that a packet changes nothing: no event, no action, no other state."""
    before = (client.state, list(client.events), client.pool, client.machine.server_address)
    assert client.receive(*frames, source=source, number=number) == []
    after = (client.state, client.events, client.pool, client.machine.server_address)
    assert after == before


class DrivenServer:
    """A server's machine after the handshake, and the traces it leaves."""

    def __init__(
        self,
        negotiated: MigrationProtocol | None = ALL_PROTOCOLS,
        *,
        options: ServerMigration = ServerMigration(),
        family: int = 4,
        acknowledge_pool: bool = True,
        connection_ids: bool = True,
        can_withdraw: bool = False,
    ) -> None:
        self.machine = ServerMachine(options, negotiated, family, can_withdraw=can_withdraw)
        self.events: list[MigrationEvent] = []
        self.actions: list[server_module.Action] = []
        self._note(self.machine.handshake_finished())
        self.connection_ids_available(for_both=connection_ids)
        if acknowledge_pool:
            for frame in self.frames:
                self.acknowledged(frame)

    @property
    def state(self) -> str:
        return self.machine.state.name

    @property
    def frames(self) -> list[MigrationFrame]:
        """The frames that were to be sent, in order."""
        return [action.frame for action in self.actions if isinstance(action, server_module.Send)]

    def imminent(
        self,
        protocol: MigrationProtocol,
        address: Address | MigrationAddress | None = None,
        *,
        current: Address | None = HOME,
    ) -> list[server_module.Action]:
        target = MigrationAddress.of(address) if isinstance(address, Address) else address
        return self._note(self.machine.imminent(protocol, target, current))

    def switch(self, to: Address | None = AWAY) -> list[server_module.Action]:
        return self._note(self.machine.network_switch(to))

    def abort(self, *, current: Address | None = HOME) -> list[server_module.Action]:
        return self._note(self.machine.abort(current))

    def acknowledged(self, frame: MigrationFrame) -> list[server_module.Action]:
        return self._note(self.machine.frame_acknowledged(self._sent(frame)))

    def lost(self, frame: MigrationFrame) -> list[server_module.Action]:
        return self._note(self.machine.frame_lost(self._sent(frame)))

    def connection_ids_available(self, *, for_both: bool) -> list[server_module.Action]:
        return self._note(self.machine.connection_ids_available(for_both=for_both))

    def _sent(self, frame: MigrationFrame) -> MigrationFrame:
        """The frame itself if it was sent, otherwise the last one sent that says the same."""
        if any(sent is frame for sent in self.frames):
            return frame
        return next((sent for sent in reversed(self.frames) if sent == frame), frame)

    def response_acknowledged(self) -> list[server_module.Action]:
        return self._note(self.machine.path_response_acknowledged())

    def _note(self, actions: list[server_module.Action]) -> list[server_module.Action]:
        for action in actions:
            if isinstance(action, server_module.Emit):
                self.events.append(action.event)
            else:
                self.actions.append(action)
        return [action for action in actions if not isinstance(action, server_module.Emit)]


def fails(
    server: DrivenServer,
    code: MigrationErrorCode,
    protocol: MigrationProtocol,
    address: Address | MigrationAddress | None = None,
    *,
    current: Address | None = HOME,
) -> None:
    """Assert that `imminent` fails, that `obstacle` says so before, and that nothing changes."""
    target = MigrationAddress.of(address) if isinstance(address, Address) else address
    before = (server.state, list(server.events), list(server.actions))
    assert server.machine.obstacle(protocol, target, current) is code
    with pytest.raises(MigrationError) as caught:
        server.imminent(protocol, address, current=current)
    assert caught.value.code is code
    assert code.name in str(caught.value)
    assert (server.state, server.events, server.actions) == before
