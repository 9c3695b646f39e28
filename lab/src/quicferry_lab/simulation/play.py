"""Plays a scenario and checks what must hold in every one of them.

During the run the observer and the applications check every packet number, every connection ID and
every byte of the streams. When a move is over both sides must agree on where the server is, no
connection may be lost, no event may have been raised twice, and a false alarm must have left no
trace.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from aioquic.quic.logger import QuicLogger

from quicferry.protocol.address import MigrationAddress
from quicferry.protocol.errors import MigrationErrorCode
from quicferry.protocol.events import HandshakeFinished, PoolAddressAcknowledged
from quicferry.protocol.options import ClientMigration, ServerMigration
from quicferry.protocol.suite import MigrationProtocol
from quicferry.transport import Connection, address_from_network

from .coincidences import Losses, Moment
from .configurations import client_configuration, server_configuration
from .endpoint import Client, ServerEndpoint, ServerHost
from .errors import InvariantError
from .invariants import (
    EventCheck,
    PathStateCheck,
    check_alive,
    check_pool,
    disagreement,
    events_of,
)
from .network import Datagram, SimulatedAddress
from .scenario import ClientChange, Ending, Follow, Move, Peer, Scenario, client_address
from .simulation import Simulation
from .thesis import ThesisClient, ThesisServer
from .traffic import Exchange, Requests, Responder

LIMIT = 60.0
"""Seconds of virtual time that anything may take; much more than anything should."""

ATTEMPTS = 5
"""Requests after which both sides must agree on where the other is."""

Journal = list[tuple[float, str]]
"""Times and words: what was done to the connections from outside."""


@dataclass(frozen=True)
class Outcome:
    """What a run amounted to.

    Attributes:
        migrations: Migrations that were completed.
        false_alarms: Announcements that came to nothing, and timeouts that were mere loss.
        exchanges: Requests whose response was verified.
        duration: Virtual time, seconds.
        slowest: The longest time from a network switch to the client's completion, seconds.
    """

    migrations: int
    false_alarms: int
    exchanges: int
    duration: float
    slowest: float


def play(
    scenario: Scenario, logger: QuicLogger | None = None, journal: Journal | None = None
) -> Outcome:
    """Play a scenario.

    Args:
        scenario: What happens.
        logger: Gets what both sides log.
        journal: Gets what is done to them.

    Raises:
        SimulationError: Something that must hold does not, or does not come about in time.
    """
    with Simulation(scenario.seed) as simulation:
        return _Play(simulation, scenario, logger, [] if journal is None else journal).run()


class _Play:
    def __init__(
        self,
        simulation: Simulation,
        scenario: Scenario,
        logger: QuicLogger | None,
        journal: Journal,
    ) -> None:
        self.scenario = scenario
        self.journal = journal
        self.network = simulation.network
        for address, (to_client, to_server) in scenario.paths.items():
            self.network.set_path(to_client, source=address)
            self.network.set_path(to_server, destination=address)
        pool = tuple(_migration_address(address) for address in scenario.pool)
        self.host: ServerHost = simulation.server(
            scenario.server,
            server_configuration(ServerMigration(pool=pool), logger),
            connection_type=ThesisServer if scenario.peer is Peer.THESIS_SERVER else Connection,
            application=Responder,
        )
        self.client: Client = simulation.client(
            client_address(scenario.family, 1),
            client_configuration(
                ClientMigration(
                    protocols=scenario.protocols,
                    policy=scenario.policy,
                    scheduler=scenario.scheduler,
                    seed=scenario.seed,
                    probe_interval=scenario.probe_interval,
                ),
                logger,
            ),
            connection_type=ThesisClient if scenario.peer is Peer.THESIS_CLIENT else Connection,
            nat=scenario.nat,
            external=client_address(scenario.family, 2),
        )
        self.losses = Losses(())
        self.network.filters.append(lambda sent: self.losses.allows(sent, self.host.address))
        simulation.observer.may_reuse = self.may_reuse
        self.without_connection_ids: set[str] = set()
        self.copies = scenario.copies
        self.random = random.Random(f"copies {scenario.seed}")
        self.requests = Requests(self.client)
        self.client_addresses = 2
        self.client_changes_until = 0.0
        self.migrations = 0
        self.aborts = 0

    @property
    def server(self) -> ServerEndpoint:
        return self.host.endpoints[0]

    def may_reuse(self, sender: str) -> bool:
        """Whether an endpoint may use a connection ID again: its peer replaces none."""
        if self.scenario.peer is Peer.OURS:
            return False
        side = self.client if sender == self.client.name else self.server
        if self.scenario.peer is Peer.THESIS_SERVER and side is self.server:
            return True
        if side.migrating.spare_connection_ids == 0:
            self.without_connection_ids.add(sender)
        return sender in self.without_connection_ids

    def copy(self, datagram: Datagram) -> None:
        """Send what is on its way to the client from a forged address, so that it comes first."""
        if datagram.destination != self.client.external or self.copies <= 0:
            return
        if self.random.random() < 0.5:
            self.copies -= 1
            forged = self.random.choice(self.scenario.copied_from)
            # What seems to come from home and comes first takes the genuine packet's place: who can
            # do that with every packet keeps the two apart for as long as he likes.
            if forged not in (datagram.source, self.client.connection.get_peer_address()):
                self.network.call_later(0.001, lambda: self.client.receive(datagram.data, forged))

    def note(self, words: str) -> None:
        self.journal.append((self.network.now, words))

    def run(self) -> Outcome:
        start = self.network.now
        self.client.migrating.knows_withdrawals = self.scenario.knows_withdrawals
        self.client.connect(self.scenario.server)
        self.network.run_until(
            lambda: bool(self.host.endpoints) and self.client.handshake_complete,
            limit=LIMIT,
            what="handshake",
        )
        self.run_until(lambda: bool(events_of(self.server, HandshakeFinished)), "confirmation")
        if self.scenario.keep_alive is not None:
            self.keep_alive(self.scenario.keep_alive)
        if self.scenario.pool:
            acknowledged = len(self.scenario.pool)
            self.run_until(
                lambda: len(events_of(self.server, PoolAddressAcknowledged)) == acknowledged,
                "acknowledgement of the pool",
            )
            check_pool(self.client, self.scenario.pool)

        self.network.taps.append(self.copy)
        self.events = EventCheck(self.client, self.server)
        path_state = PathStateCheck(self.client, self.scenario.server)
        self.network.watchers += [path_state, self.events]
        for number, move in enumerate(self.scenario.moves, 1):
            self.move(move)
            hurried = move.follow is Follow.AT_ONCE and number < len(self.scenario.moves)
            if not hurried:
                self.settle()
            elif move.ending is Ending.SWITCH:
                self.complete_server()
        return Outcome(
            self.migrations,
            self.aborts + path_state.returns,
            self.requests.completed,
            self.network.now - start,
            self.events.slowest,
        )

    def keep_alive(self, interval: float) -> None:
        def ping() -> None:
            if self.client.terminated is None:
                self.client.connection.send_ping(1)
                self.client.call_later(interval, ping)

        self.client.call_later(interval, ping)

    # One move.

    def move(self, move: Move) -> None:
        self.note("traffic starts")
        self.requests.start(move.lanes)
        self.losses = Losses(move.losses)
        if move.client_changes_early:
            self.schedule_client_change(move)
        self.network.run_for(move.wait)

        target = None
        if move.protocol is MigrationProtocol.EXPLICIT:
            target = address_from_network(move.destination)
        unfinished = MigrationErrorCode.HANDSHAKE_NOT_FINISHED
        self.run_until(
            lambda: self.server.migrating.migration_obstacle(move.protocol, target) != unfinished,
            "the handshake's end",
        )
        self.events.begin(move)
        self.losses.now(Moment.ANNOUNCEMENT)
        self.note(f"imminent: {move.protocol.name} to {move.destination}")
        self.server.migrating.imminent_migration(move.protocol, target, now=self.network.now)
        self.server.flush()
        if move.ending is Ending.EARLY_ABORT:
            self.abort()
            return
        self.run_until(self.events.ready, "readiness")
        self.note("ready")
        self.losses.now(Moment.READINESS)
        self.schedule(move)
        if move.alarm:
            self.alarm(move.alarm)
        self.network.run_for(move.linger)
        if move.ending is Ending.ABORT:
            self.abort()
            return
        self.note("freeze")
        self.host.freeze()
        self.network.run_for(move.frozen)
        self.note(f"network switch to {move.destination}")
        self.losses.now(Moment.SWITCH)
        self.events.switched()
        self.host.resume(move.destination)
        self.migrations += 1

    def abort(self) -> None:
        self.note("abort")
        self.server.migrating.abort_migration(now=self.network.now)
        self.server.flush()
        self.aborts += 1

    def schedule(self, move: Move) -> None:
        """What else happens on the way, at its time."""
        if move.asked_after is not None:

            def ask() -> None:
                self.note("client is asked to look for the server")
                self.client.migrating.probe_server_address(now=self.network.now)

            self.client.call_later(move.asked_after, ask)
        if not move.client_changes_early:
            self.schedule_client_change(move)

    def schedule_client_change(self, move: Move) -> None:
        if move.client_change is not ClientChange.NONE:
            self.client_changes_until = self.network.now + move.client_changes_after
            self.network.call_later(
                move.client_changes_after, lambda: self.change_client_address(move)
            )

    def change_client_address(self, move: Move) -> None:
        self.client_addresses += 1
        address = client_address(self.scenario.family, self.client_addresses)
        self.note(f"client, {move.client_change.value}: {address}")
        self.losses.now(Moment.CLIENT_CHANGE)
        if move.client_change is ClientChange.MIGRATION:
            # It needs one for each place where it looks for its server, its server needs one, and
            # it must stay without (RFC 9000 9.5).
            places = 1 + max(1, len(self.scenario.pool))
            server_spares = self.server.migrating.spare_connection_ids
            if self.client.spare_connection_ids < places or not server_spares:
                self.note("client stays, for want of connection IDs")
            else:
                self.client.migrate(address, grace=move.client_grace)
        else:
            self.client.rebind(address, grace=move.client_grace)

    def alarm(self, duration: float) -> None:
        """Nothing gets through for a while, but the server is where it was."""

        def nothing(datagram: Datagram) -> bool:
            return False

        self.note(f"alarm for {duration:.3f} s")
        self.network.filters.append(nothing)
        self.network.run_for(duration)
        self.network.filters.remove(nothing)

    # Its end.

    def complete_server(self) -> None:
        """Go on until the server is complete, and not a moment longer."""
        self.run_until(
            lambda: self.events.completed(self.server) or self.requests.done, "the server's end"
        )
        if not self.events.completed(self.server):
            self.exchange()
        self.run_until(lambda: self.events.completed(self.server), "completion at server")

    def settle(self) -> None:
        """Let the traffic end, and then all that is left of the migrations."""
        self.run_until(lambda: self.requests.done, "the traffic's end")
        self.network.run_for(max(0.0, self.client_changes_until - self.network.now))
        self.exchange()
        for side in (self.client, self.server):
            self.run_until(partial(self.events.completed, side), f"completion at {side.name}")
        self.run_until(
            lambda: self.server.migrating.migration_state == "idle", "the withdrawal's end"
        )
        # A false alarm or a lost PATH_RESPONSE may still be about, which the next packets settle.
        for _ in range(ATTEMPTS):
            # Acknowledgements, retirements of connection IDs, and late duplicates.
            self.network.run_for(0.5)
            if disagreement(self.client, self.server) is None:
                break
            self.exchange()
        else:
            raise InvariantError(disagreement(self.client, self.server))
        if self.scenario.peer is Peer.THESIS_SERVER:
            # A late acknowledgement of a PATH_RESPONSE would end the next migration.
            self.run_until(
                lambda: not self.server.migrating.path_estimate.bytes_in_flight, "acknowledgements"
            )
        self.events.check()

    def exchange(self) -> None:
        self.note("last request")
        self.requests.start([[Exchange(1, 1)]])
        self.run_until(lambda: self.requests.done, "a last request")

    def run_until(self, condition: Callable[[], bool], what: str) -> None:
        def holds() -> bool:
            check_alive(self.client, self.server)
            return condition()

        self.network.run_until(holds, limit=LIMIT, what=what)


def _migration_address(address: SimulatedAddress) -> MigrationAddress:
    parsed = address_from_network(address)
    assert parsed is not None
    return MigrationAddress.of(parsed)
