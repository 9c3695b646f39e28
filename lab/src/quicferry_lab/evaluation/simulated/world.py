"""The simulated world of a run: its server, its clients, its paths, and what it has found.

All clients share one host, so they share the paths too, as those of the other backends do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial

from quicferry.protocol import (
    ClientMigration,
    MigrationAddress,
    MigrationProtocol,
    Policy,
    Scheduler,
    ServerMigration,
    protocol_from_name,
)
from quicferry.transport import Connection, address_from_network
from quicferry_lab.evaluation.result import At, Relocation, Request, Result
from quicferry_lab.evaluation.run import WITHOUT, Peer, Run
from quicferry_lab.evaluation.workload import Requests, stagger
from quicferry_lab.simulation import (
    Endpoint,
    Guard,
    Network,
    Path,
    Sharing,
    SimulatedAddress,
    Simulation,
    SimulationError,
    ThesisServer,
    client_configuration,
    server_configuration,
)

from .http import HttpClient, HttpServer, describe, speak_http3
from .mover import Mover

SOURCE: SimulatedAddress = ("192.0.2.1", 4433)
DESTINATION: SimulatedAddress = ("192.0.2.2", 4433)
ACCESS_POINTS = ("198.51.100.1", "203.0.113.1")
"""Where clients are: all of them at the first one; one that moves goes back and forth."""

LIMIT = 60.0
"""Seconds that anything may take which is expected to happen."""

STAGGER = 1.0
"""Seconds that many clients take to connect."""

_FIRST_CLIENT_PORT = 20_000
_LONGEST_DATAGRAM = 1500
_SHORTEST_QUEUE = 20
_SERVERS = {Peer.OURS: Connection, Peer.THESIS_SERVER: ThesisServer}
_SEARCHING = MigrationProtocol.EXPLICIT | MigrationProtocol.POOL_OF_ADDRESSES


class World:
    """Everything that a script needs.

    Args:
        run: The run.
        simulation: Where it takes place, not yet begun.

    Attributes:
        run: The run.
        network: The clock.
        clients: The clients; they are not connected yet.
        mover: Moves the server.
        problems: What was not as it should be, so far.
    """

    def __init__(self, run: Run, simulation: Simulation) -> None:
        self.run = run
        self.network: Network = simulation.network
        self.problems: list[str] = []
        protocol = None if run.protocol == WITHOUT else protocol_from_name(run.protocol)
        migration = None if protocol is None else ServerMigration(pool=_pool(run))
        self._protocol = protocol or MigrationProtocol(0)
        self.mover = Mover(migration, self._protocol)
        self.host = simulation.server(
            SOURCE,
            speak_http3(server_configuration(migration)),
            connection_type=_SERVERS[run.peer],
            application=self._accept,
        )
        self.clients = [
            HttpClient(
                simulation.client(
                    self.client_address(0, number),
                    speak_http3(client_configuration(_client_migration(run, protocol, number))),
                ),
                number,
                Requests(run.workload, run.seed, number),
                locate,
            )
            for number in range(1, run.clients + 1)
        ]
        if run.peer is Peer.THESIS_SERVER:
            # It keeps its connection ID when it moves; a client of ours changes it all the same.
            ours = {client.endpoint.name for client in self.clients}
            simulation.observer.may_reuse = lambda sender: sender not in ours
        self.mover.move(self.host, [client.endpoint for client in self.clients])
        self.set_path(SOURCE, source_path(run))
        self.set_path(DESTINATION, destination_path(run))

    def client_address(self, access_point: int, number: int) -> SimulatedAddress:
        """Return the address of a client at one of the two access points."""
        return (ACCESS_POINTS[access_point % len(ACCESS_POINTS)], _FIRST_CLIENT_PORT + number)

    def set_path(self, host: SimulatedAddress, path: Path) -> None:
        """Use a path between all clients and a host, in both directions."""
        self.network.set_path(path, source=host)
        self.network.set_path(path, destination=host)

    def _accept(self, endpoint: Endpoint) -> HttpServer:
        self.mover.watch_server(endpoint)
        return HttpServer(endpoint)

    # Steps of scripts

    @property
    def only(self) -> HttpClient:
        """The client of a run that has one."""
        (client,) = self.clients
        return client

    def connect(self) -> None:
        """Let all clients connect; if there are many, one after the other."""
        for number, client in enumerate(self.clients, 1):
            share = stagger(self.run.seed, number) if len(self.clients) > 1 else 0.0
            self.network.call_later(share * STAGGER, partial(client.endpoint.connect, SOURCE))
        # A client that is there for its server is there for itself too.
        self.wait(lambda: self.mover.connected == len(self.clients), "all handshakes")

    def wait(self, condition: Callable[[], bool], what: str, within: float = LIMIT) -> None:
        """Wait for what must happen.

        Raises:
            SimulationError: It does not within so many seconds, or the last client is lost.
        """

        def is_over() -> bool:
            return condition() or self._are_all_lost()

        self.network.run_until(is_over, limit=within, what=what)
        if not condition():
            raise SimulationError(f"{what}: no client is left")

    def wait_answered(self, client: HttpClient, number: int) -> None:
        """Wait until a client has so many of its requests answered.

        Raises:
            SimulationError: One of them is not for too long.
        """
        for due in range(client.completed + 1, number + 1):
            self.wait(
                partial(_has_answered, client, due),
                f"the response to request {due}",
                LIMIT + self.run.pause,
            )

    def end(self) -> None:
        """Let no further request be sent, and wait for the responses that are due."""
        for client in self.clients:
            client.stop()
        self.wait(lambda: all(client.is_idle for client in self.clients), "the last responses")

    # Steps of relocations

    def relocate(self, destination: SimulatedAddress) -> None:
        """Let the server that was told to get ready go to its destination, and begin there.

        Raises:
            SimulationError: It is not ready in time.
        """
        self.wait(lambda: self.mover.is_ready, "a server that is ready")
        self.mover.freeze()
        assert self.run.silence is not None, "in the simulation this is always assumed"
        self.network.run_for(self.run.silence)
        self.mover.restore(destination)

    def wait_completed(self) -> None:
        """Wait until all have followed.

        Raises:
            SimulationError: They have not in time.
        """
        self.wait(lambda: self.mover.is_completed, "a migration that is completed")

    def tell_proactive(self) -> None:
        """Tell the clients that asked for it that they may look for their server now."""
        if self.run.policy != Policy.PROACTIVE.value or not self._protocol & _SEARCHING:
            return
        for client in self.clients:
            if not client.is_lost:
                client.endpoint.migrating.probe_server_address(now=self.network.now)
                client.endpoint.flush()

    # What was found

    def result(self) -> Result:
        """Return what was found up to now."""
        requests: list[Request] = []
        lost = 0
        for client in self.clients:
            requests += client.rows + client.outstanding("not answered")
            if client.endpoint.terminated is not None:
                lost += 1
                how = describe(client.endpoint.terminated)
                self.problems.append(f"client {client.number} has lost its connection: {how}")
        begin = min((each.started for each in requests), default=self.network.now)
        requests.sort(key=lambda each: (each.client, each.number))
        self.problems += [
            f"request {each.number} of client {each.client} failed: {each.error}"
            for each in requests
            if each.error
        ]
        return Result(
            self.run,
            requests=tuple(replace(each, started=each.started - begin) for each in requests),
            relocations=tuple(_since(begin, each) for each in self.mover.relocations),
            lost_clients=lost,
            problems=tuple(self.problems),
        )

    def _are_all_lost(self) -> bool:
        return all(client.is_lost for client in self.clients)


def begin(run: Run) -> Simulation:
    """Return the simulation that a run takes place in."""
    return Simulation(run.seed, sharing=Sharing.PER_HOST, observer=Guard())


def locate(address: SimulatedAddress) -> At:
    """Return which host an address is at."""
    return At.SOURCE if address[0] == SOURCE[0] else At.DESTINATION


def source_path(run: Run) -> Path:
    """Return the path that a run calls source."""
    return _path(run.source_rtt_ms, run.source_rate_mbit, run.loss_percent)


def destination_path(run: Run) -> Path:
    """Return the path that a run calls destination."""
    return _path(run.destination_rtt_ms, run.destination_rate_mbit, run.loss_percent)


def _path(rtt_ms: float, rate_mbit: float, loss_percent: float) -> Path:
    rtt, rate = rtt_ms / 1000, rate_mbit * 1e6
    queue = max(round(rate / 8 * rtt), _SHORTEST_QUEUE * _LONGEST_DATAGRAM)
    return Path(delay=rtt / 2, rate=rate, queue=queue, loss=loss_percent / 100)


def _pool(run: Run) -> tuple[MigrationAddress, ...]:
    """Return the server's pool: the destination, and before it others where nobody listens.

    In a run in which the server follows its client it goes back as well: no address is in vain.
    """
    if not run.pool_size:
        return ()
    if run.interval:
        addresses = [SOURCE, DESTINATION]
    else:
        others = range(1, run.pool_size)
        host, port = DESTINATION[0], DESTINATION[1]
        addresses = [*((host, port + number) for number in others), DESTINATION]
    found = [address_from_network(address) for address in addresses]
    return tuple(MigrationAddress.of(each) for each in found if each is not None)


def _client_migration(
    run: Run, protocol: MigrationProtocol | None, number: int
) -> ClientMigration | None:
    if protocol is None:
        return None
    return ClientMigration(
        protocols=protocol,
        policy=Policy(run.policy),
        scheduler=Scheduler(run.scheduler),
        seed=run.seed * 10_000 + number,
    )


def _has_answered(client: HttpClient, number: int) -> bool:
    return client.completed >= number


def _since(begin: float, relocation: Relocation) -> Relocation:
    """Return a relocation whose instants are counted from `begin`."""
    instants = {
        field.name: value - begin
        for field in fields(relocation)
        if field.name.endswith("_at") and (value := getattr(relocation, field.name)) is not None
    }
    return replace(relocation, **instants)
