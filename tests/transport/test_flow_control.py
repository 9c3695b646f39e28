"""Application-paced flow control: what is not sent yet, and what the peer may send."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from aioquic.buffer import encode_uint_var
from aioquic.quic.events import QuicEvent, StreamDataReceived
from quicferry_lab.simulation import (
    Client,
    Endpoint,
    Path,
    ServerEndpoint,
    Simulation,
    client_configuration,
    server_configuration,
)
from quicferry_lab.simulation.scenario import client_address
from simulated_pair import AWAY, HOME, RTT, genuine, pair
from support import SYMMETRIC, named

from quicferry.protocol import ClientMigration, ServerMigration

WINDOW = 20_000


@dataclass
class Reader:
    """An application that reads when it is told to."""

    endpoint: Endpoint
    received: dict[int, int] = field(default_factory=dict)
    paced: bool = True

    def handle_event(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            self.received[event.stream_id] = self.received.get(event.stream_id, 0) + len(event.data)
            if self.paced:
                assert not self.endpoint.migrating.stream_consumed(event.stream_id, 0)

    def read(self, stream_id: int, offset: int) -> bool:
        tell = self.endpoint.migrating.stream_consumed(stream_id, offset)
        if tell:
            self.endpoint.flush()
        return tell


@dataclass
class Upload:
    """A client that has a lot to send to a server with a small window."""

    simulation: Simulation
    client: Client
    server: ServerEndpoint
    reader: Reader

    def run(self) -> int:
        """Let it come to a standstill; return how much has arrived on stream 0."""
        self.simulation.network.run_for(2)
        return self.reader.received.get(0, 0)


@contextmanager
def upload(
    size: int, *, paced: bool = True, migration: ServerMigration | None = None
) -> Iterator[Upload]:
    with Simulation(path=Path(delay=RTT / 2)) as simulation:
        readers: list[Reader] = []

        def application(endpoint: Endpoint) -> Reader:
            readers.append(Reader(endpoint, paced=paced))
            return readers[-1]

        configuration = server_configuration(migration)
        configuration.max_stream_data = WINDOW
        host = simulation.server(HOME, configuration, application=application)
        client = simulation.client(client_address(4, 1), client_configuration(ClientMigration()))
        client.connect(HOME)
        simulation.network.run_for(1)
        client.connection.send_stream_data(0, bytes(size), end_stream=True)
        client.flush()
        yield Upload(simulation, client, host.endpoints[0], readers[0])


def test_backlog_is_what_was_never_sent() -> None:
    with pair() as it:
        it.server.application = Reader(it.server, paced=False)
        client = it.client.migrating
        assert client.stream_backlog(0) == 0
        client.send_stream_data(0, bytes(100_000))
        assert client.stream_backlog(0) == 100_000
        it.client.flush()
        window = client._loss.congestion_window
        assert 100_000 - window <= client.stream_backlog(0) < 100_000
        backlog = client.stream_backlog(0)
        it.network.run_for(RTT)
        assert client.stream_backlog(0) < backlog
        it.network.run_for(1)
        assert client.stream_backlog(0) == 0


def test_backlog_counts_nothing_that_is_only_sent_again() -> None:
    with pair() as it:
        it.host.freeze()
        client = it.client.migrating
        client.send_stream_data(0, bytes(1_000))
        it.client.flush()
        assert client.stream_backlog(0) == 0
        it.network.run_for(1)
        assert client.stream_backlog(0) == 0


def test_backlog_of_a_stream_that_is_over() -> None:
    with pair() as it:
        it.server.application = Reader(it.server, paced=False)
        client = it.client.migrating
        client.send_stream_data(0, bytes(200_000))
        client.reset_stream(0, 7)
        assert client.stream_backlog(0) == 0
        client.send_stream_data(4, bytes(10), end_stream=True)
        it.client.flush()
        it.network.run_for(1)
        assert client.stream_backlog(0) == client.stream_backlog(4) == 0
        assert client.stream_backlog(400) == 0


def test_without_a_word_the_limit_grows_as_data_arrives() -> None:
    with upload(10 * WINDOW, paced=False) as it:
        assert it.run() == 10 * WINDOW


def test_the_peer_sends_one_window_more_than_was_read() -> None:
    with upload(10 * WINDOW) as it:
        assert it.run() == WINDOW
        for read in range(WINDOW, 10 * WINDOW, WINDOW):
            assert it.reader.read(0, read)
            assert it.run() == read + WINDOW
        assert it.server.terminated is None


def test_the_peer_is_told_by_halves_of_a_window() -> None:
    with upload(10 * WINDOW) as it:
        it.run()
        assert not it.reader.read(0, 1)
        assert not it.reader.read(0, WINDOW // 2 - 1)
        assert it.run() == WINDOW
        assert it.reader.read(0, WINDOW // 2)
        assert it.run() == WINDOW + WINDOW // 2


def test_reading_does_not_go_backwards() -> None:
    with upload(10 * WINDOW) as it:
        it.run()
        it.reader.read(0, WINDOW)
        it.reader.read(0, 10)
        assert it.run() == 2 * WINDOW


@pytest.mark.parametrize("migration", [None, ServerMigration()], ids=["off", "on"])
def test_everything_arrives_in_the_end(migration: ServerMigration | None) -> None:
    with upload(10 * WINDOW, migration=migration) as it:
        while (received := it.run()) < 10 * WINDOW:
            it.reader.read(0, received)
        assert it.client.migrating.stream_backlog(0) == 0


def test_unknown_streams() -> None:
    with pair() as it:
        assert it.server.migrating.stream_consumed(400, 10) is False


def test_a_limit_is_kept_through_a_migration() -> None:
    """And the news of a higher one are not lost with the old path."""
    with upload(10 * WINDOW, migration=ServerMigration()) as it:
        assert it.run() == WINDOW
        server, network = it.server, it.simulation.network
        server.migrating.imminent_migration(SYMMETRIC, now=network.now)
        server.flush()
        host = server._host
        host.freeze()
        assert server.migrating.stream_consumed(0, WINDOW)
        host.resume(AWAY)
        assert it.run() == 2 * WINDOW
        assert named(server)[-1] == "MigrationCompleted"


def part(stream_id: int, offset: int, data: bytes) -> bytes:
    """A STREAM frame with an offset and a length (RFC 9000 19.8)."""
    return b"\x0e" + b"".join(map(encode_uint_var, (stream_id, offset, len(data)))) + data


def test_a_stream_of_single_bytes_with_gaps_between_them_ends_the_connection() -> None:
    """To look for the place of each takes time that grows with the number of those before."""
    with pair() as it:
        frames = [part(0, 2 * n + 1, b"x") for n in range(2000)]
        for start in range(0, len(frames), 100):
            it.deliver(
                it.server,
                genuine(it.client, b"".join(frames[start : start + 100])),
                it.client.external,
            )
        ranges = it.server.connection._streams[0].receiver._ranges
        assert len(ranges) <= 257
        reason = it.server.migrating.close_reason
        assert reason is not None
        assert "gaps" in reason.reason_phrase


def test_what_a_network_makes_of_a_stream_is_put_together() -> None:
    with pair() as it:
        it.server.application = reader = Reader(it.server, paced=False)
        order = [*range(1, 401, 2), *range(0, 401, 2)]
        for number in order:
            packet = genuine(it.client, part(0, 1000 * number, bytes([number % 256]) * 1000))
            it.deliver(it.server, packet, it.client.external)
        assert it.server.migrating.close_reason is None
        assert reader.received == {0: 401_000}
