"""A client and a server with a finished handshake, for tests on the simulated network."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aioquic.buffer import encode_uint_var
from aioquic.quic.connection import QuicConnection
from aioquic.quic.logger import QuicLogger
from aioquic.tls import Epoch
from quicferry_lab.simulation import (
    Client,
    Datagram,
    Endpoint,
    Exchange,
    NatKind,
    Network,
    Path,
    Requests,
    Responder,
    ServerEndpoint,
    ServerHost,
    SimulatedAddress,
    Simulation,
    client_configuration,
    server_configuration,
    stock_configuration,
)
from quicferry_lab.simulation.invariants import events_of
from quicferry_lab.simulation.scenario import client_address, server_address

from quicferry.protocol import (
    Address,
    ClientMigration,
    MigrationAddress,
    MigrationProtocol,
    MigrationReady,
    ServerMigration,
)
from quicferry.transport import Connection, address_from_network

HOME = server_address(4, 1)
AWAY = server_address(4, 2)
ELSEWHERE: SimulatedAddress = ("10.0.0.66", 6666)
"""Neither the server's nor announced, but where it might be."""

RTT = 0.018


class Until(enum.Enum):
    """How far the handshake goes before the test."""

    CLIENT_HELLO = "client-hello"
    """The server has answered, and the answer is still on its way."""
    SERVER_HELLO = "server-hello"
    """The client has the keys for Handshake packets, and has not sent its own part yet."""
    QUIET = "quiet"
    """It is confirmed, and nothing is left to be done."""


@dataclass
class Pair:
    simulation: Simulation
    network: Network
    host: ServerHost
    client: Client
    requests: Requests

    @property
    def server(self) -> ServerEndpoint:
        return self.host.endpoints[0]

    def exchange(self, *exchanges: Exchange, limit: float = 30) -> float:
        """Carry out exchanges; return how long they took."""
        start = self.network.now
        self.requests.start([exchanges or (Exchange(100, 100),)])
        self.network.run_until(lambda: self.requests.done, limit=limit, what="exchange")
        return self.network.now - start

    def imminent(
        self, protocol: MigrationProtocol, destination: SimulatedAddress | None = None
    ) -> None:
        """Announce a migration and wait until the server is ready."""
        target = None if destination is None else address(destination)
        known = len(events_of(self.server, MigrationReady))
        self.server.migrating.imminent_migration(protocol, target, now=self.network.now)
        self.server.flush()
        self.network.run_until(
            lambda: len(events_of(self.server, MigrationReady)) > known,
            limit=10,
            what="readiness",
        )

    def relocate(self, destination: SimulatedAddress, *, frozen: float = 0.0) -> None:
        self.host.freeze()
        self.network.run_for(frozen)
        self.host.resume(destination)

    def deliver(self, receiver: Endpoint, data: bytes, source: SimulatedAddress) -> None:
        """Hand a datagram to a connection, as if the network had."""
        receiver.receive(data, source)


def address(network_address: SimulatedAddress) -> Address:
    parsed = address_from_network(network_address)
    assert parsed is not None
    return parsed


def pool(*addresses: SimulatedAddress) -> tuple[MigrationAddress, ...]:
    return tuple(MigrationAddress.of(address(item)) for item in addresses)


@contextmanager
def pair(
    seed: int = 0,
    *,
    server: ServerMigration | None = ServerMigration(),
    client: ClientMigration | None = ClientMigration(),
    path: Path | None = None,
    nat: NatKind | None = None,
    home: SimulatedAddress = HOME,
    server_type: type[QuicConnection] = Connection,
    client_type: type[QuicConnection] = Connection,
    tap: Callable[[Datagram], None] | None = None,
    logger: QuicLogger | None = None,
    until: Until = Until.QUIET,
) -> Iterator[Pair]:
    """Connect a client to a server, and wait."""
    family = 6 if len(home) == 4 else 4
    with Simulation(seed, path=path or Path(delay=RTT / 2)) as simulation:
        if tap is not None:
            simulation.network.taps.append(tap)
        host = simulation.server(
            home,
            server_configuration(server, logger)
            if issubclass(server_type, Connection)
            else stock_configuration(is_client=False),
            connection_type=server_type,
            application=Responder,
        )
        endpoint = simulation.client(
            client_address(family, 1),
            client_configuration(client, logger)
            if issubclass(client_type, Connection)
            else stock_configuration(is_client=True),
            connection_type=client_type,
            nat=nat,
            external=client_address(family, 2),
        )
        requests = Requests(endpoint)
        endpoint.connect(home)
        network = simulation.network
        if until is Until.CLIENT_HELLO:
            network.run_until(lambda: bool(host.endpoints), limit=10, what="the first packet")
        elif until is Until.SERVER_HELLO:
            keys = Epoch.HANDSHAKE
            network.run_until(
                lambda: bool(host.endpoints) and endpoint.connection._cryptos[keys].recv.is_valid(),
                limit=10,
                what="keys",
            )
        else:
            network.run_until(lambda: endpoint.handshake_complete, limit=10, what="handshake")
            network.run_for(1)
        yield Pair(simulation, network, host, endpoint, requests)


def genuine(sender: Endpoint, payload: bytes, *, epoch: Epoch = Epoch.ONE_RTT) -> bytes:
    """A packet with any content, made with the sender's keys and next packet number."""
    connection = sender.connection
    crypto = connection._cryptos[epoch]
    number = connection._packet_number
    connection._packet_number += 1
    payload = payload.ljust(4, b"\0")
    if epoch is Epoch.ONE_RTT:
        header = bytes([0x40 | crypto.key_phase << 2 | 1]) + connection._peer_cid.cid
    else:
        kind = {Epoch.INITIAL: 0, Epoch.ZERO_RTT: 1, Epoch.HANDSHAKE: 2}[epoch]
        header = bytes([0xC0 | kind << 4 | 1]) + (1).to_bytes(4, "big")
        for connection_id in (connection._peer_cid.cid, connection.host_cid):
            header += bytes([len(connection_id)]) + connection_id
        if epoch is Epoch.INITIAL:
            header += encode_uint_var(0)
        header += encode_uint_var(2 + len(payload) + crypto.aead_tag_size)
    header += (number & 0xFFFF).to_bytes(2, "big")
    return crypto.encrypt_packet(header, payload, number)
