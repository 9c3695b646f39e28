"""A thousand connections of one server: what a migration costs in processor time and memory.

Both ends are real connections in this process; datagrams are handed over directly, so that nothing
but the connections is measured. Time on the path is virtual: one round trip of 18 ms.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

from aioquic.buffer import Buffer
from aioquic.quic.packet import pull_quic_header

from quicferry.protocol import (
    Address,
    ClientMigration,
    MigrationProtocol,
    MigrationReady,
    Policy,
    ServerMigration,
)
from quicferry.transport import Connection, NetworkAddress
from quicferry_lab.memory import resident_memory
from quicferry_lab.simulation import client_configuration, server_configuration

from .report import Figure

_CONNECTIONS = 1000
_RTT = 0.018
_SERVER: NetworkAddress = ("192.0.2.1", 4433)
_DESTINATION = Address.parse("192.0.2.2:4433")


class Pair:
    """A client and its server connection with a finished handshake."""

    def __init__(self, number: int) -> None:
        self.now = 0.0
        self.client_address = (f"198.51.{number // 250}.{number % 250 + 1}", 50000)
        self.client = Connection(
            configuration=client_configuration(ClientMigration(policy=Policy.REACTIVE))
        )
        self.client.connect(_SERVER, self.now)
        flight = self.client.datagrams_to_send(self.now)
        header = pull_quic_header(Buffer(data=flight[0][0]), host_cid_length=8)
        self.server = Connection(
            configuration=server_configuration(ServerMigration()),
            original_destination_connection_id=header.destination_cid,
        )
        self.to_server(flight)
        for _ in range(4):
            self.to_client(self.server.datagrams_to_send(self.now))
            self.to_server(self.client.datagrams_to_send(self.now))
        for connection in (self.client, self.server):
            while connection.next_event() is not None:
                pass
            while connection.next_migration_event() is not None:
                pass

    def to_server(self, flight: list[tuple[bytes, NetworkAddress]]) -> None:
        """Let datagrams arrive half a round trip later."""
        self.now += _RTT / 2
        for data, _ in flight:
            self.server.receive_datagram(data, self.client_address, self.now)

    def to_client(self, flight: list[tuple[bytes, NetworkAddress]]) -> None:
        """Let datagrams arrive half a round trip later."""
        self.now += _RTT / 2
        for data, _ in flight:
            self.client.receive_datagram(data, _SERVER, self.now)


def figures() -> Iterator[Figure]:
    """Measure, and yield each figure as it is known."""
    Pair(0)  # loads what is loaded once
    gc.collect()
    memory = resident_memory()
    pairs = [Pair(number) for number in range(_CONNECTIONS)]
    gc.collect()
    per_connection = (resident_memory() - memory) / len(pairs) / 2

    started = [pair.now for pair in pairs]
    start = time.process_time()
    flights = []
    for pair in pairs:
        pair.server.imminent_migration(MigrationProtocol.EXPLICIT, _DESTINATION, now=pair.now)
        flights.append(pair.server.datagrams_to_send(pair.now))
    server_time = time.process_time() - start

    start = time.process_time()
    for pair, flight in zip(pairs, flights, strict=True):
        pair.to_client(flight)
    answers = [pair.client.datagrams_to_send(pair.now) for pair in pairs]
    client_time = time.process_time() - start

    start = time.process_time()
    for pair, answer in zip(pairs, answers, strict=True):
        pair.to_server(answer)
    server_time += time.process_time() - start

    ready = sum(_is_ready(pair.server) for pair in pairs)
    path_time = max(pair.now - then for pair, then in zip(pairs, started, strict=True))
    yield Figure("1,000 connections: ready", ready, "of 1000", at_least=_CONNECTIONS)
    yield Figure("  time on the path (virtual)", path_time * 1000, "ms", at_most=_RTT * 1000)
    yield Figure("  imminent to ready, processor time of the server", server_time * 1000, "ms")
    yield Figure("  the same, of all clients together", client_time * 1000, "ms")
    yield Figure("  memory of one connection", per_connection / 1024, "KiB", note="resident")


def _is_ready(server: Connection) -> bool:
    while (event := server.next_migration_event()) is not None:
        if isinstance(event, MigrationReady):
            return True
    return False
