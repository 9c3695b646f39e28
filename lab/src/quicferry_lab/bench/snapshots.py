"""Connections as bytes: their size, and what it costs to move a thousand of them.

The peer that freeze and thaw are compared with is a handshake: what a client that has to connect
again costs both sides. As in `scale`, nothing but the connections is measured: datagrams are handed
over directly, and time on the path is virtual.
"""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe

from aioquic.quic import events

from quicferry.protocol import (
    MigrationCompleted,
    MigrationProtocol,
    MigrationReady,
    ServerMigration,
)
from quicferry.transport import Connection, NetworkAddress, activate, commit, freeze, thaw
from quicferry_lab.simulation import server_configuration

from .report import Figure
from .scale import Pair

_CONNECTIONS = 1000
_ROUNDS = 5
_BATCH = 100
_ROUND_TRIPS = 6
"""Round trips that a client may take to follow its server and get an answer."""
_DESTINATION: NetworkAddress = ("192.0.2.2", 4433)
_REQUEST = b"Is anybody there?"
_MILLISECONDS = 1000

Datagrams = list[bytes]


def figures() -> Iterator[Figure]:
    """Measure, and yield each figure as it is known."""
    yield Figure(
        "snapshot of an idle connection",
        len(freeze(Pair(0).server, now=1.0)),
        "bytes",
        at_most=4096,
    )
    yield from _beside_a_handshake()
    pairs = [Pair(number) for number in range(_CONNECTIONS)]
    durations = [_move_all(pairs) for _ in range(_ROUNDS)]
    yield Figure(
        "1,000 connections: first freeze to last thaw, one process",
        statistics.median(durations),
        "s",
        at_most=1.0,
    )
    yield from _between_processes(pairs)


# One connection


def _beside_a_handshake() -> Iterator[Figure]:
    costs = [_costs() for _ in range(_ROUNDS)]
    handshake, freezing, thawing = (statistics.median(cost) for cost in zip(*costs, strict=True))
    yield Figure(
        "freeze and thaw of an idle connection, processor time",
        (freezing + thawing) * _MILLISECONDS,
        "ms",
        at_most=1.0,
        note=f"{freezing * _MILLISECONDS:.2f} and {thawing * _MILLISECONDS:.2f} ms",
    )
    yield Figure(
        "  the same, against a new connection of the client",
        statistics.median(
            (freezing + thawing) / handshake for handshake, freezing, thawing in costs
        ),
        "x handshake",
        at_most=0.25,
        note=f"handshake: {handshake * _MILLISECONDS:.2f} ms, both sides",
    )


def _costs() -> tuple[float, float, float]:
    """Return the processor time in seconds of a handshake, a freeze and a thaw."""
    gc.collect()
    start = time.process_time()
    pairs = [Pair(number) for number in range(_BATCH)]
    handshake = time.process_time() - start
    gc.collect()
    start = time.process_time()
    snapshots = [freeze(pair.server, now=pair.now) for pair in pairs]
    freezing = time.process_time() - start
    gc.collect()
    start = time.process_time()
    copies = [_thaw(snapshot, pair) for snapshot, pair in zip(snapshots, pairs, strict=True)]
    thawing = time.process_time() - start
    assert len(copies) == _BATCH
    return handshake / _BATCH, freezing / _BATCH, thawing / _BATCH


def _thaw(snapshot: bytes, pair: Pair) -> Connection:
    return thaw(snapshot, configuration=pair.server.configuration, now=pair.now)


# All of a server, in one process


def _move_all(pairs: list[Pair]) -> float:
    """Put copies in the place of all server connections; return how many seconds that took."""
    gc.collect()
    start = time.perf_counter()
    snapshots = [freeze(pair.server, now=pair.now) for pair in pairs]
    copies = [_thaw(snapshot, pair) for snapshot, pair in zip(snapshots, pairs, strict=True)]
    duration = time.perf_counter() - start
    for pair, copy in zip(pairs, copies, strict=True):
        _go_on(pair, copy)
    return duration


def _go_on(pair: Pair, copy: Connection) -> None:
    activate(copy, now=pair.now)
    commit(copy)
    pair.server = copy


# All of a server, from one process to another


@dataclass(frozen=True)
class _Arrival:
    """What the destination has to tell when it has all connections.

    Attributes:
        at: When the last one was thawed, by the clock that both processes share.
        switching: Seconds that the network switch and the activation of all have taken.
        flights: The first datagrams of each.
    """

    at: float
    switching: float
    flights: list[Datagrams]


def _between_processes(pairs: list[Pair]) -> Iterator[Figure]:
    for pair in pairs:
        pair.server.imminent_migration(MigrationProtocol.SYMMETRIC, now=pair.now)
        while (event := pair.server.next_migration_event()) is not None:
            assert isinstance(event, MigrationReady)
    with _destination() as pipe:
        gc.collect()
        start = time.monotonic()
        for pair in pairs:
            pipe.send_bytes(freeze(pair.server, now=pair.now))
        pipe.send_bytes(b"")
        arrival: _Arrival = pipe.recv()
        yield Figure(
            "1,000 connections: the same, from process to process",
            arrival.at - start,
            "s",
            at_most=1.0,
            note="one after the other through a pipe",
        )
        yield Figure(
            "  network switch and activation of all", arrival.switching * _MILLISECONDS, "ms"
        )
        followed = _follow(pairs, pipe, arrival.flights)
    yield Figure(
        "  clients that followed and got an answer",
        followed,
        f"of {_CONNECTIONS}",
        at_least=_CONNECTIONS,
    )


def _follow(pairs: list[Pair], pipe: Pipe, flights: list[Datagrams]) -> int:
    """Let every client ask something of its server, which is in the other process.

    Returns:
        How many migrations are complete and have their answer, on both sides.
    """
    now = max(pair.now for pair in pairs)
    answers = [b""] * len(pairs)
    for pair in pairs:
        pair.client.send_stream_data(pair.client.get_next_available_stream_id(), _REQUEST, True)
    for _ in range(_ROUND_TRIPS):
        now += 0.01
        replies = []
        for number, (pair, flight) in enumerate(zip(pairs, flights, strict=True)):
            for data in flight:
                pair.client.receive_datagram(data, _DESTINATION, now)
            for event in iter(pair.client.next_event, None):
                if isinstance(event, events.StreamDataReceived):
                    answers[number] += event.data
            replies.append([data for data, _ in pair.client.datagrams_to_send(now)])
        now += 0.01
        pipe.send((now, [pair.client_address for pair in pairs], replies))
        flights = pipe.recv()
    pipe.send(None)
    completed: list[bool] = pipe.recv()
    return sum(
        is_complete and answer == _REQUEST
        for is_complete, answer in zip(completed, answers, strict=True)
    )


@contextmanager
def _destination() -> Iterator[Pipe]:
    """Start the process that the connections go to."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_receive_connections, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        here.recv()  # it is up
        yield here
    finally:
        here.close()
        process.join(10)
        process.kill()


def _receive_connections(pipe: Pipe) -> None:
    """Thaw what comes through the pipe, and serve it; the other process."""
    configuration = server_configuration(ServerMigration())
    thaw(freeze(Pair(0).server, now=1.0), configuration=configuration, now=1.0)
    gc.collect()
    pipe.send(None)
    copies = []
    while data := pipe.recv_bytes():
        copies.append(thaw(data, configuration=configuration, now=1.0))
    at = time.monotonic()
    start = time.process_time()
    for copy in copies:
        copy.network_switch(_DESTINATION, now=1.0)
        activate(copy, now=1.0)
    switching = time.process_time() - start
    flights = [[data for data, _ in copy.datagrams_to_send(1.0)] for copy in copies]
    pipe.send(_Arrival(at, switching, flights))
    while (turn := pipe.recv()) is not None:
        now, addresses, requests = turn
        flights = []
        for copy, address, request in zip(copies, addresses, requests, strict=True):
            for data in request:
                copy.receive_datagram(data, address, now)
            for event in iter(copy.next_event, None):
                if isinstance(event, events.StreamDataReceived):
                    copy.send_stream_data(event.stream_id, event.data, event.end_stream)
            flights.append([data for data, _ in copy.datagrams_to_send(now)])
        pipe.send(flights)
    pipe.send([_is_complete(copy) for copy in copies])


def _is_complete(copy: Connection) -> bool:
    return any(
        isinstance(event, MigrationCompleted) for event in iter(copy.next_migration_event, None)
    )
