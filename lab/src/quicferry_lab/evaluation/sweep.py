"""Sweeps: a run for every element of the product of many lists, in the simulation.

A sweep asks experiment 1's or 4's question (`Script.FIRST_REQUEST` or `Script.OVER_TIME`) of more
paths, policies, losses and seeds than the thesis has. Everything that is not in a list is as in
that experiment. The repetition of a run is its seed: so it is the same run in every sweep that has
it, and is not done again.

Some elements make no sense, and are left out:

- a policy, where the protocol never asks for it: only Explicit does;
- sizes and schedulers of a pool, where there is none;
- a technique and an amount of memory of whose silence nothing is known (``silences.toml``);
- many clients, where the script is about the first request of one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quicferry.protocol import MigrationProtocol, QuicferryError, protocol_name
from quicferry_lab.evaluation.experiment import ExperimentError, assumed_silence, load
from quicferry_lab.evaluation.run import Backend, Run, Script, Workload

EXPERIMENTS = {Script.OVER_TIME: 4, Script.FIRST_REQUEST: 1}
"""The scripts of sweeps, and the experiment that has the rest of the parameters."""

BothPaths = tuple[float, float]
"""A value for the path to the source, and one for that to the destination."""

_EXPLICIT = protocol_name(MigrationProtocol.EXPLICIT)
_POOL = protocol_name(MigrationProtocol.POOL_OF_ADDRESSES)
_ANY_POLICY = "eager"
_ANY_SCHEDULER = "parallel"


class SweepError(QuicferryError):
    """A sweep cannot be carried out."""


@dataclass(frozen=True)
class Axes:
    """The lists whose product a sweep is; names as in `Run`.

    Attributes:
        script: What happens in each run.
        protocols: Names of migration protocols.
        policies: Of clients; for Explicit.
        pool_sizes: Addresses in the pool; for Pool of Addresses.
        schedulers: In which order clients look through it.
        techniques: How the server is relocated.
        memories: Megabytes that the application keeps beside the rest.
        clients: How many there are.
        pauses: Seconds between a response and the next request.
        rtts: Round-trip times in ms.
        rates: In Mbit/s.
        losses: Percent of packets, each way.
        seeds: Of everything random; from 1.
    """

    script: Script = Script.OVER_TIME
    protocols: Sequence[str] = (_EXPLICIT,)
    policies: Sequence[str] = (_ANY_POLICY,)
    pool_sizes: Sequence[int] = (3,)
    schedulers: Sequence[str] = (_ANY_SCHEDULER,)
    techniques: Sequence[str] = ("handover",)
    memories: Sequence[int] = (0,)
    clients: Sequence[int] = (1,)
    pauses: Sequence[float] | None = None
    rtts: Sequence[BothPaths] = ((18.0, 18.0),)
    rates: Sequence[BothPaths] = ((100.0, 100.0),)
    losses: Sequence[float] = (0.0,)
    seeds: Sequence[int] = (1,)


@dataclass(frozen=True)
class Sweep:
    """What there is to do.

    Attributes:
        runs: All runs, those of one seed after those of the one before.
        left_out: How many elements of the product have no run of their own.
    """

    runs: tuple[Run, ...]
    left_out: int


def plan(axes: Axes) -> Sweep:
    """Return the runs of a sweep.

    Raises:
        SweepError: The script is none for sweeps, or no element of the product makes sense.
    """
    if axes.script not in EXPERIMENTS:
        names = " or ".join(script.value for script in EXPERIMENTS)
        raise SweepError(f"a sweep's script is {names}, not {axes.script.value}")
    # Elements that differ in nothing that matters give the same run.
    once = dict.fromkeys(_of_one_seed(axes))
    found = [run for run in once if run is not None]
    if not found:
        raise SweepError("nothing is left of this sweep: no combination of its lists makes sense")
    seeds = tuple(dict.fromkeys(axes.seeds))
    runs = tuple(replace(run, seed=seed, repetition=seed) for seed in seeds for run in found)
    return Sweep(runs, _count(axes) * len(axes.seeds) - len(runs))


def _of_one_seed(axes: Axes) -> Iterator[Run | None]:
    """Yield a run for each element of the product without seeds; None where it makes no sense."""
    number = EXPERIMENTS[axes.script]
    fixed = dict(load(number).description["fixed"])
    fixed["workload"] = Workload(fixed.get("workload", Workload.FIXED))
    for names in _names(axes):
        yield _run(axes.script, number, fixed | names)


def _names(axes: Axes) -> Iterator[dict[str, Any]]:
    """Yield the elements of the product as parameters of a run."""
    for element in itertools.product(*_lists(axes)):
        protocol, policy, size, scheduler, technique, memory, clients, pause, rtt, rate, loss = (
            element
        )
        found = {
            "protocol": protocol,
            "policy": policy,
            "pool_size": size,
            "scheduler": scheduler,
            "technique": technique,
            "memory_mb": memory,
            "clients": clients,
            "source_rtt_ms": float(rtt[0]),
            "destination_rtt_ms": float(rtt[1]),
            "source_rate_mbit": float(rate[0]),
            "destination_rate_mbit": float(rate[1]),
            "loss_percent": float(loss),
        }
        yield found if pause is None else found | {"pause": float(pause)}


def _lists(axes: Axes) -> tuple[Sequence[Any], ...]:
    return (
        axes.protocols,
        axes.policies,
        axes.pool_sizes,
        axes.schedulers,
        axes.techniques,
        axes.memories,
        axes.clients,
        (None,) if axes.pauses is None else axes.pauses,
        axes.rtts,
        axes.rates,
        axes.losses,
    )


def _count(axes: Axes) -> int:
    count = 1
    for each in _lists(axes):
        count *= len(each)
    return count


def _run(script: Script, number: int, given: dict[str, Any]) -> Run | None:
    protocol = given["protocol"]
    if script is Script.FIRST_REQUEST and given["clients"] > 1:
        return None
    try:
        silence = assumed_silence(given["technique"], given["memory_mb"])
    except ExperimentError:
        return None
    if protocol != _EXPLICIT:
        given["policy"] = _ANY_POLICY
    if protocol != _POOL:
        given |= {"pool_size": 0, "scheduler": _ANY_SCHEDULER}
    given["pause"] = float(given.get("pause", 0))
    for name in ("before", "after", "quiet"):
        given[name] = float(given.get(name, 0))
    return Run(
        experiment=number,
        whose="ours",
        backend=Backend.SIM,
        script=script,
        arm=_arm(given),
        repetition=1,
        seed=1,
        silence=silence,
        **given,
    )


def _arm(given: dict[str, Any]) -> str:
    if given["protocol"] == _EXPLICIT:
        return f"{_EXPLICIT}, {given['policy']}"
    if given["protocol"] == _POOL:
        return f"{_POOL}, {given['pool_size']}, {given['scheduler']}"
    return str(given["protocol"])
