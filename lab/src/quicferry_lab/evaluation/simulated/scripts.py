"""What happens in a run, script by script."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quicferry_lab.evaluation.run import WITHOUT, Run, Script
from quicferry_lab.evaluation.workload import phase

from .http import Pace
from .world import DESTINATION, SOURCE, World, destination_path, source_path

SETTLING = 0.2
"""Seconds from the last response until a quiet server is frozen.

The time that it takes to begin with anything. Without it the acknowledgement of that response would
be lost, and the server would send it again from its new address: what is asked is what the first
*request* takes.
"""

A_LITTLE = 0.1
"""Seconds after a restore, to be sure that a request finds the server restored."""


def baseline(world: World) -> None:
    """Requests, and no relocation."""
    world.connect()
    for client in world.clients:
        client.begin(0, _until(world.run, world.run.requests))
    for client in world.clients:
        world.wait_answered(client, world.run.requests or 0)


def first_request(world: World) -> None:
    """Measure the first request to a server that has been moved."""
    run, client, network = world.run, world.only, world.network
    last = run.relocate_after or 0
    world.connect()
    client.begin(0, _until(run, last))
    _announce(world)
    world.wait_answered(client, last)
    answered_at = network.now
    network.run_for(SETTLING)
    world.relocate(DESTINATION)
    network.run_for(max(A_LITTLE, answered_at + run.quiet - network.now))
    world.tell_proactive()
    client.begin(0, _until(run, run.requests))
    world.wait_answered(client, run.requests or 0)
    world.wait_completed()


def under_load(world: World) -> None:
    """Move the server while requests are under way."""
    run, client = world.run, world.only
    world.connect()
    client.begin(0, _until(run, run.requests))
    _announce(world)
    world.wait_answered(client, run.relocate_after or 0)
    world.relocate(DESTINATION)
    world.tell_proactive()
    world.wait_answered(client, run.requests or 0)
    world.wait_completed()


def notification(world: World) -> None:
    """Tell the server to get ready, and measure how long it takes."""
    run = world.run
    _begin_all(world)
    world.network.run_for(run.before)
    world.mover.imminent(DESTINATION)
    world.wait(lambda: world.mover.is_ready, "a server that is ready")
    world.mover.abort()
    world.end()


def over_time(world: World) -> None:
    """Move the server in the middle of everything."""
    run = world.run
    _begin_all(world)
    world.network.run_for(run.before)
    world.mover.imminent(DESTINATION)
    world.relocate(DESTINATION)
    world.tell_proactive()
    world.network.run_for(run.after)
    world.end()
    world.wait_completed()


def follow(world: World) -> None:
    """Move the client again and again, and the server after it, if it is one that moves."""
    run, client, network = world.run, world.only, world.network
    here, there = SOURCE, DESTINATION
    world.set_path(here, destination_path(run))
    world.set_path(there, source_path(run))
    world.connect()
    client.begin(0, lambda number: run.pause)
    begun_at = network.now
    moves = 0
    while (moves + 1) * run.interval < run.duration:
        moves += 1
        network.run_for(begun_at + moves * run.interval - network.now)
        client.endpoint.migrate(world.client_address(moves, client.number))
        world.set_path(here, source_path(run))
        world.set_path(there, destination_path(run))
        if run.technique == WITHOUT:
            here, there = there, here  # it is the paths that go back and forth
            continue
        network.run_for(run.quiet)
        world.mover.imminent(there)
        world.relocate(there)
        world.tell_proactive()
        world.wait_completed()
        here, there = there, here
    network.run_for(max(0.0, begun_at + run.duration - network.now))
    world.end()


SCRIPTS: Mapping[Script, Callable[[World], None]] = {
    Script.BASELINE: baseline,
    Script.FIRST_REQUEST: first_request,
    Script.UNDER_LOAD: under_load,
    Script.NOTIFICATION: notification,
    Script.OVER_TIME: over_time,
    Script.FOLLOW: follow,
}


def _until(run: Run, last: int | None) -> Pace:
    """Return the pace of a client that sends so many requests."""
    assert last is not None, "this script has a number of requests"
    return lambda number: run.pause if number < last else None


def _announce(world: World) -> None:
    """Tell the server to get ready when it is time to."""
    after = world.run.imminent_after or 0
    world.wait_answered(world.clients[0], after)
    world.mover.imminent(DESTINATION)


def _begin_all(world: World) -> None:
    """Connect all clients, and let each begin at a moment of its own."""
    run = world.run
    world.connect()
    within = max(run.pause, run.source_rtt_ms / 1000)
    for client in world.clients:
        client.begin(phase(run.seed, client.number) * within, lambda number: run.pause)
