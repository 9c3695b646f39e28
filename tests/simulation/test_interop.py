"""With peers that do not know the extension: plain QUIC, and a clear "not negotiated"."""

from __future__ import annotations

import pytest
from aioquic.quic.connection import QuicConnection
from quicferry_lab.simulation import Answer, Datagram, Exchange, Path
from quicferry_lab.simulation.invariants import events_of
from simulated_pair import AWAY, address, pair

from quicferry.protocol import (
    ClientMigration,
    HandshakeFinished,
    MigrationError,
    MigrationErrorCode,
    MigrationFailed,
    MigrationProtocol,
    ServerMigration,
)
from quicferry.protocol.suite import SUITE_PARAMETER_ID
from quicferry.transport import Connection

LOSSY = Path(delay=0.009, loss=0.03, reordering=0.02, duplication=0.02)
EXCHANGES = (Exchange(20_000, 20_000, answer=Answer.AT_ONCE), Exchange(10, 5_000), Exchange(0, 0))


def test_stock_client_and_our_server() -> None:
    with pair(1, client_type=QuicConnection, path=LOSSY) as it:
        it.exchange(*EXCHANGES)
        assert it.server.migrating.negotiated is None
        assert [event.protocols for event in events_of(it.server, HandshakeFinished)] == [None]
        obstacle = it.server.migrating.migration_obstacle(MigrationProtocol.EXPLICIT, address(AWAY))
        assert obstacle is MigrationErrorCode.PROTOCOL_NOT_NEGOTIATED
        # Asking for what is impossible costs nothing; insisting costs the connection.
        it.exchange()
        with pytest.raises(MigrationError, match="PROTOCOL_NOT_NEGOTIATED"):
            it.server.migrating.imminent_migration(
                MigrationProtocol.EXPLICIT, address(AWAY), now=it.network.now
            )
        it.server.flush()
        assert events_of(it.server, MigrationFailed) == [
            MigrationFailed(MigrationErrorCode.PROTOCOL_NOT_NEGOTIATED)
        ]
        it.network.run_until(
            lambda: it.client.terminated is not None, limit=1, what="the connection's end"
        )


def test_our_client_and_stock_server() -> None:
    with pair(2, server_type=QuicConnection, path=LOSSY) as it:
        it.exchange(*EXCHANGES)
        assert it.client.migrating.negotiated is None
        assert it.client.migration_events == []
        assert it.client.terminated is None


def test_server_with_migration_off() -> None:
    with pair(3, server=None) as it:
        it.exchange(*EXCHANGES)
        assert it.client.migrating.negotiated is None
        assert it.server.migrating.negotiated is None
        obstacle = it.server.migrating.migration_obstacle(MigrationProtocol.SYMMETRIC, None)
        assert obstacle is MigrationErrorCode.MIGRATION_DISABLED


def test_client_with_migration_off() -> None:
    with pair(4, client=None) as it:
        it.exchange(*EXCHANGES)
        assert it.client.migrating.negotiated is None
        assert it.server.migrating.negotiated is None


def test_nothing_in_common() -> None:
    with pair(
        5,
        client=ClientMigration(protocols=MigrationProtocol.EXPLICIT),
        server=ServerMigration(protocols=MigrationProtocol.SYMMETRIC),
    ) as it:
        it.exchange(*EXCHANGES)
        assert it.client.migrating.negotiated == MigrationProtocol(0)
        assert it.server.migrating.negotiated == MigrationProtocol(0)
        for protocol in MigrationProtocol:
            assert (
                it.server.migrating.migration_obstacle(protocol, None)
                is MigrationErrorCode.PROTOCOL_NOT_NEGOTIATED
            )


@pytest.mark.parametrize("seed", range(3))
def test_switched_off_it_is_stock_aioquic_to_the_byte(seed: int) -> None:
    """The same seed gives the same bytes at the same times, whichever class is used."""

    def wire(connection_type: type[QuicConnection]) -> list[Datagram]:
        log: list[Datagram] = []
        with pair(
            seed,
            server=None,
            client=None,
            path=LOSSY,
            client_type=connection_type,
            server_type=connection_type,
            tap=log.append,
        ) as it:
            it.exchange(*EXCHANGES)
            it.client.migrate(("10.1.0.77", 777))
            it.exchange(*EXCHANGES)
        return log

    assert wire(Connection) == wire(QuicConnection)


def test_migration_on_costs_only_the_transport_parameter() -> None:
    def handshake_bytes(client: ClientMigration | None) -> int:
        with pair(6, client=client) as it:
            return sum(
                len(packet.payload)
                for packet in it.simulation.observer.packets
                if not packet.is_1rtt and packet.sender.startswith("server")
            )

    # id 0x64 takes two bytes, the length and the value one each.
    assert SUITE_PARAMETER_ID == 0x64
    assert handshake_bytes(ClientMigration()) - handshake_bytes(None) == 4
