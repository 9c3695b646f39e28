"""Section 6: every error of `imminent`, on real connections: reported, raised, and the end."""

from __future__ import annotations

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode
from quicferry_lab.simulation import SimulatedAddress
from quicferry_lab.simulation.invariants import events_of
from simulated_pair import AWAY, HOME, Pair, address, pair, pool
from support import (
    EXPLICIT,
    POOL,
    SYMMETRIC,
    SYNCHRONIZED,
    THIRD,
    OlderClient,
    error_code,
    handshake_under_way,
    lose,
    migration_events,
    named,
    wired_pair,
)

from quicferry.protocol import (
    ALL_PROTOCOLS,
    Address,
    ClientMigration,
    ConnectionClosed,
    MigrationAddress,
    MigrationError,
    MigrationErrorCode,
    MigrationFailed,
    MigrationProtocol,
    MigrationReady,
    ServerMigration,
)
from quicferry.transport import Connection

ERROR = MigrationErrorCode
HOME6: SimulatedAddress = ("2001:db8::1", 4433, 0, 0)
AWAY6: SimulatedAddress = ("2001:db8::2", 4433, 0, 0)
WITH_POOL = ServerMigration(pool=pool(AWAY, THIRD))
PROTOCOLS = pytest.mark.parametrize("protocol", MigrationProtocol)


def destination(protocol: MigrationProtocol) -> Address | None:
    return address(AWAY) if protocol is EXPLICIT else None


def assert_fails(
    it: Pair,
    code: MigrationErrorCode,
    protocol: MigrationProtocol,
    target: Address | MigrationAddress | None = None,
) -> None:
    """`migration_obstacle` says so and costs nothing; `imminent_migration` costs the connection."""
    server = it.server.migrating
    before = migration_events(it.server)
    assert server.migration_obstacle(protocol, target) is code
    it.exchange()
    assert server.migration_obstacle(protocol, target) is code
    assert migration_events(it.server) == before
    with pytest.raises(MigrationError) as caught:
        server.imminent_migration(protocol, target, now=it.network.now)
    assert caught.value.code is code
    assert_closed(it, code)


def assert_closed(it: Pair, code: MigrationErrorCode) -> None:
    """The server has reported the error; both ends know that the connection is closed, and why."""
    it.server.flush()
    it.network.run_for(3)
    assert events_of(it.server, MigrationFailed) == [MigrationFailed(code)]
    for endpoint in (it.client, it.server):
        assert endpoint.terminated is not None
        assert endpoint.terminated.error_code == QuicErrorCode.INTERNAL_ERROR
        assert code.name in endpoint.terminated.reason_phrase
        if isinstance(endpoint.connection, Connection):
            assert events_of(endpoint, ConnectionClosed) == [
                ConnectionClosed(QuicErrorCode.INTERNAL_ERROR, endpoint.terminated.reason_phrase)
            ]
    assert "MigrationFailed" not in named(it.client)


@PROTOCOLS
def test_migration_disabled(protocol: MigrationProtocol) -> None:
    with pair(server=None) as it:
        assert_fails(it, ERROR.MIGRATION_DISABLED, protocol, destination(protocol))


@PROTOCOLS
def test_handshake_not_finished(protocol: MigrationProtocol) -> None:
    with handshake_under_way(ServerMigration()) as (simulation, _, server, _):
        connection = server.migrating
        assert connection.negotiated == ALL_PROTOCOLS
        code = connection.migration_obstacle(protocol, destination(protocol))
        assert code is ERROR.HANDSHAKE_NOT_FINISHED
        with pytest.raises(MigrationError) as caught:
            connection.imminent_migration(
                protocol, destination(protocol), now=simulation.network.now
            )
        assert caught.value.code is ERROR.HANDSHAKE_NOT_FINISHED
        server.flush()
        simulation.network.run_for(5)
        assert named(server) == ["MigrationFailed", "ConnectionClosed"]
        assert error_code(server) == QuicErrorCode.INTERNAL_ERROR


def test_network_switch_during_the_handshake() -> None:
    with handshake_under_way(ServerMigration()) as (simulation, _, server, _):
        with pytest.raises(MigrationError) as caught:
            server.migrating.network_switch(AWAY, now=simulation.network.now)
        assert caught.value.code is ERROR.HANDSHAKE_NOT_FINISHED


@PROTOCOLS
@pytest.mark.parametrize("client_offers", ["others", "nothing", "stock"])
def test_protocol_not_negotiated(protocol: MigrationProtocol, client_offers: str) -> None:
    client = ClientMigration(protocols=ALL_PROTOCOLS & ~protocol)
    with pair(
        client=client if client_offers == "others" else None,
        client_type=QuicConnection if client_offers == "stock" else Connection,
    ) as it:
        assert_fails(it, ERROR.PROTOCOL_NOT_NEGOTIATED, protocol, destination(protocol))


@pytest.mark.parametrize("protocol", [MigrationProtocol(0), EXPLICIT | SYMMETRIC, ALL_PROTOCOLS])
def test_protocol_not_negotiated_a_set_is_no_protocol(protocol: MigrationProtocol) -> None:
    with pair() as it:
        assert_fails(it, ERROR.PROTOCOL_NOT_NEGOTIATED, protocol)


@pytest.mark.parametrize("second", MigrationProtocol)
@pytest.mark.parametrize("state", ["preparing", "ready", "switched"])
def test_migration_already_in_progress(state: str, second: MigrationProtocol) -> None:
    with pair() as it:
        if state == "preparing":
            it.server.migrating.imminent_migration(EXPLICIT, address(AWAY), now=it.network.now)
        else:
            it.imminent(EXPLICIT, AWAY)
        if state == "switched":
            lose(it.network, lambda datagram: datagram.destination == AWAY, 4)
            it.relocate(AWAY)
        assert it.server.migrating.migration_state == state
        code = ERROR.MIGRATION_ALREADY_IN_PROGRESS
        assert it.server.migrating.migration_obstacle(second, destination(second)) is code
        with pytest.raises(MigrationError) as caught:
            it.server.migrating.imminent_migration(second, destination(second), now=it.network.now)
        assert caught.value.code is code
        assert_closed(it, code)


@pytest.mark.parametrize(
    ("target", "home"),
    [
        pytest.param(None, HOME, id="missing"),
        pytest.param(MigrationAddress(), HOME, id="unknown"),
        pytest.param(address(AWAY6), HOME, id="wrong-family-6"),
        pytest.param(address(AWAY), HOME6, id="wrong-family-4"),
        pytest.param(address(HOME), HOME, id="current"),
        pytest.param(address(HOME6), HOME6, id="current-6"),
        pytest.param(Address.parse("224.0.0.1:4433"), HOME, id="multicast"),
        pytest.param(Address.parse("10.0.0.2:0"), HOME, id="port-0"),
        pytest.param(Address.parse("127.0.0.1:4433"), HOME, id="loopback"),
    ],
)
def test_invalid_address(target: Address | MigrationAddress | None, home: SimulatedAddress) -> None:
    with pair(home=home) as it:
        assert_fails(it, ERROR.INVALID_ADDRESS, EXPLICIT, target)


@pytest.mark.parametrize("protocol", [POOL, SYMMETRIC, SYNCHRONIZED])
def test_invalid_address_not_wanted(protocol: MigrationProtocol) -> None:
    with pair(server=WITH_POOL if protocol is POOL else ServerMigration()) as it:
        assert_fails(it, ERROR.INVALID_ADDRESS, protocol, address(AWAY))


def test_invalid_address_is_the_current_one_after_a_migration() -> None:
    with pair() as it:
        it.imminent(SYMMETRIC)
        it.relocate(AWAY)
        it.network.run_for(0.5)
        assert_fails(it, ERROR.INVALID_ADDRESS, EXPLICIT, address(AWAY))


@pytest.mark.parametrize("protocol", [EXPLICIT, SYMMETRIC, SYNCHRONIZED])
def test_invalid_state_with_a_pool(protocol: MigrationProtocol) -> None:
    with pair(server=WITH_POOL) as it:
        assert_fails(it, ERROR.INVALID_STATE, protocol, destination(protocol))


@pytest.mark.parametrize(
    ("first", "second", "target"),
    [
        (EXPLICIT, SYMMETRIC, None),
        (EXPLICIT, SYNCHRONIZED, None),
        (EXPLICIT, EXPLICIT, THIRD),
        (SYNCHRONIZED, SYMMETRIC, None),
        (SYNCHRONIZED, EXPLICIT, AWAY),
    ],
)
def test_invalid_state_after_an_abort(
    first: MigrationProtocol, second: MigrationProtocol, target: SimulatedAddress | None
) -> None:
    with pair(client_type=OlderClient) as it:
        it.imminent(first, AWAY if first is EXPLICIT else None)
        it.server.migrating.abort_migration(now=it.network.now)
        it.server.flush()
        assert_fails(it, ERROR.INVALID_STATE, second, None if target is None else address(target))


def test_empty_pool() -> None:
    with pair() as it:
        assert_fails(it, ERROR.EMPTY_POOL_MIGRATION_ADDRESSES, POOL)


def test_empty_pool_in_the_family_in_use() -> None:
    with pair(server=WITH_POOL, home=HOME6) as it:
        assert_fails(it, ERROR.EMPTY_POOL_MIGRATION_ADDRESSES, POOL)


def test_pool_not_acknowledged() -> None:
    """The handshake has just finished."""
    code = ERROR.POOL_MIGRATION_ADDRESSES_NOT_ACKNOWLEDGED
    with handshake_under_way(WITH_POOL) as (simulation, client, server, _):
        network = simulation.network
        network.run_until(lambda: bool(named(server)), limit=1, what="the end of the handshake")
        assert server.migrating.migration_obstacle(POOL) is code
        network.run_until(
            lambda: server.migrating.migration_obstacle(POOL) is None, limit=1, what="the pool"
        )
        assert named(server).count("PoolAddressAcknowledged") == 2

    with handshake_under_way(WITH_POOL) as (simulation, client, server, _):
        network = simulation.network
        network.run_until(lambda: bool(named(server)), limit=1, what="the end of the handshake")
        with pytest.raises(MigrationError) as caught:
            server.migrating.imminent_migration(POOL, now=network.now)
        assert caught.value.code is code
        server.flush()
        network.run_for(3)
        assert MigrationFailed(code) in migration_events(server)
        assert client.terminated is not None
        assert code.name in client.terminated.reason_phrase


# The network switch at the wrong time


@pytest.mark.parametrize("state", ["idle", "preparing"])
@pytest.mark.parametrize("protocol", [EXPLICIT, SYNCHRONIZED])
def test_network_switch_before_ready(protocol: MigrationProtocol, state: str) -> None:
    with wired_pair() as (it, wire):
        if state == "preparing":
            it.server.migrating.imminent_migration(
                protocol, destination(protocol), now=it.network.now
            )
        with pytest.raises(MigrationError) as caught:
            it.server.migrating.network_switch(AWAY, now=it.network.now)
        assert caught.value.code is ERROR.INVALID_STATE
        assert it.server.migrating.server_address == HOME
        assert_closed(it, ERROR.INVALID_STATE)
        assert wire.select(0x33) == []


def test_second_network_switch() -> None:
    with pair() as it:
        it.imminent(EXPLICIT, AWAY)
        it.relocate(AWAY)
        with pytest.raises(MigrationError) as caught:
            it.server.migrating.network_switch(THIRD, now=it.network.now)
        assert caught.value.code is ERROR.MIGRATION_ALREADY_IN_PROGRESS
        assert it.server.migrating.server_address == AWAY


def test_network_switch_with_migration_disabled() -> None:
    with pair(server=None) as it:
        with pytest.raises(MigrationError) as caught:
            it.server.migrating.network_switch(AWAY, now=it.network.now)
        assert caught.value.code is ERROR.MIGRATION_DISABLED
        assert_closed(it, ERROR.MIGRATION_DISABLED)


def test_abort_after_the_network_switch() -> None:
    with pair() as it:
        it.imminent(EXPLICIT, AWAY)
        it.relocate(AWAY)
        with pytest.raises(MigrationError) as caught:
            it.server.migrating.abort_migration(now=it.network.now)
        assert caught.value.code is ERROR.MIGRATION_ALREADY_IN_PROGRESS
        it.exchange()
        assert it.server.terminated is None


def test_abort_of_nothing() -> None:
    with pair() as it:
        it.server.migrating.abort_migration(now=it.network.now)
        it.exchange()


def test_on_a_client() -> None:
    """What only servers do is a mistake of the program, and costs no connection."""
    with pair() as it:
        client, now = it.client.migrating, it.network.now
        with pytest.raises(RuntimeError):
            client.migration_obstacle(SYMMETRIC)
        with pytest.raises(RuntimeError):
            client.imminent_migration(SYMMETRIC, now=now)
        with pytest.raises(RuntimeError):
            client.network_switch(AWAY, now=now)
        with pytest.raises(RuntimeError):
            client.abort_migration(now=now)
        it.exchange()
        assert "MigrationFailed" not in named(it.client)


def test_proactive_wish_on_a_server_and_without_reason_means_nothing() -> None:
    with pair() as it:
        for endpoint in (it.server, it.client):
            endpoint.migrating.probe_server_address(now=it.network.now)
            endpoint.flush()
        it.exchange()
        assert it.client.connection.get_peer_address() == HOME


# Abort: every connection goes on as if nothing had happened


@PROTOCOLS
@pytest.mark.parametrize("early", [False, True], ids=["when-ready", "before"])
def test_abort_and_again(protocol: MigrationProtocol, early: bool) -> None:
    server = WITH_POOL if protocol is POOL else ServerMigration()
    target = AWAY if protocol is EXPLICIT else None
    with pair(server=server, client_type=OlderClient) as it:
        if early:
            it.server.migrating.imminent_migration(
                protocol, destination(protocol), now=it.network.now
            )
            it.server.flush()
        else:
            it.imminent(protocol, target)
        it.server.migrating.abort_migration(now=it.network.now)
        it.server.flush()
        assert it.server.migrating.migration_state == "idle"
        for _ in range(3):
            it.exchange()
            it.network.run_for(0.5)
        assert it.client.connection.get_peer_address() == HOME
        before = it.network.now
        it.imminent(protocol, target)
        assert it.network.now == before, "the client knows already"
        it.relocate(AWAY, frozen=0.02)
        it.exchange()
        it.network.run_for(0.5)
        assert it.client.connection.get_peer_address() == AWAY
        assert events_of(it.server, MigrationReady)[-1] == MigrationReady(protocol)
        for endpoint in (it.client, it.server):
            assert named(endpoint).count("MigrationCompleted") == 1
