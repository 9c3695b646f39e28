"""One server, many clients of every kind, moved together."""

from __future__ import annotations

from aioquic.quic.connection import QuicConnection
from quicferry_lab.simulation import (
    Answer,
    Client,
    Exchange,
    NatKind,
    Path,
    Requests,
    Responder,
    ServerEndpoint,
    Simulation,
    client_configuration,
    server_configuration,
    stock_configuration,
)
from quicferry_lab.simulation.invariants import disagreement, events_of
from quicferry_lab.simulation.scenario import client_address, server_address

from quicferry.protocol import (
    ClientMigration,
    MigrationAddress,
    MigrationCompleted,
    MigrationProtocol,
    MigrationReady,
    Policy,
    ServerMigration,
)
from quicferry.transport import Connection, address_from_network

HOME, AWAY = server_address(4, 1), server_address(4, 2)
PROTOCOLS = list(MigrationProtocol)
CLIENTS = 24


def connect(simulation: Simulation, number: int) -> Client:
    """Every protocol, every policy, and some NATs; each eighth client is stock aioquic."""
    stock = number % 8 == 7
    protocol = PROTOCOLS[number % 4]
    configuration = (
        stock_configuration(is_client=True)
        if stock
        else client_configuration(
            ClientMigration(protocols=protocol, policy=list(Policy)[number % 3], seed=number)
        )
    )
    client = simulation.client(
        client_address(4, 2 * number + 1),
        configuration,
        connection_type=QuicConnection if stock else Connection,
        nat=NatKind.FULL_CONE if number % 5 == 0 else None,
        external=client_address(4, 2 * number + 2),
    )
    client.connect(HOME)
    return client


def test_relocation_with_many_clients() -> None:
    away = address_from_network(AWAY)
    assert away is not None
    with Simulation(1, path=Path(delay=0.009, loss=0.02, reordering=0.02)) as simulation:
        network = simulation.network
        host = simulation.server(
            HOME,
            server_configuration(ServerMigration(pool=(MigrationAddress.of(away),))),
            application=Responder,
        )
        clients = [connect(simulation, number) for number in range(CLIENTS)]
        requests = [Requests(client) for client in clients]
        network.run_for(2)
        assert all(client.handshake_complete for client in clients)
        for each in requests:
            each.start([[Exchange(10_000, 10_000, answer=Answer.AT_ONCE)] * 3])
        network.run_for(0.05)

        movers: list[ServerEndpoint] = []
        for endpoint in host.endpoints:
            protocol = endpoint.migrating.negotiated
            if protocol:
                movers.append(endpoint)
                explicit = protocol is MigrationProtocol.EXPLICIT
                target = away if explicit else None
                endpoint.migrating.imminent_migration(protocol, target, now=network.now)
                endpoint.flush()
        network.run_until(
            lambda: all(events_of(endpoint, MigrationReady) for endpoint in movers),
            limit=5,
            what="readiness",
        )
        host.freeze()
        network.run_for(0.2)
        host.resume(AWAY)
        stock = [client for client in clients if not isinstance(client.connection, Connection)]
        network.run_until(
            lambda: all(
                each.done or client in stock for each, client in zip(requests, clients, strict=True)
            ),
            limit=30,
            what="every exchange",
        )
        network.run_for(8)  # those with nothing to send are called after five

        assert len(movers) == CLIENTS - len(stock)
        assert len(stock) == CLIENTS // 8
        by_id = {endpoint.migrating.stable_id: endpoint for endpoint in movers}
        assert len(by_id) == len(movers)
        for client in clients:
            if client in stock:
                assert client.terminated is not None
                assert client.terminated.reason_phrase == "server migrated"
                continue
            assert len(events_of(client, MigrationCompleted)) == 1
            server = next(
                each for each in movers if each.connection.get_peer_address() == client.external
            )
            assert disagreement(client, server) is None
            assert len(events_of(server, MigrationCompleted)) == 1
