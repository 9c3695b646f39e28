"""Runs in virtual time: real connections with HTTP/3 over a simulated network.

A relocation is a silence here, of the length that the run assumes; everything else happens: the
announcement, every packet, each timeout. What a run finds is a function of the run: to the byte,
in any process, however busy the machine is.

Connections have aioquic's defaults. The one that matters is the idle timeout of 60 seconds: a
server that is silent for longer comes back to clients that have gone.
"""

from __future__ import annotations

from dataclasses import replace

from quicferry_lab.evaluation.result import Result, failure
from quicferry_lab.evaluation.run import Run

from .scripts import SCRIPTS
from .world import World, begin


def carry_out(run: Run) -> Result:
    """Carry out a run, and return what it has found; nothing that goes wrong there is raised."""
    world: World | None = None
    try:
        with begin(run) as simulation:
            world = World(run, simulation)
            SCRIPTS[run.script](world)
        return world.result()
    except Exception as exc:
        failed = failure(run, exc)
        if world is None:
            return failed
        found = world.result()
        return replace(found, problems=(*failed.problems, *found.problems))
