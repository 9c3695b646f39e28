"""Section 2 on real connections: what goes over the wire, what is refused, what both sides know."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode
from quicferry_lab.simulation import (
    Client,
    Path,
    Responder,
    ServerHost,
    Simulation,
    client_configuration,
    server_configuration,
)
from quicferry_lab.simulation.scenario import client_address
from simulated_pair import HOME, RTT, pair
from support import EXPLICIT, SYMMETRIC, error_code

from quicferry.protocol import (
    ALL_PROTOCOLS,
    SUITE_PARAMETER_ID,
    WITHDRAWAL_PARAMETER_ID,
    ClientMigration,
    ConnectionErrorCode,
    MigrationProtocol,
    PeerError,
    ServerMigration,
)
from quicferry.protocol.varint import encode_varint
from quicferry.transport import Connection
from quicferry.transport.parameters import find, with_suite

NONE = MigrationProtocol(0)
IDENTIFIER = b"\x40\x64"


def saying(value: bytes | None, *, times: int = 1) -> type[Connection]:
    """A connection that sends these bytes as its suite, whatever they mean."""

    class Saying(Connection):
        def _serialize_transport_parameters(self) -> bytes:
            parameters: bytes = QuicConnection._serialize_transport_parameters(self)
            if value is not None:
                parameters += times * (IDENTIFIER + bytes([len(value)]) + value)
            return parameters

        def _parse_transport_parameters(
            self, data: bytes, from_session_ticket: bool = False
        ) -> None:
            QuicConnection._parse_transport_parameters(self, data, from_session_ticket)

    return Saying


@contextmanager
def handshake(
    *,
    server_type: type[Connection] = Connection,
    client_type: type[Connection] = Connection,
    server: MigrationProtocol = ALL_PROTOCOLS,
    client: MigrationProtocol = ALL_PROTOCOLS,
) -> Iterator[tuple[ServerHost, Client]]:
    """A handshake that may fail."""
    with Simulation(path=Path(delay=RTT / 2)) as simulation:
        host = simulation.server(
            HOME,
            server_configuration(ServerMigration(protocols=server)),
            connection_type=server_type,
            application=Responder,
        )
        endpoint = simulation.client(
            client_address(4, 1),
            client_configuration(ClientMigration(protocols=client)),
            connection_type=client_type,
        )
        endpoint.connect(HOME)
        simulation.network.run_for(3)
        yield host, endpoint


# What is sent


@pytest.mark.parametrize("offer", range(1, 16))
def test_client_sends_what_it_supports(offer: int) -> None:
    options = ClientMigration(protocols=MigrationProtocol(offer))
    connection = Connection(configuration=client_configuration(options))
    connection.connect(HOME, now=0)
    stock = QuicConnection._serialize_transport_parameters(connection)
    promise = b"\x0b\x01\x05"  # max_ack_delay, 5 ms instead of 25
    assert stock.count(b"\x0b\x01\x19") == 1
    suite = IDENTIFIER + b"\x01" + bytes([offer])
    withdrawals = bytes.fromhex("ff58afc4ebe3f2d600")
    expected = stock.replace(b"\x0b\x01\x19", promise) + suite + withdrawals
    assert connection._serialize_transport_parameters() == expected


def test_both_promise_to_acknowledge_sooner_only_if_migration_is_negotiated() -> None:
    for options, promised in ((ALL_PROTOCOLS, 0.005), (None, 0.025)):
        client = None if options is None else ClientMigration(protocols=options)
        with pair(client=client, server=ServerMigration()) as it:
            # What each will allow the other for an acknowledgement (RFC 9002 6.2.1).
            for connection in (it.server.connection, it.client.connection):
                assert connection._loss.max_ack_delay == promised


def test_client_sends_nothing_where_migration_is_off() -> None:
    connection = Connection(configuration=client_configuration(None))
    connection.connect(HOME, now=0)
    stock = QuicConnection._serialize_transport_parameters(connection)
    assert connection._serialize_transport_parameters() == stock


def first_flights(
    client: ClientMigration | None, server: ServerMigration | None
) -> tuple[bytes, bytes]:
    """The long-header packets of both sides of a handshake, decrypted."""
    with pair(client=client, server=server) as it:
        packets = it.simulation.observer.packets
        return tuple(  # type: ignore[return-value]
            b"".join(
                packet.payload
                for packet in packets
                if packet.sender.startswith(side) and not packet.is_1rtt
            )
            for side in ("client", "server")
        )


@pytest.mark.parametrize(
    ("client", "server", "answer"),
    [
        (ALL_PROTOCOLS, ALL_PROTOCOLS, 0xF),
        (EXPLICIT, ALL_PROTOCOLS, 0x1),
        (ALL_PROTOCOLS, SYMMETRIC, 0x4),
        (EXPLICIT, SYMMETRIC, 0x0),
        (ALL_PROTOCOLS, NONE, 0x0),
    ],
)
def test_server_answers_with_the_intersection(
    client: MigrationProtocol, server: MigrationProtocol, answer: int
) -> None:
    offered, answered = first_flights(
        ClientMigration(protocols=client), ServerMigration(protocols=server)
    )
    assert offered.count(IDENTIFIER + bytes([1, client])) == 1
    assert answered.count(IDENTIFIER + bytes([1, answer])) == 1


@pytest.mark.parametrize(
    ("client", "server"),
    [(None, ServerMigration()), (ClientMigration(), None), (None, None)],
    ids=["client-off", "server-off", "both-off"],
)
def test_server_sends_no_parameter(
    client: ClientMigration | None, server: ServerMigration | None
) -> None:
    offered, answered = first_flights(client, server)
    assert (IDENTIFIER + b"\x01\x0f" in offered) == (client is not None)
    assert IDENTIFIER + b"\x01" not in answered


# What both sides know


@pytest.mark.parametrize("client", [*MigrationProtocol, ALL_PROTOCOLS])
@pytest.mark.parametrize("server", [*MigrationProtocol, NONE, ALL_PROTOCOLS])
def test_negotiated(client: MigrationProtocol, server: MigrationProtocol) -> None:
    with handshake(client=client, server=server) as (host, endpoint):
        assert endpoint.handshake_complete
        assert endpoint.migrating.negotiated == client & server
        assert host.endpoints[0].migrating.negotiated == client & server


def test_absent_and_empty_are_different() -> None:
    with handshake(server_type=saying(None)) as (_, endpoint):
        assert endpoint.migrating.negotiated is None
    with handshake(server_type=saying(b"\0")) as (_, endpoint):
        assert endpoint.migrating.negotiated == NONE
        assert endpoint.migrating.negotiated is not None


# What is refused


def assert_parameter_error(
    host: ServerHost, endpoint: Client, about: str = "server_migration_suite"
) -> None:
    """Both sides know why the handshake failed, and no migration event was raised before."""
    for side in (endpoint, *host.endpoints):
        assert error_code(side) == QuicErrorCode.TRANSPORT_PARAMETER_ERROR
        assert side.terminated is not None
        assert about in side.terminated.reason_phrase
        assert [type(event).__name__ for _, event in side.migration_events] == ["ConnectionClosed"]


MALFORMED = [b"", b"\x40", b"\x0f\0", b"\x80\0\0", bytes(2)]


@pytest.mark.parametrize("value", [*MALFORMED, b"\x10", b"\x1f", b"\x40\x80"], ids=bytes.hex)
def test_client_refuses(value: bytes) -> None:
    """What is not one varint, and bits that nobody knows."""
    with handshake(server_type=saying(value)) as (host, endpoint):
        assert_parameter_error(host, endpoint)


@pytest.mark.parametrize("answer", [0x2, 0x3, 0x8, 0xF])
def test_client_refuses_what_it_did_not_offer(answer: int) -> None:
    with handshake(server_type=saying(bytes([answer])), client=EXPLICIT) as (host, endpoint):
        assert_parameter_error(host, endpoint)


@pytest.mark.parametrize("value", [*MALFORMED, b"\0", b"\x40\0"], ids=bytes.hex)
def test_server_refuses(value: bytes) -> None:
    with handshake(client_type=saying(value)) as (host, endpoint):
        assert_parameter_error(host, endpoint)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(b"\x10", NONE), (b"\x1f", ALL_PROTOCOLS), (b"\x7f\xf1", EXPLICIT), (b"\x40\x05", 5)],
)
def test_server_ignores_unknown_bits(value: bytes, expected: MigrationProtocol) -> None:
    with handshake(client_type=saying(value)) as (host, endpoint):
        assert endpoint.handshake_complete
        assert host.endpoints[0].migrating.negotiated == expected


@pytest.mark.parametrize("side", ["client", "server"])
def test_parameter_given_twice(side: str) -> None:
    """RFC 9000 7.4."""
    twice = saying(b"\x01", times=2)
    with handshake(
        client_type=twice if side == "client" else Connection,
        server_type=twice if side == "server" else Connection,
    ) as (host, endpoint):
        assert error_code(endpoint) == QuicErrorCode.TRANSPORT_PARAMETER_ERROR
        assert error_code(host.endpoints[0]) == QuicErrorCode.TRANSPORT_PARAMETER_ERROR


# The parameter among others


def test_parameter_among_others() -> None:
    others = bytes.fromhex("0402aabb")
    assert find(others, SUITE_PARAMETER_ID) is None
    assert with_suite(others, b"\x0f") == others + b"\x40\x64\x01\x0f"
    assert find(with_suite(others, b"\x0f") + others, SUITE_PARAMETER_ID) == b"\x0f"
    assert find(with_suite(others, b""), SUITE_PARAMETER_ID) == b""
    long_form = b"\x80\0\0\x64\x01\x03"
    assert find(long_form, SUITE_PARAMETER_ID) == b"\x03", "identifiers are varints of any length"
    with pytest.raises(PeerError) as caught:
        find(with_suite(with_suite(others, b"\x01"), b"\x01"), SUITE_PARAMETER_ID)
    assert caught.value.code is ConnectionErrorCode.TRANSPORT_PARAMETER_ERROR


# The parameter for withdrawals


def saying_withdrawals(value: bytes | None, *, times: int = 1) -> type[Connection]:
    """A connection that sends these bytes as the parameter for withdrawals."""

    class SayingWithdrawals(Connection):
        def _serialize_transport_parameters(self) -> bytes:
            parameters = super()._serialize_transport_parameters()
            own = encode_varint(WITHDRAWAL_PARAMETER_ID)
            parameters = parameters.replace(own + b"\0", b"")
            if value is not None:
                parameters += times * (own + encode_varint(len(value)) + value)
            return parameters

    return SayingWithdrawals


def test_the_identifier_is_private_and_not_reserved() -> None:
    """RFC 9000 18.1 and 22.3: those of the form 31 N + 27 mean nothing by themselves."""
    assert 1 << 61 <= WITHDRAWAL_PARAMETER_ID < 1 << 62
    assert WITHDRAWAL_PARAMETER_ID % 31 != 27


@pytest.mark.parametrize("protocols", [*MigrationProtocol, ALL_PROTOCOLS])
def test_a_client_that_can_migrate_knows_withdrawals(protocols: MigrationProtocol) -> None:
    with handshake(client=protocols) as (host, endpoint):
        assert endpoint.handshake_complete
        assert host.endpoints[0].migrating.knows_withdrawals


def test_a_client_that_does_not_say_so_does_not() -> None:
    with handshake(client_type=saying_withdrawals(None)) as (host, endpoint):
        assert endpoint.handshake_complete
        assert host.endpoints[0].migrating.negotiated == ALL_PROTOCOLS
        assert not host.endpoints[0].migrating.knows_withdrawals


def test_who_sends_it() -> None:
    """The client; never the server."""
    sent: dict[bool, bytes] = {}

    class Noting(Connection):
        def _serialize_transport_parameters(self) -> bytes:
            sent[self._is_client] = super()._serialize_transport_parameters()
            return sent[self._is_client]

    with handshake(client_type=Noting, server_type=Noting) as (_, endpoint):
        assert endpoint.handshake_complete
        assert find(sent[True], WITHDRAWAL_PARAMETER_ID) == b""
        assert find(sent[False], WITHDRAWAL_PARAMETER_ID) is None


@pytest.mark.parametrize(
    ("value", "times", "problem"),
    [(b"\0", 1, "empty"), (b"\x01\x02", 1, "empty"), (b"", 2, "twice")],
)
def test_server_refuses_the_parameter_for_withdrawals(
    value: bytes, times: int, problem: str
) -> None:
    with handshake(client_type=saying_withdrawals(value, times=times)) as (host, endpoint):
        assert_parameter_error(host, endpoint, problem)


@pytest.mark.parametrize("value", [b"", b"\0"])
def test_client_refuses_the_parameter_for_withdrawals(value: bytes) -> None:
    with handshake(server_type=saying_withdrawals(value)) as (host, endpoint):
        assert_parameter_error(host, endpoint, "withdrawals")
