"""RFC 9000 9.5: each new address is used with a connection ID not used with another one.

The simulation's observer raises an error wherever one is; here it is looked at more closely.
"""

from __future__ import annotations

from collections import defaultdict

import pytest
from quicferry_lab.simulation import Datagram, Exchange, NatKind, SimulatedAddress
from quicferry_lab.simulation.invariants import events_of
from simulated_pair import AWAY, HOME, Pair, Until, genuine, pair, pool
from support import EXPLICIT, POOL, THIRD, ping, server_for, thaw, wired_pair

from quicferry.protocol import (
    ClientMigration,
    HandshakeFinished,
    MigrationProtocol,
    Policy,
    Scheduler,
    ServerMigration,
)

MOVED: SimulatedAddress = ("10.1.0.99", 50009)
PING = b"\x01"
PROTOCOLS = pytest.mark.parametrize("protocol", MigrationProtocol)
POLICIES = pytest.mark.parametrize("policy", Policy)
SCHEDULERS = pytest.mark.parametrize("scheduler", Scheduler)

Paths = dict[tuple[str, bytes], set[tuple[SimulatedAddress, SimulatedAddress]]]


def watch(it: Pair) -> Paths:
    """Between which addresses each end uses which connection ID, from now on."""
    uses: Paths = defaultdict(set)

    def tap(datagram: Datagram) -> None:
        if not datagram.data[0] & 0x80:
            side = "client" if datagram.source == it.client.external else "server"
            uses[side, datagram.data[1:9]].add((datagram.source, datagram.destination))

    it.network.taps.append(tap)
    return uses


def assert_unlinkable(uses: Paths) -> None:
    for (side, connection_id), paths in uses.items():
        assert len(paths) == 1, f"{side} used {connection_id.hex()} between {paths}"


def migrate(it: Pair, protocol: MigrationProtocol, to: SimulatedAddress) -> None:
    it.imminent(protocol, to if protocol is EXPLICIT else None)
    it.requests.start([[Exchange(10_000, 10_000)]])
    it.network.run_for(0.01)
    it.relocate(to, frozen=0.1)
    it.network.run_until(lambda: it.requests.done, limit=10, what="the exchange")
    it.network.run_for(1)
    assert it.client.connection.get_peer_address() == to


@PROTOCOLS
@POLICIES
def test_one_address_after_the_other(protocol: MigrationProtocol, policy: Policy) -> None:
    with wired_pair(
        client=ClientMigration(policy=policy), server=server_for(protocol, AWAY, THIRD)
    ) as (it, _):
        uses = watch(it)
        migrate(it, protocol, AWAY)
        migrate(it, protocol, THIRD)
        assert_unlinkable(uses)
        used = {side: len([key for key in uses if key[0] == side]) for side in ("client", "server")}
        assert used["client"] >= 3
        assert used["server"] >= 3


@PROTOCOLS
@SCHEDULERS
def test_there_and_back(protocol: MigrationProtocol, scheduler: Scheduler) -> None:
    with wired_pair(
        client=ClientMigration(scheduler=scheduler), server=server_for(protocol, AWAY, HOME)
    ) as (it, _):
        uses = watch(it)
        for to in (AWAY, HOME) * 5:
            migrate(it, protocol, to)
        assert_unlinkable(uses)


@SCHEDULERS
def test_looking_through_a_pool(scheduler: Scheduler) -> None:
    """Each address that is asked gets a connection ID of its own, and keeps it."""
    addresses = [(f"10.0.0.{number}", 4433) for number in range(10, 17)]
    with wired_pair(
        client=ClientMigration(scheduler=scheduler), server=ServerMigration(pool=pool(*addresses))
    ) as (it, _):
        uses = watch(it)
        it.imminent(POOL)
        it.host.freeze()
        ping(it.client)
        it.network.run_for(3)
        assert_unlinkable(uses)
        asked = {destination for paths in uses.values() for _, destination in paths}
        assert asked == {HOME, *addresses}
        assert len(uses) == 8
        it.host.resume(addresses[-1])
        it.network.run_for(1)
        assert it.client.connection.get_peer_address() == addresses[-1]
        assert_unlinkable(uses)


@POLICIES
def test_a_false_alarm_gives_nothing_away(policy: Policy) -> None:
    """Back at home it is the old connection ID again; the candidate keeps its own."""
    with wired_pair(client=ClientMigration(policy=policy)) as (it, _):
        uses = watch(it)
        it.imminent(EXPLICIT, AWAY)
        for _ in range(5):
            it.network.filters[:] = [lambda sent: False]
            it.network.call_later(0.1, it.network.filters.clear)
            it.exchange()
            it.network.run_for(0.5)
        assert_unlinkable(uses)
        assert len([key for key in uses if key[0] == "client"]) == 2


@PROTOCOLS
@POLICIES
def test_the_client_moves_meanwhile(protocol: MigrationProtocol, policy: Policy) -> None:
    with wired_pair(client=ClientMigration(policy=policy), server=server_for(protocol, AWAY)) as (
        it,
        _,
    ):
        uses: Paths = defaultdict(set)

        def tap(datagram: Datagram) -> None:
            if not datagram.data[0] & 0x80:
                side = "server" if datagram.source in (HOME, AWAY) else "client"
                uses[side, datagram.data[1:9]].add((datagram.source, datagram.destination))

        it.network.taps.append(tap)
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        it.host.freeze()
        ping(it.client)
        it.network.run_for(0.2)
        it.client.migrate(MOVED, grace=2)
        it.network.run_for(0.2)
        it.host.resume(AWAY)
        it.exchange()
        it.network.run_for(1)
        assert it.client.connection.get_peer_address() == AWAY
        assert it.server.connection.get_peer_address() == MOVED
        assert_unlinkable(uses)


@PROTOCOLS
def test_nat_rebinding_at_once_with_the_migration(protocol: MigrationProtocol) -> None:
    """The client does not know, so it cannot change its connection ID for that."""
    rebound: SimulatedAddress = ("203.0.113.50", 999)
    with wired_pair(server=server_for(protocol, AWAY), nat=NatKind.FULL_CONE) as (it, _):
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        it.host.freeze()
        ping(it.client)
        it.client.rebind(rebound, grace=0.5)
        it.network.run_for(0.1)
        it.host.resume(AWAY)
        it.exchange()
        it.network.run_for(1)
        assert it.client.connection.get_peer_address() == AWAY
        assert it.server.connection.get_peer_address() == rebound
        assert it.client.terminated is None
        assert it.server.terminated is None


@PROTOCOLS
def test_connection_ids_do_not_run_out(protocol: MigrationProtocol) -> None:
    """Those that were used are retired, and new ones come."""
    with wired_pair(server=server_for(protocol, AWAY, HOME)) as (it, _):
        for _ in range(8):
            for to in (AWAY, HOME):
                migrate(it, protocol, to)
        for side in (it.client, it.server):
            assert len(side.connection._peer_cid_available) >= 5
            assert side.connection._retire_connection_ids == []
            assert len(side.connection._network_paths) <= 8


@PROTOCOLS
def test_paths_do_not_pile_up(protocol: MigrationProtocol) -> None:
    stops: list[SimulatedAddress] = [(f"10.0.0.{number}", 4433) for number in range(10, 17)]
    with wired_pair(server=server_for(protocol, *stops)) as (it, _):
        for to in stops * 2:
            migrate(it, protocol, to)
        assert len(it.client.connection._network_paths) <= 16
        reserved = [path for path in it.client.connection._network_paths if path.peer_cid]
        assert len(reserved) <= 8


def test_the_first_connection_ids_are_lost() -> None:
    """However long the handshake took: a client that has given none yet is not one without any."""
    with pair(until=Until.CLIENT_HELLO) as it:
        it.network.filters[:] = [lambda sent: sent.source == HOME]
        it.network.run_for(5)
        server = it.server.migrating
        assert server.spare_connection_ids == 0
        assert not server.peer_connection_ids.have_run_out(it.network.now)
        it.network.filters.clear()
        it.network.run_until(
            lambda: bool(events_of(it.server, HandshakeFinished)), limit=10, what="confirmation"
        )
        it.imminent(MigrationProtocol.SYMMETRIC)
        assert server.spare_connection_ids > 0


def test_what_two_addresses_had_to_share_is_used_no_more_once_there_are_others() -> None:
    """The first connection IDs are late, and the client has to look for its server without."""
    with pair(client=ClientMigration(policy=Policy.REACTIVE)) as it:
        it.simulation.observer.may_reuse = lambda sender: True
        available = it.client.connection._peer_cid_available
        late = available.copy()
        available.clear()
        it.network.run_for(1)
        it.imminent(EXPLICIT, AWAY)
        it.host.freeze()
        shared = it.client.connection._peer_cid
        ping(it.client)
        it.network.run_for(0.5)
        assert it.client.connection._peer_cid is shared
        assert it.client.connection.get_peer_address() == AWAY
        available += late
        thaw(it)
        it.exchange()
        uses = watch(it)
        it.relocate(AWAY, frozen=0.1)
        it.exchange()
        assert it.client.connection.get_peer_address() == AWAY
        assert_unlinkable(uses)
        assert ("client", shared.cid) not in uses
        it.network.run_for(1)
        assert it.client.migrating.spare_connection_ids > 0


def test_reordered_packets_around_a_change_cost_nothing() -> None:
    """The server answers a new connection ID of its client with one of its own, and once."""
    with pair() as it:
        before = it.server.migrating.spare_connection_ids
        late = [genuine(it.client, PING) for _ in range(before)]
        it.client.connection.change_connection_id()
        for old in late:
            it.deliver(it.server, genuine(it.client, PING), it.client.external)
            it.deliver(it.server, old, it.client.external)
        assert it.server.migrating.spare_connection_ids == before - 1
