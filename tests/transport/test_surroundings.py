"""Migrations in all kinds of surroundings: address families, NATs, key updates, and others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address

import pytest
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicPreferredAddress
from quicferry_lab.simulation import (
    Answer,
    Exchange,
    NatKind,
    Path,
    Requests,
    Responder,
    SimulatedAddress,
    Simulation,
    client_configuration,
    server_configuration,
)
from quicferry_lab.simulation.invariants import events_of
from simulated_pair import AWAY, HOME, RTT, Pair, address, pair
from support import EXPLICIT, POOL, SYMMETRIC, SYNCHRONIZED, named, ping, server_for, wired_pair

from quicferry.protocol import (
    Address,
    ClientMigration,
    MigrationCompleted,
    MigrationProtocol,
    Policy,
    Scheduler,
    ServerMigration,
)
from quicferry.transport import address_from_network, network_address

HOME6: SimulatedAddress = ("2001:db8::1", 4433, 0, 0)
AWAY6: SimulatedAddress = ("2001:db8::2", 4433, 0, 0)
MAPPED_HOME: SimulatedAddress = ("::ffff:10.0.0.1", 4433, 0, 0)
MAPPED_AWAY: SimulatedAddress = ("::ffff:10.0.0.2", 4433, 0, 0)
REBOUND: SimulatedAddress = ("203.0.113.50", 999)
PROTOCOLS = pytest.mark.parametrize("protocol", MigrationProtocol)
POLICIES = pytest.mark.parametrize("policy", Policy)
SCHEDULERS = pytest.mark.parametrize("scheduler", Scheduler)
TRANSFER = Exchange(50_000, 50_000, answer=Answer.AT_ONCE)


def assert_moves(it: Pair, protocol: MigrationProtocol, to: SimulatedAddress) -> None:
    """A migration in the middle of a transfer, of which both sides know in the end."""
    it.imminent(protocol, to if protocol is EXPLICIT else None)
    it.requests.start([[TRANSFER]])
    it.network.run_for(0.03)
    it.relocate(to, frozen=0.1)
    it.network.run_until(lambda: it.requests.done, limit=10, what="the transfer")
    it.network.run_for(1)
    assert_is_at(it, protocol, to)


def assert_is_at(it: Pair, protocol: MigrationProtocol, to: SimulatedAddress) -> None:
    it.exchange()
    it.network.run_for(0.5)
    for side in (it.client, it.server):
        assert side.terminated is None
        assert events_of(side, MigrationCompleted)[-1] == MigrationCompleted(protocol, address(to))
    assert it.client.connection.get_peer_address() == to


# Address families


@PROTOCOLS
@POLICIES
def test_ipv6(protocol: MigrationProtocol, policy: Policy) -> None:
    with wired_pair(
        client=ClientMigration(policy=policy), server=server_for(protocol, AWAY6), home=HOME6
    ) as (it, _):
        assert_moves(it, protocol, AWAY6)


@contextmanager
def dual_stack_pair(server: ServerMigration, client: ClientMigration) -> Iterator[Pair]:
    """Both have IPv6 sockets, and see each other at IPv4-mapped addresses."""
    with Simulation(path=Path(delay=RTT / 2)) as simulation:
        host = simulation.server(MAPPED_HOME, server_configuration(server), application=Responder)
        endpoint = simulation.client(("::ffff:10.1.0.1", 50001, 0, 0), client_configuration(client))
        requests = Requests(endpoint)
        endpoint.connect(MAPPED_HOME)
        simulation.network.run_for(1)
        assert endpoint.handshake_complete
        yield Pair(simulation, simulation.network, host, endpoint, requests)


@PROTOCOLS
@POLICIES
@SCHEDULERS
def test_dual_stack(protocol: MigrationProtocol, policy: Policy, scheduler: Scheduler) -> None:
    """On the wire and in events addresses are IPv4, on the socket they are mapped."""
    with dual_stack_pair(
        server_for(protocol, MAPPED_AWAY), ClientMigration(policy=policy, scheduler=scheduler)
    ) as it:
        assert_moves(it, protocol, MAPPED_AWAY)
        assert address(MAPPED_AWAY) == address(AWAY)


@pytest.mark.parametrize(
    ("network", "parsed"),
    [
        (("192.0.2.1", 4433), "192.0.2.1:4433"),
        (("2001:db8::1", 4433, 0, 0), "[2001:db8::1]:4433"),
        (("::ffff:192.0.2.1", 4433, 0, 0), "192.0.2.1:4433"),
        (("fe80::1%eth0", 4433, 0, 3), "[fe80::1]:4433"),
        (("/run/socket", 1), None),
        (("192.0.2.1",), None),
        (("192.0.2.1", 70000), None),
        ("", None),
        (None, None),
    ],
)
def test_address_from_network(network: object, parsed: str | None) -> None:
    assert address_from_network(network) == (None if parsed is None else Address.parse(parsed))


@pytest.mark.parametrize(
    ("text", "like", "network"),
    [
        ("192.0.2.1:1", None, ("192.0.2.1", 1)),
        ("192.0.2.1:1", ("192.0.2.9", 2), ("192.0.2.1", 1)),
        ("192.0.2.1:1", ("::ffff:192.0.2.9", 2, 0, 0), ("::ffff:192.0.2.1", 1, 0, 0)),
        ("[2001:db8::1]:1", None, ("2001:db8::1", 1, 0, 0)),
        ("[2001:db8::1]:1", ("2001:db8::9", 2, 0, 0), ("2001:db8::1", 1, 0, 0)),
        ("[fe80::1]:1", ("fe80::9", 2, 0, 3), ("fe80::1", 1, 0, 3)),
        ("[2001:db8::1]:1", ("fe80::9", 2, 0, 3), ("2001:db8::1", 1, 0, 0)),
    ],
)
def test_network_address(text: str, like: object, network: object) -> None:
    assert network_address(Address.parse(text), like) == network


# NATs


@pytest.mark.parametrize(
    ("protocol", "kind"),
    [
        *((protocol, kind) for protocol in (EXPLICIT, POOL) for kind in NatKind),
        # these have to be reached from the new address
        (SYMMETRIC, NatKind.FULL_CONE),
        (SYNCHRONIZED, NatKind.FULL_CONE),
    ],
)
@pytest.mark.parametrize("moment", ["before", "frozen", "after"])
def test_nat_rebinding(protocol: MigrationProtocol, kind: NatKind, moment: str) -> None:
    """The client's address changes at about the time when the server's does."""
    with wired_pair(server=server_for(protocol, AWAY), nat=kind) as (it, _):
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        it.requests.start([[TRANSFER, Exchange(10, 10, pause=0.3)]])
        if moment == "before":
            it.client.rebind(REBOUND, grace=0.3)
            it.network.run_for(0.005)
        it.host.freeze()
        it.network.run_for(0.05)
        if moment == "frozen":
            it.client.rebind(REBOUND, grace=0.3)
        it.network.run_for(0.05)
        it.host.resume(AWAY)
        if moment == "after":
            it.network.run_for(0.004)
            it.client.rebind(REBOUND, grace=0.3)
        it.network.run_until(lambda: it.requests.done, limit=20, what="the exchanges")
        it.network.run_for(2)
        assert_is_at(it, protocol, AWAY)
        assert it.server.connection.get_peer_address() == REBOUND


# Key updates


@PROTOCOLS
@pytest.mark.parametrize(
    ("side", "moment"),
    [
        ("server", "before"),
        ("server", "frozen"),
        ("server", "after"),
        # Not the client before: aioquic drops the old keys with its own update, so it cannot read
        # the server before the server has read it, which Symmetric needs (RFC 9001 6.5).
        ("client", "frozen"),
        ("client", "after"),
    ],
)
def test_key_update(protocol: MigrationProtocol, side: str, moment: str) -> None:
    with wired_pair(server=server_for(protocol, AWAY)) as (it, _):
        endpoint = it.client if side == "client" else it.server
        it.exchange()
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        it.requests.start([[TRANSFER]])
        it.network.run_for(0.02)
        if moment == "before":
            endpoint.connection.request_key_update()
            endpoint.flush()
        it.host.freeze()
        it.network.run_for(0.1)
        if moment == "frozen":
            endpoint.connection.request_key_update()
        it.host.resume(AWAY)
        if moment == "after":
            endpoint.connection.request_key_update()
            endpoint.flush()
        it.network.run_until(lambda: it.requests.done, limit=10, what="the transfer")
        it.network.run_for(0.5)
        assert_is_at(it, protocol, AWAY)


# aioquic's own migration to the server's preferred address


PREFERRED: SimulatedAddress = ("10.0.0.77", 4433)


@contextmanager
def at_preferred_address(protocol: MigrationProtocol, client: ClientMigration) -> Iterator[Pair]:
    """The server is at one place, which both addresses lead to; the client prefers the second."""
    with wired_pair(client=client, server=server_for(protocol, AWAY)) as (it, _):
        it.network.attach(PREFERRED, it.host.receive)
        assert isinstance(PREFERRED[1], int)
        it.client.connection._remote_preferred_address = QuicPreferredAddress(
            ipv4_address=(PREFERRED[0], PREFERRED[1]),
            ipv6_address=None,
            connection_id=bytes(8),
            stateless_reset_token=bytes(16),
        )
        ping(it.client)
        it.network.run_for(0.5)
        assert it.client.connection.get_peer_address() == PREFERRED
        it.exchange(TRANSFER)
        yield it


@pytest.mark.parametrize(
    ("preferred", "is_followed"),
    [
        (("10.0.0.77", 4433), True),
        (("192.168.0.1", 443), True),
        (("8.0.0.1", 4433), True),
        (("10.0.0.77", 53), False),
        (("127.0.0.1", 4433), False),
        (("169.254.169.254", 80), False),
        (("100.64.0.1", 4433), False),
        (("224.0.0.1", 4433), False),
    ],
)
def test_a_preferred_address_is_one_that_may_be_named(
    preferred: tuple[str, int], is_followed: bool
) -> None:
    """What is refused is not asked; the connection goes on where it is."""
    with pair() as it:
        it.client.connection._remote_preferred_address = QuicPreferredAddress(
            ipv4_address=preferred,
            ipv6_address=None,
            connection_id=bytes(8),
            stateless_reset_token=bytes(16),
        )
        asked: list[bytes] = []
        it.network.taps.append(
            lambda sent: asked.append(sent.data) if sent.destination == preferred else None
        )
        ping(it.client)
        it.network.run_for(0.5)
        assert bool(asked) == is_followed
        it.exchange(TRANSFER)
        assert it.client.connection.get_peer_address() == HOME


@PROTOCOLS
@POLICIES
def test_migration_from_a_preferred_address(protocol: MigrationProtocol, policy: Policy) -> None:
    with at_preferred_address(protocol, ClientMigration(policy=policy)) as it:
        assert "MigrationCompleted" not in named(it.client)
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        it.requests.start([[TRANSFER]])
        it.network.run_for(0.03)
        it.network.detach(PREFERRED)
        it.relocate(AWAY, frozen=0.1)
        it.network.run_until(lambda: it.requests.done, limit=10, what="the transfer")
        it.network.run_for(1)
        assert_is_at(it, protocol, AWAY)


# What cannot be helped


def test_both_ends_notice_when_the_server_never_comes_back() -> None:
    with wired_pair() as (it, _):
        it.imminent(EXPLICIT, AWAY)
        it.requests.start([[TRANSFER]])
        it.host.freeze()
        it.network.run_for(200)
        assert isinstance(it.client.terminated, ConnectionTerminated)
        assert "Idle timeout" in it.client.terminated.reason_phrase
        assert ip_address("10.0.0.2") == address(AWAY).host
