"""The client's own address changes at every moment of a migration of its server, without any loss.

What happens within one round trip around the network switch depends on fractions of it: which
packets are on their way to an address that is left, and what the limit against amplification
(RFC 9000 8.1) permits to say to a client whose new address is not validated. So the moments are a
grid, finer than the time a packet takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from quicferry_lab.simulation import Datagram, Exchange, NatKind, SimulatedAddress
from quicferry_lab.simulation.invariants import disagreement, events_of
from quicferry_lab.simulation.scenario import client_address
from simulated_pair import AWAY, HOME, RTT, Pair, pair
from support import (
    EXPLICIT,
    PING,
    SYMMETRIC,
    SYNCHRONIZED,
    genuine_elsewhere,
    migrate,
    server_for,
    wired_pair,
)

from quicferry.protocol import ClientMigration, MigrationCompleted, MigrationProtocol, Policy

PATH_CHALLENGE = 0x1A
SERVER_MIGRATED = 0x33
GRACE = 10.0
MOMENTS = [number * RTT / 4 for number in range(-6, 5)]
"""Seconds from the freeze."""
TRAFFIC = (
    (Exchange(10, 1_000), Exchange(10, 20_000)),
    tuple(Exchange(700, 10, pause=RTT / 3) for _ in range(5)),
)
SPEAKING_FIRST = [SYMMETRIC, SYNCHRONIZED]
"""Protocols where the server speaks first from its new address; policies say nothing to them."""


class Changes:
    """Gives a client one new address after the other."""

    def __init__(self, it: Pair) -> None:
        self._it = it
        self._numbers: Iterator[int] = itertools.count(10)

    def __call__(self) -> None:
        address = client_address(4, next(self._numbers))
        if self._it.client.nat is not None:
            self._it.client.rebind(address, grace=GRACE)
        else:
            self._it.client.migrate(address, grace=GRACE)


def move(
    it: Pair,
    protocol: MigrationProtocol,
    *,
    to: SimulatedAddress,
    changes: Changes,
    moment: float,
    frozen: float,
) -> None:
    it.imminent(protocol, to if protocol is EXPLICIT else None)
    before = 2 * RTT
    it.network.call_later(before + moment, changes)
    it.network.run_for(RTT / 2)
    it.requests.start(TRAFFIC)
    it.network.run_for(before - RTT / 2)
    it.relocate(to, frozen=frozen)
    it.network.run_until(lambda: it.requests.done, limit=5, what="the traffic's end")
    it.network.run_for(max(0.0, moment - frozen))
    it.exchange(limit=5)
    it.network.run_for(0.7)
    if disagreement(it.client, it.server) is not None:
        it.exchange(limit=5)
        it.network.run_for(0.5)
    assert disagreement(it.client, it.server) is None


@pytest.mark.parametrize(
    ("protocol", "policy"),
    [
        (protocol, policy)
        for protocol in MigrationProtocol
        for policy in (tuple(Policy)[:1] if protocol in SPEAKING_FIRST else Policy)
    ],
)
@pytest.mark.parametrize("nat", [None, NatKind.FULL_CONE])
@pytest.mark.parametrize("frozen", [0.0, RTT / 2, 5 * RTT])
def test_at_every_moment(
    protocol: MigrationProtocol, policy: Policy, nat: NatKind | None, frozen: float
) -> None:
    """There and back, as what was home before is no new address."""
    for moment in MOMENTS:
        with pair(
            server=server_for(protocol, AWAY, HOME), client=ClientMigration(policy=policy), nat=nat
        ) as it:
            changes = Changes(it)
            for to in (AWAY, HOME):
                move(it, protocol, to=to, changes=changes, moment=moment, frozen=frozen)
            for side in (it.client, it.server):
                assert len(events_of(side, MigrationCompleted)) == 2
                assert side.terminated is None


@pytest.mark.parametrize("protocol", SPEAKING_FIRST)
def test_the_first_packet_is_no_probing_one(protocol: MigrationProtocol) -> None:
    """The client does not follow a probing packet; and it may be all that the server may send."""
    with wired_pair(server=server_for(protocol, AWAY)) as (it, wire):
        it.imminent(protocol)
        Changes(it)()
        it.network.run_for(RTT / 2 + 0.001)
        it.host.freeze()
        it.network.run_for(RTT)
        wire.clear()
        it.host.resume(AWAY)
        first = next(sent for sent in wire.sent if sent.source == AWAY)
        assert PATH_CHALLENGE in first
        assert SERVER_MIGRATED in first
        it.exchange(limit=1)
        assert it.client.connection.get_peer_address() == AWAY


@pytest.mark.parametrize("protocol", SPEAKING_FIRST)
def test_the_first_packet_is_lost(protocol: MigrationProtocol) -> None:
    """The client can only be reached at its new address, which is not validated."""
    with wired_pair(server=server_for(protocol, AWAY), nat=NatKind.FULL_CONE) as (it, _):
        it.imminent(protocol)
        it.client.rebind(client_address(4, 10), grace=0.0)
        it.requests.start([[Exchange(100, 100)]])
        it.network.run_for(RTT / 2 + 0.001)
        it.host.freeze()
        it.network.run_for(RTT)
        it.network.filters.append(lambda sent: False)
        it.host.resume(AWAY)
        it.network.filters.clear()
        assert it.exchange(limit=5) < 0.5


@pytest.mark.parametrize("protocol", SPEAKING_FIRST)
def test_the_limit_against_amplification_holds(protocol: MigrationProtocol) -> None:
    """Whatever it wants to say, the server sends three times what has come from there (8.1)."""
    for rest in range(0, 1_200, 100):
        with wired_pair(server=server_for(protocol, AWAY)) as (it, _):
            it.requests.start([[Exchange(10, 50_000)]])
            it.network.run_for(RTT)
            it.imminent(protocol)
            received, sent, new = 0, 0, client_address(4, 10)

            def tap(datagram: Datagram, new: SimulatedAddress = new) -> None:
                nonlocal received, sent
                received += len(datagram.data) * (datagram.source == new)
                sent += len(datagram.data) * (datagram.destination == new)

            it.network.taps.append(tap)
            it.client.migrate(new)
            it.requests.start([[Exchange(rest, 10)]])
            it.network.run_for(RTT / 2 + 0.001)
            it.host.freeze()
            it.network.detach(new)
            it.network.run_for(RTT)
            it.host.resume(AWAY)
            it.network.run_for(0.5)
            assert 0 < sent <= 3 * received


@pytest.mark.parametrize("protocol", SPEAKING_FIRST)
def test_a_challenge_from_a_former_home(protocol: MigrationProtocol) -> None:
    """It moves nobody, and the server that comes back there is followed all the same."""
    with wired_pair(server=server_for(protocol, AWAY)) as (it, _):
        migrate(it, protocol, AWAY)
        it.imminent(protocol)
        challenge = bytes([PATH_CHALLENGE, *range(8)])
        it.deliver(it.client, genuine_elsewhere(it, challenge), HOME)
        it.network.run_for(RTT)
        assert it.client.connection.get_peer_address() == AWAY
        it.deliver(it.client, genuine_elsewhere(it, PING), HOME)
        assert it.client.connection.get_peer_address() == HOME


@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_the_answer_to_a_challenge_is_lost(protocol: MigrationProtocol) -> None:
    """It is acknowledged, so nothing is sent again by itself."""
    moved = client_address(4, 10)
    with wired_pair(server=server_for(protocol, AWAY)) as (it, _):
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        it.client.migrate(moved)
        it.network.run_for(RTT - 0.001)
        it.network.filters.append(lambda sent: sent.source != moved)
        it.network.run_for(RTT / 4)
        it.network.filters.clear()
        it.network.run_for(2)
        assert it.server.connection.get_peer_address() == moved
