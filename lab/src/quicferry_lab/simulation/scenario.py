"""A seed becomes a scenario: who is connected how, what traffic flows, and where the server goes.

A scenario is plain data, so that it can be printed, and changed by hand when a failure is looked
into. Drawn are all protocols, policies and schedulers, pools, both address families, paths with
loss, reordering and duplication that differ from address to address, NATs that give the client
another address while the server moves, clients that move themselves, false alarms, aborted
relocations, several relocations in a row, and clients that cannot be told of an abort. What the
specification says cannot work is not drawn: the symmetric protocols behind a NAT that lets the new
address in only after it has been sent to.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass, replace

from quicferry.protocol.options import Policy, Scheduler
from quicferry.protocol.suite import ALL_PROTOCOLS, MigrationProtocol

from .coincidences import Loss, draw_close_to, draw_losses, draw_pause
from .nat import NatKind
from .network import Path, SimulatedAddress
from .traffic import Answer, Exchange

SYMMETRIC_PROTOCOLS = MigrationProtocol.SYMMETRIC | MigrationProtocol.SYNCHRONIZED_SYMMETRIC
ANNOUNCING_PROTOCOLS = MigrationProtocol.EXPLICIT | MigrationProtocol.SYNCHRONIZED_SYMMETRIC

GRACE = 10.0
"""Seconds; longer than any relocation here takes."""


class Ending(enum.Enum):
    """How a relocation that was announced ends."""

    SWITCH = "switch"
    """The server comes up at its new address."""
    ABORT = "abort"
    """The orchestrator gives it up once the server is ready; the server stays."""
    EARLY_ABORT = "early-abort"
    """It gives it up before the server is ready."""


class Peer(enum.Enum):
    """Whether one of the two sides is a double of the thesis's (see `.thesis`)."""

    OURS = "ours"
    THESIS_SERVER = "thesis-server"
    THESIS_CLIENT = "thesis-client"


class Follow(enum.Enum):
    """When the next move begins."""

    SETTLED = "settled"
    """When all is quiet again."""
    AT_ONCE = "at-once"
    """As soon as the server reports completion, or has given it up, whatever else is under way."""


class ClientChange(enum.Enum):
    """What happens to the client's own address while the server moves."""

    NONE = "none"
    NAT_REBINDING = "nat-rebinding"
    MIGRATION = "migration"


@dataclass(frozen=True)
class Move:
    """One relocation, from its announcement to its end.

    Args:
        protocol: The protocol used for it.
        destination: Where the server goes, or would have gone.
        lanes: The traffic that starts before it.
        wait: Seconds from the start of the traffic to the announcement.
        alarm: Seconds, once ready, in which nothing gets through although the server is there.
        linger: Seconds from then to the freeze, or to giving it up.
        frozen: Seconds from the freeze to the network switch.
        ending: How it ends.
        follow: When the next one begins.
        asked_after: Seconds from readiness to the application's request to look for the server
            (proactive policy); None: it does not ask.
        client_change: What happens to the client's address.
        client_changes_early: Whether it happens before the server is ready.
        client_changes_after: Seconds until then: from readiness, or early from the start of the
            traffic.
        client_grace: Seconds for which the client's old address goes on working.
        losses: Datagrams that are lost, whatever the paths are like.
    """

    protocol: MigrationProtocol
    destination: SimulatedAddress
    lanes: tuple[tuple[Exchange, ...], ...]
    wait: float
    alarm: float
    linger: float
    frozen: float
    ending: Ending
    follow: Follow
    asked_after: float | None
    client_change: ClientChange
    client_changes_after: float
    client_grace: float
    client_changes_early: bool = False
    losses: tuple[Loss, ...] = ()


@dataclass(frozen=True)
class Scenario:
    """Everything about one run.

    Args:
        seed: What it was drawn from, and the seed of the network and the connections.
        protocols: What the client offers.
        policy: The client's policy.
        scheduler: The client's scheduler.
        knows_withdrawals: Whether the client can be told that an announced move will not be.
        probe_interval: The client's probe interval.
        family: 4 or 6.
        server: Where the server starts.
        pool: The addresses it announces in advance.
        paths: The path from the server at an address to the client, and back.
        nat: What stands before the client.
        keep_alive: Seconds between the client's pings while it waits; None: it sends none.
        moves: The relocations.
        peer: Whether one side is a double.
        copies: How many packets to the client somebody copies, and sends faster than the network.
        copied_from: The addresses that the copies seem to come from.
    """

    seed: int
    protocols: MigrationProtocol
    policy: Policy
    scheduler: Scheduler
    knows_withdrawals: bool
    probe_interval: float
    family: int
    server: SimulatedAddress
    pool: tuple[SimulatedAddress, ...]
    paths: dict[SimulatedAddress, tuple[Path, Path]]
    nat: NatKind | None
    keep_alive: float | None
    moves: tuple[Move, ...]
    peer: Peer = Peer.OURS
    copies: int = 0
    copied_from: tuple[SimulatedAddress, ...] = ()


_PROTOCOLS_TO_AND_FRO = [*MigrationProtocol, *SYMMETRIC_PROTOCOLS, *SYMMETRIC_PROTOCOLS]
"""With the symmetric protocols the server speaks first, so there is more to go wrong at once."""


def server_address(family: int, host: int, port: int = 4433) -> SimulatedAddress:
    """The address of one of the hosts that a server can run on."""
    if family == 4:
        return (f"10.0.0.{host}", port)
    return (f"2001:db8::{host:x}", port, 0, 0)


def client_address(family: int, number: int) -> SimulatedAddress:
    """An address of the client, its own or outside of its NAT."""
    if family == 4:
        return (f"10.1.0.{number}", 50_000 + number)
    return (f"2001:db8:1::{number:x}", 50_000 + number, 0, 0)


def draw(seed: int, peer: Peer = Peer.OURS) -> Scenario:
    """The scenario of this seed.

    With a double of the thesis's, there are more relocations in a row and larger pools, packets are
    copied, and round trips take 18 to 250 ms. Nothing can be withdrawn, and the next move begins
    when all is quiet: any acknowledged PATH_RESPONSE ends a migration of the thesis's server.
    """
    if peer is not Peer.OURS:
        return _draw(seed, False, peer)
    rng = random.Random(f"coincidences {seed}")
    scenario = _draw(seed, rng.random() < 0.9, peer)
    if rng.random() < 0.1:
        return scenario
    return _with_coincidences(scenario, rng)


def _draw(seed: int, between_two_places: bool, peer: Peer) -> Scenario:
    is_ours = peer is Peer.OURS
    rng = random.Random(f"scenario {seed}" if is_ours else f"scenario {seed} {peer.value}")
    family = 4 if rng.random() < 0.75 else 6
    protocol = rng.choice(_PROTOCOLS_TO_AND_FRO if between_two_places else list(MigrationProtocol))
    server = server_address(family, 1)

    # All places that the server can be at: three hosts, and one of them with two ports.
    places = [server, server_address(family, 1, 4434)]
    places += [server_address(family, host) for host in range(2, 7 if is_ours else 11)]
    if between_two_places:
        places = [server, rng.choice(places[1:])]
    pool: tuple[SimulatedAddress, ...] = ()
    if protocol is MigrationProtocol.POOL_OF_ADDRESSES:
        # With its first address in the pool, it can come back.
        size = min(rng.choice((1, 1, 2, 3, 6) if is_ours else (1, 2, 3, 6, 9)), len(places))
        first = rng.choice((0, 1)) if 1 < size < len(places) else int(size == 1)
        pool = tuple(rng.sample(places[first:], size))
        places = list(pool)

    symmetric = protocol in SYMMETRIC_PROTOCOLS
    nat = rng.choice((None, None, NatKind.FULL_CONE, *(() if symmetric else tuple(NatKind))))
    knows_withdrawals = rng.random() < 0.75 and is_ours
    counts: tuple[int, ...] = (1, 1, 1, 2, 2, 3) if is_ours else (1, 1, 2, 2, 3, 10)
    count = rng.choice((2, 3, 4, 5) if between_two_places else counts)
    moves = _draw_moves(rng, protocol, server, places, nat, knows_withdrawals, count)
    if not is_ours:
        moves = tuple(replace(move, follow=Follow.SETTLED) for move in moves)
    protocols = ALL_PROTOCOLS if rng.random() < 0.7 else _protocols_of(moves, protocol)
    policy = rng.choice(list(Policy))
    scheduler = rng.choice(list(Scheduler))
    asks = policy is Policy.EAGER or (pool and scheduler is Scheduler.PARALLEL)
    if peer is Peer.THESIS_SERVER and asks:
        # It supports no probes from another address of its client than the one that it knows.
        moves = tuple(replace(move, client_change=ClientChange.NONE) for move in moves)
    if peer is Peer.THESIS_CLIENT:
        # It never moves of itself.
        moves = tuple(
            move
            if move.client_change is ClientChange.NAT_REBINDING
            else replace(move, client_change=ClientChange.NONE)
            for move in moves
        )
    addresses = {server, *pool, *(move.destination for move in moves)}
    restricted = nat in (NatKind.ADDRESS_RESTRICTED, NatKind.PORT_RESTRICTED)
    scenario = Scenario(
        seed=seed,
        protocols=protocols,
        policy=policy,
        scheduler=scheduler,
        knows_withdrawals=knows_withdrawals,
        probe_interval=rng.choice((0.02, 0.04, 0.1)),
        family=family,
        server=server,
        pool=pool,
        paths={address: _draw_paths(rng) for address in sorted(addresses)},
        nat=nat,
        # Where a server's packets reach the client only once the client has sent some itself, a
        # client with nothing to send must keep the way open, as behind any NAT. Not too often:
        # each ping puts off the probe timeout (RFC 9002 6.2.1).
        keep_alive=2.0
        if restricted or any(m.client_change is not ClientChange.NONE for m in moves)
        else None,
        moves=moves,
        peer=peer,
    )
    return scenario if is_ours else _with_double(rng, scenario, places)


def _with_double(
    rng: random.Random, scenario: Scenario, places: list[SimulatedAddress]
) -> Scenario:
    delay = 0.009 * (125 / 9) ** rng.random()
    paths = {}
    for address, ways in scenario.paths.items():
        # A first challenge is answered in one round trip of the new path. Before that nobody knows
        # how long it is; if it were much longer, the challenges sent meanwhile would be too many.
        factor = rng.uniform(0.8, 1.3) * delay / ways[0].delay
        to_client, to_server = (
            replace(
                way,
                delay=way.delay * factor,
                jitter=way.jitter * factor,
                reordering_delay=way.reordering_delay * factor,
            )
            for way in ways
        )
        paths[address] = to_client, to_server
    forged = (client_address(scenario.family, 90), *places)
    return replace(
        scenario,
        paths=paths,
        copies=rng.choice((0, 0, rng.randrange(1, 5), rng.randrange(1, 30))),
        copied_from=tuple(rng.sample(forged, rng.randrange(1, len(forged) + 1))),
    )


def _with_coincidences(scenario: Scenario, rng: random.Random) -> Scenario:
    """Return the same with more at once: see `coincidences`."""
    home, moves = scenario.server, []
    for move in scenario.moves:
        paths = (*scenario.paths[home], *scenario.paths[move.destination])
        moves.append(_with_more_at_once(move, scenario.nat, 2 * max(p.delay for p in paths), rng))
        if move.ending is Ending.SWITCH:
            home = move.destination
    return replace(scenario, moves=tuple(moves), keep_alive=2.0)


def _with_more_at_once(
    move: Move, nat: NatKind | None, round_trip: float, rng: random.Random
) -> Move:
    if move.ending is Ending.SWITCH:
        move = replace(
            move,
            linger=rng.choice((0.0, round_trip, 2 * round_trip, 2 * round_trip)),
            frozen=draw_pause(rng, round_trip),
            alarm=move.alarm if rng.random() < 0.25 else 0.0,
        )
    freeze = move.alarm + move.linger
    switch = freeze + move.frozen
    early = rng.random() < 0.1
    # Early: at the announcement. Else at readiness, the freeze, the switch, or when the client
    # has heard of that, and when its path is validated.
    moments = (
        (move.wait, move.wait + round_trip)
        if early
        else (0.0, freeze, freeze, switch, switch, switch + round_trip)
    )
    change = ClientChange.MIGRATION if nat is None else ClientChange.NAT_REBINDING
    return replace(
        move,
        client_change=change if rng.random() < 0.9 else ClientChange.NONE,
        client_changes_early=early,
        client_changes_after=max(0.0, draw_close_to(rng, moments, round_trip)),
        losses=draw_losses(rng),
    )


def _protocols_of(moves: tuple[Move, ...], first: MigrationProtocol) -> MigrationProtocol:
    protocols = first
    for move in moves:
        protocols |= move.protocol
    return protocols


def _draw_moves(
    rng: random.Random,
    protocol: MigrationProtocol,
    server: SimulatedAddress,
    places: list[SimulatedAddress],
    nat: NatKind | None,
    knows_withdrawals: bool,
    count: int,
) -> tuple[Move, ...]:
    moves: list[Move] = []
    current = server
    for _ in range(count):
        destination = rng.choice([place for place in places if place != current] or [None])
        if destination is None:
            break
        if moves and protocol is not MigrationProtocol.POOL_OF_ADDRESSES:
            given_up = moves[-1].ending is not Ending.SWITCH
            if given_up and protocol in ANNOUNCING_PROTOCOLS and not knows_withdrawals:
                # The client knows of it, and nothing can make it forget.
                destination = moves[-1].destination
            else:
                protocol = rng.choice(_protocols_behind(nat))
        ending = rng.choices(list(Ending), (0.75, 0.15, 0.1))[0]
        moves.append(_draw_move(rng, protocol, destination, ending, nat))
        if ending is Ending.SWITCH:
            current = destination
    if any(move.protocol in SYMMETRIC_PROTOCOLS for move in moves):
        # A server that comes from an address unknown to the client can only be heard at an address
        # of the client that it knows.
        return tuple(replace(move, client_grace=GRACE) for move in moves)
    return tuple(moves)


def _protocols_behind(nat: NatKind | None) -> list[MigrationProtocol]:
    protocols = [MigrationProtocol.EXPLICIT]
    if nat in (None, NatKind.FULL_CONE):
        protocols += list(SYMMETRIC_PROTOCOLS)
    return protocols


def _draw_move(
    rng: random.Random,
    protocol: MigrationProtocol,
    destination: SimulatedAddress,
    ending: Ending,
    nat: NatKind | None,
) -> Move:
    alarm = rng.uniform(0.05, 0.6) if rng.random() < 0.2 else 0.0
    linger = rng.choice((0.0, rng.uniform(0, 0.05), rng.uniform(0, 0.5)))
    frozen = 0.0
    if ending is Ending.SWITCH:
        frozen = rng.choice((0.0, rng.uniform(0, 0.05), rng.uniform(0.05, 0.5), rng.uniform(0, 2)))
    change = ClientChange.NONE
    if rng.random() < 0.25:
        change = ClientChange.MIGRATION if nat is None else ClientChange.NAT_REBINDING
    duration = alarm + linger + frozen
    return Move(
        protocol=protocol,
        destination=destination,
        lanes=tuple(_draw_lane(rng) for _ in range(rng.choice((0, 1, 1, 1, 2, 3)))),
        wait=rng.choice((0.0, rng.uniform(0, 0.05), rng.uniform(0, 0.4))),
        alarm=alarm,
        linger=linger,
        frozen=frozen,
        ending=ending,
        follow=rng.choice(list(Follow)),
        asked_after=rng.uniform(0, duration + 0.1) if rng.random() < 0.7 else None,
        client_change=change,
        client_changes_after=rng.uniform(0, duration + 0.1),
        client_grace=rng.choice((0.0, GRACE)),
    )


def _draw_lane(rng: random.Random) -> tuple[Exchange, ...]:
    match rng.choice(("upload", "download", "both", "requests", "sporadic", "waiting")):
        case "upload":
            return (Exchange(rng.randrange(5_000, 60_000), rng.randrange(100)),)
        case "download":
            return (Exchange(rng.randrange(100), rng.randrange(5_000, 60_000)),)
        case "both":
            size = rng.randrange(5_000, 40_000)
            return (Exchange(size, rng.randrange(5_000, 40_000), answer=Answer.AT_ONCE),)
        case "requests":
            return tuple(
                Exchange(rng.randrange(2_000), rng.randrange(5_000))
                for _ in range(rng.randrange(2, 20))
            )
        case "sporadic":
            return tuple(
                Exchange(rng.randrange(2_000), rng.randrange(5_000), pause=rng.uniform(0, 0.3))
                for _ in range(rng.randrange(1, 5))
            )
        case _:
            return tuple(
                Exchange(rng.randrange(500), rng.randrange(5_000), think=rng.uniform(0, 1.0))
                for _ in range(rng.randrange(1, 3))
            )


def _draw_paths(rng: random.Random) -> tuple[Path, Path]:
    delay = 10 ** rng.uniform(-3, -1)
    rate = rng.choice((None, 10 ** rng.uniform(6.3, 8)))
    troubled = rng.random() < 0.7

    def one_way() -> Path:
        if not troubled:
            return Path(delay=delay, rate=rate)
        return Path(
            delay=delay,
            rate=rate,
            loss=rng.choice((0.0, rng.uniform(0, 0.05))),
            jitter=rng.choice((0.0, rng.uniform(0, delay / 2))),
            reordering=rng.choice((0.0, rng.uniform(0, 0.05))),
            reordering_delay=rng.uniform(0.0005, delay),
            duplication=rng.choice((0.0, rng.uniform(0, 0.05))),
        )

    return one_way(), one_way()
