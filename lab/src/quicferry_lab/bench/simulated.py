"""Figures in virtual time: what the protocols cost, without a machine's noise.

The setting is that of the thesis's experiment 1 without its change of paths: sporadic requests of
1 KB each way, a relocation, two seconds of silence, and the next request, whose time is compared
with that of the request before the relocation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quicferry.protocol import (
    Address,
    ClientMigration,
    MigrationAddress,
    MigrationProtocol,
    MigrationReady,
    Policy,
    Scheduler,
    ServerMigration,
)
from quicferry.transport import address_from_network
from quicferry_lab.simulation import (
    Exchange,
    Path,
    Requests,
    Responder,
    SimulatedAddress,
    Simulation,
    client_configuration,
    server_configuration,
)

from .report import Figure

_RTT = 0.018
_SOURCE: SimulatedAddress = ("192.0.2.1", 4433)
_DESTINATION: SimulatedAddress = ("192.0.2.2", 4433)
_CLIENT: SimulatedAddress = ("198.51.100.1", 50000)
_REQUESTS_BEFORE = 10
_SILENCE = 2.0
_MILLISECONDS = 1000


@dataclass(frozen=True)
class Timing:
    """What one relocation took, in seconds of virtual time."""

    ready: float
    before: float
    after: float
    probe_timeout: float


def relocate(
    protocol: MigrationProtocol, client: ClientMigration, pool: tuple[SimulatedAddress, ...] = ()
) -> Timing:
    """Relocate a server with one client.

    Args:
        protocol: The protocol to use.
        client: The client's choices; a proactive one is asked to look right before its request.
        pool: The server's pool, in which the destination has to be.
    """
    addresses = tuple(MigrationAddress.of(_address(address)) for address in pool)
    with Simulation(path=Path(delay=_RTT / 2)) as simulation:
        network = simulation.network
        host = simulation.server(
            _SOURCE, server_configuration(ServerMigration(pool=addresses)), application=Responder
        )
        endpoint = simulation.client(_CLIENT, client_configuration(client))
        requests = Requests(endpoint)

        def request() -> float:
            start = network.now
            requests.start([(Exchange(1024, 1024),)])
            network.run_until(lambda: requests.done, limit=30, what="request")
            return network.now - start

        endpoint.connect(_SOURCE)
        network.run_until(lambda: endpoint.handshake_complete, limit=5, what="handshake")
        before = 0.0
        for _ in range(_REQUESTS_BEFORE):
            before = request()
            network.run_for(_SILENCE)

        server = host.endpoints[0]
        start = network.now
        server.migrating.imminent_migration(
            protocol,
            _address(_DESTINATION) if protocol is MigrationProtocol.EXPLICIT else None,
            now=start,
        )
        server.flush()
        network.run_until(
            lambda: any(isinstance(event, MigrationReady) for _, event in server.migration_events),
            limit=5,
            what="readiness",
        )
        ready = network.now - start
        host.freeze()
        host.resume(_DESTINATION)
        network.run_for(_SILENCE)
        probe_timeout = endpoint.migrating.path_estimate.probe_timeout
        if client.policy is Policy.PROACTIVE:
            endpoint.migrating.probe_server_address(now=network.now)
        return Timing(ready, before, request(), probe_timeout)


def figures() -> Iterator[Figure]:
    """Measure, and yield each figure as it is known."""
    explicit = MigrationProtocol.EXPLICIT
    for policy in Policy:
        timing = relocate(explicit, ClientMigration(policy=policy))
        if policy is Policy.REACTIVE:
            yield Figure(
                "Explicit, one client: imminent to ready",
                timing.ready * _MILLISECONDS,
                "ms",
                at_most=_RTT * _MILLISECONDS,
                note="one RTT of 18 ms",
            )
            yield Figure(
                "first request after the relocation: reactive Explicit",
                (timing.after - timing.before) / timing.probe_timeout,
                "PTO more",
                at_most=1,
                note=f"{timing.after * _MILLISECONDS:.1f} ms",
            )
        else:
            yield _first_request(f"{policy.value} Explicit", timing)
    for protocol in (MigrationProtocol.SYMMETRIC, MigrationProtocol.SYNCHRONIZED_SYMMETRIC):
        name = (protocol.name or "").replace("_", " ").title()
        yield _first_request(name, relocate(protocol, ClientMigration()))

    def pool_of(size: int, scheduler: Scheduler) -> float:
        others = tuple((f"203.0.113.{number}", 4433) for number in range(1, size))
        timing = relocate(
            MigrationProtocol.POOL_OF_ADDRESSES,
            ClientMigration(scheduler=scheduler),
            pool=(*others, _DESTINATION),
        )
        # The timeout itself depends on the samples that happened to be taken before it.
        return (timing.after - timing.probe_timeout) * _MILLISECONDS

    pool_of_one = pool_of(1, Scheduler.PARALLEL)
    yield Figure(
        "the same, less the probe timeout: parallel pool of 6",
        pool_of(6, Scheduler.PARALLEL),
        "ms",
        at_most=round(pool_of_one, 3),
        note="bound: a pool of 1",
    )
    yield Figure("  for comparison: cyclic pool of 6", pool_of(6, Scheduler.CYCLIC), "ms")


def _first_request(name: str, timing: Timing) -> Figure:
    return Figure(
        f"first request after the relocation: {name}",
        timing.after / timing.before,
        "x before",
        at_most=1.05,
        note=f"{timing.after * _MILLISECONDS:.1f} ms",
    )


def _address(network_address: SimulatedAddress) -> Address:
    address = address_from_network(network_address)
    assert address is not None
    return address
