"""What the tests of the protocol and of the transport share: frames as bytes, and the wire."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from aioquic._buffer import Buffer
from aioquic.quic.crypto import CryptoContext
from aioquic.quic.packet import QuicFrameType
from quicferry_lab.simulation import (
    Answer,
    Client,
    Datagram,
    Endpoint,
    Exchange,
    Network,
    Path,
    Responder,
    ServerEndpoint,
    SimulatedAddress,
    Simulation,
    client_configuration,
    server_configuration,
)
from quicferry_lab.simulation.scenario import client_address
from simulated_pair import AWAY, HOME, RTT, Pair, genuine, pair, pool

from quicferry.protocol import (
    ALL_PROTOCOLS,
    ClientMigration,
    FrameType,
    MigrationAddress,
    MigrationEvent,
    MigrationProtocol,
    Policy,
    Scheduler,
    ServerMigration,
)
from quicferry.transport import Connection, address_from_network

EXPLICIT = MigrationProtocol.EXPLICIT
POOL = MigrationProtocol.POOL_OF_ADDRESSES
SYMMETRIC = MigrationProtocol.SYMMETRIC
SYNCHRONIZED = MigrationProtocol.SYNCHRONIZED_SYMMETRIC

THIRD: SimulatedAddress = ("10.0.0.3", 4433)
"""Where a server may go as well."""

SERVER_MIGRATED = b"\x33"
PING = b"\x01"


def server_migration(target: SimulatedAddress | None) -> bytes:
    """A SERVER_MIGRATION frame; None: address unknown."""
    return b"\x32" + wire_address(target)


def pool_address(target: SimulatedAddress | None) -> bytes:
    """A POOL_MIGRATION_ADDRESS frame."""
    return b"\x34" + wire_address(target)


def wire_address(target: SimulatedAddress | None) -> bytes:
    if target is None:
        return bytes(24)
    address = address_from_network(target)
    assert address is not None
    return MigrationAddress.of(address).encode()


class OlderClient(Connection):
    """A client that does not know withdrawals, as the thesis's does not."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.knows_withdrawals = False


@dataclass(frozen=True)
class Sent:
    """A datagram with one 1-RTT packet, as it was sent, and the frames in it."""

    time: float
    source: SimulatedAddress
    destination: SimulatedAddress
    size: int
    number: int
    frames: tuple[tuple[int, bytes], ...]

    @property
    def types(self) -> set[int]:
        return {kind for kind, _ in self.frames}

    def __contains__(self, frame_type: int) -> bool:
        return frame_type in self.types


@dataclass
class Wire:
    """Sees through the encryption of every 1-RTT packet.

    Attributes:
        sent: Every datagram with a 1-RTT packet since the last `clear`, in the order of sending.
    """

    sent: list[Sent] = field(default_factory=list)
    _plain: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)

    def tap(self, datagram: Datagram) -> None:
        packet = self._plain.get(datagram.data)
        if packet is not None:
            number, payload = packet
            self.sent.append(
                Sent(
                    datagram.time,
                    datagram.source,
                    datagram.destination,
                    len(datagram.data),
                    number,
                    tuple(parse_frames(payload)),
                )
            )

    def clear(self) -> None:
        self.sent.clear()

    def read(self, data: bytes) -> set[int]:
        """The types of the frames in a datagram; empty if it is no single 1-RTT packet."""
        number_and_payload = self._plain.get(data)
        if number_and_payload is None:
            return set()
        return {kind for kind, _ in parse_frames(number_and_payload[1])}

    def select(
        self,
        frame_type: int | None = None,
        *,
        source: SimulatedAddress | None = None,
        destination: SimulatedAddress | None = None,
    ) -> list[Sent]:
        """Datagrams with such a frame, from or to an address."""
        return [
            sent
            for sent in self.sent
            if (frame_type is None or frame_type in sent)
            and source in (None, sent.source)
            and destination in (None, sent.destination)
        ]

    @contextmanager
    def watching(self) -> Iterator[None]:
        encrypt_packet = CryptoContext.encrypt_packet

        def watched(crypto: CryptoContext, header: bytes, payload: bytes, number: int) -> bytes:
            data = encrypt_packet(crypto, header, payload, number)
            if not header[0] & 0x80:
                self._plain[data] = number, payload
            return data

        with patch.object(CryptoContext, "encrypt_packet", watched):
            yield


@contextmanager
def wired_pair(seed: int = 0, **options: Any) -> Iterator[tuple[Pair, Wire]]:
    """A connected pair, and the wire between the two since the handshake has settled."""
    wire = Wire()
    with wire.watching(), pair(seed, tap=wire.tap, **options) as it:
        wire.clear()
        yield it, wire


@contextmanager
def handshake_under_way(
    options: ServerMigration,
) -> Iterator[tuple[Simulation, Client, ServerEndpoint, Wire]]:
    """A server that has got its client's first flight, and has not answered long ago."""
    wire = Wire()
    with wire.watching(), Simulation(path=Path(delay=RTT / 2)) as simulation:
        simulation.network.taps.append(wire.tap)
        host = simulation.server(HOME, server_configuration(options), application=Responder)
        client = simulation.client(client_address(4, 1), client_configuration(ClientMigration()))
        client.connect(HOME)
        simulation.network.run_until(lambda: bool(host.endpoints), limit=1, what="a connection")
        yield simulation, client, host.endpoints[0], wire


def lose(network: Network, when: Callable[[Datagram], bool], count: int = 1) -> None:
    """Let the network lose the next `count` datagrams for which `when` holds."""
    left = [count]

    def allows(datagram: Datagram) -> bool:
        if left[0] and when(datagram):
            left[0] -= 1
            return False
        return True

    network.filters.append(allows)


def error_code(endpoint: Endpoint) -> int | None:
    """The code that the connection ended with, as its application sees it; None: it has not."""
    return None if endpoint.terminated is None else endpoint.terminated.error_code


def named(endpoint: Endpoint) -> list[str]:
    """The names of an endpoint's migration events so far."""
    return [type(event).__name__ for _, event in endpoint.migration_events]


def migration_events(endpoint: Endpoint) -> list[MigrationEvent]:
    return [event for _, event in endpoint.migration_events]


def parse_frames(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and body of each frame of a packet; padding is left out."""
    buffer = Buffer(data=payload)
    while not buffer.eof():
        kind = buffer.pull_uint_var()
        start = buffer.tell()
        _skip_body(kind, buffer)
        if kind != QuicFrameType.PADDING:
            yield kind, payload[start : buffer.tell()]


_VARINTS = {
    QuicFrameType.RESET_STREAM: 3,
    QuicFrameType.STOP_SENDING: 2,
    QuicFrameType.MAX_DATA: 1,
    QuicFrameType.MAX_STREAM_DATA: 2,
    QuicFrameType.MAX_STREAMS_BIDI: 1,
    QuicFrameType.MAX_STREAMS_UNI: 1,
    QuicFrameType.DATA_BLOCKED: 1,
    QuicFrameType.STREAM_DATA_BLOCKED: 2,
    QuicFrameType.STREAMS_BLOCKED_BIDI: 1,
    QuicFrameType.STREAMS_BLOCKED_UNI: 1,
    QuicFrameType.RETIRE_CONNECTION_ID: 1,
}
_FIXED: dict[int, int] = {
    QuicFrameType.PADDING: 0,
    QuicFrameType.PING: 0,
    QuicFrameType.PATH_CHALLENGE: 8,
    QuicFrameType.PATH_RESPONSE: 8,
    QuicFrameType.HANDSHAKE_DONE: 0,
    FrameType.SERVER_MIGRATION: 24,
    FrameType.SERVER_MIGRATED: 0,
    FrameType.POOL_MIGRATION_ADDRESS: 24,
}


def _skip_body(kind: int, buffer: Buffer) -> None:
    if kind in _FIXED:
        buffer.pull_bytes(_FIXED[kind])
    elif kind in _VARINTS:
        for _ in range(_VARINTS[QuicFrameType(kind)]):
            buffer.pull_uint_var()
    elif 0x08 <= kind <= 0x0F:  # STREAM
        for _ in range(2 if kind & 4 else 1):
            buffer.pull_uint_var()
        buffer.pull_bytes(buffer.pull_uint_var() if kind & 2 else buffer.capacity - buffer.tell())
    elif kind == QuicFrameType.ACK:
        buffer.pull_uint_var()
        buffer.pull_uint_var()
        ranges = buffer.pull_uint_var()
        for _ in range(1 + 2 * ranges):
            buffer.pull_uint_var()
    elif kind in (QuicFrameType.CRYPTO, QuicFrameType.NEW_TOKEN):
        if kind == QuicFrameType.CRYPTO:
            buffer.pull_uint_var()
        buffer.pull_bytes(buffer.pull_uint_var())
    elif kind == QuicFrameType.NEW_CONNECTION_ID:
        buffer.pull_uint_var()
        buffer.pull_uint_var()
        buffer.pull_bytes(buffer.pull_uint8() + 16)
    elif kind in (QuicFrameType.TRANSPORT_CLOSE, QuicFrameType.APPLICATION_CLOSE):
        buffer.pull_uint_var()
        if kind == QuicFrameType.TRANSPORT_CLOSE:
            buffer.pull_uint_var()
        buffer.pull_bytes(buffer.pull_uint_var())
    else:
        raise AssertionError(f"frame type {kind:#x} is not known here")


# Whole migrations

TRANSFER = Exchange(20_000, 20_000, answer=Answer.AT_ONCE)


def assert_works(it: Pair, at: SimulatedAddress) -> None:
    """The connection lives, and both ends know where the server is."""
    it.exchange(TRANSFER)
    it.network.run_for(0.5)
    assert it.client.connection.get_peer_address() == at
    assert it.server.migrating.server_address == at
    assert it.client.terminated is None
    assert it.server.terminated is None


def server_for(protocol: MigrationProtocol, *destinations: SimulatedAddress) -> ServerMigration:
    return ServerMigration(pool=pool(*destinations) if protocol is POOL else ())


def migrate(it: Pair, protocol: MigrationProtocol, to: SimulatedAddress) -> None:
    it.imminent(protocol, to if protocol is EXPLICIT else None)
    it.relocate(to, frozen=0.02)
    assert_works(it, to)


# States of the client's machine, and what a pair must be like to come to them

_POLICIES = {"challenging": Policy.EAGER}
_SCHEDULERS = {"pool_challenging": Scheduler.PARALLEL}


@contextmanager
def in_state(
    state: str,
    seed: int = 0,
    *,
    protocols: MigrationProtocol = ALL_PROTOCOLS,
    home: SimulatedAddress = HOME,
    away: SimulatedAddress = AWAY,
) -> Iterator[tuple[Pair, Wire]]:
    """A pair whose client has come to a state in the ordinary way; "pool": idle, with a pool."""
    client = ClientMigration(
        protocols=protocols,
        policy=_POLICIES.get(state, Policy.REACTIVE),
        scheduler=_SCHEDULERS.get(state, Scheduler.CYCLIC),
    )
    server = ServerMigration(pool=pool(away) if "pool" in state else ())
    with wired_pair(seed, client=client, server=server, home=home) as (it, wire):
        if state in ("announced", "challenging", "probing", "validating_explicit"):
            it.imminent(EXPLICIT, away)
        elif state in ("awaiting", "validating_synchronized"):
            it.imminent(SYNCHRONIZED)
        elif state == "validating_symmetric":
            it.imminent(SYMMETRIC)
        elif state == "validating_pool":
            it.imminent(POOL)
        it.network.run_for(0.1)
        if state.startswith("validating"):
            silence(it, away)
            it.relocate(away)
            ping(it.server)
        elif state in ("probing", "pool_probing", "pool_challenging"):
            it.host.freeze()
            ping(it.client)
        wait_for_state(it, "idle" if state == "pool" else state)
        wire.clear()
        yield it, wire


def wait_for_state(it: Pair, state: str, *, limit: float = 2) -> None:
    """Run until the client's machine is in a state."""
    it.network.run_until(
        lambda: it.client.migrating.migration_state == state, limit=limit, what=state
    )


def silence(it: Pair, destination: SimulatedAddress) -> None:
    """From now on nothing reaches an address."""
    it.network.filters.append(lambda datagram: datagram.destination != destination)


def ping(endpoint: Endpoint) -> None:
    endpoint.connection.send_ping(0)
    endpoint.flush()


def inject(it: Pair, payload: bytes, source: SimulatedAddress | None = None) -> None:
    """Let the client receive frames in a genuine packet, and what comes of it happen."""
    at_home = source in (None, it.host.address)
    data = genuine(it.server, payload) if at_home else genuine_elsewhere(it, payload)
    it.network.send(data, source or it.host.address, it.client.external)
    it.network.run_for(RTT)


def genuine_elsewhere(it: Pair, payload: bytes) -> bytes:
    """A packet as the server would send it from a new address: with an unused connection ID."""
    connection = it.server.connection
    current = connection._peer_cid
    connection._peer_cid = connection._peer_cid_available[0]
    data = genuine(it.server, payload)
    connection._peer_cid = current
    return data


def thaw(it: Pair) -> None:
    """The frozen server goes on where it was."""
    it.host.frozen = False
    it.network.attach(it.host.address, it.host.receive)
    it.server.flush()
