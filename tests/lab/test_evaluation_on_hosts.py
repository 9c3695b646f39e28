"""The evaluation's runs on real sockets: each script on hosts, and in containers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from quicferry_lab.evaluation import in_containers, netns, scripts
from quicferry_lab.evaluation.move import Move
from quicferry_lab.evaluation.netns import NetnsStage
from quicferry_lab.evaluation.result import At, Request, Result
from quicferry_lab.evaluation.run import Backend, Run, Script, Workload

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

RUN = Run(
    experiment=1,
    whose="ours",
    backend=Backend.NETNS,
    script=Script.FIRST_REQUEST,
    arm="an arm",
    repetition=1,
    seed=1,
    protocol="explicit",
    policy="reactive",
    technique="handover",
    requests=4,
    imminent_after=2,
    relocate_after=3,
    quiet=1.0,
    source_rtt_ms=40.0,
    source_rate_mbit=100.0,
)
UNDER_LOAD = replace(RUN, script=Script.UNDER_LOAD, requests=10, quiet=0.0)
CONTAINER = replace(UNDER_LOAD, backend=Backend.CONTAINERS, technique="cold")


def by_server(requests: Sequence[Request]) -> list[At | None]:
    return [each.server for each in requests]


def moved(result: Result) -> None:
    """Assert that a result has one relocation, whose instants make sense."""
    assert not result.problems
    assert result.lost_clients == 0
    (relocation,) = result.relocations
    assert relocation.imminent_at is not None
    assert relocation.ready_at is not None
    assert relocation.silent_at is not None
    assert relocation.restored_at is not None
    assert relocation.completed_at is not None
    assert 0 < relocation.imminent_at < relocation.ready_at
    assert relocation.ready_at < relocation.silent_at < relocation.restored_at
    assert relocation.restored_at < relocation.completed_at
    assert relocation.carried
    assert relocation.dump is not None
    assert relocation.transfer is not None
    assert relocation.restore is not None
    parts = relocation.dump + relocation.transfer + relocation.restore
    assert parts < relocation.restored_at - relocation.silent_at + 0.05


async def test_baseline() -> None:
    run = replace(RUN, script=Script.BASELINE, protocol="none", technique="none", requests=5)
    result = await netns.carry_out(run)
    assert not result.problems
    assert [each.number for each in result.requests] == [1, 2, 3, 4, 5]
    assert set(by_server(result.requests)) == {At.SOURCE}
    times = [each.service_time for each in result.requests if each.service_time is not None]
    assert len(times) == 5
    assert min(times) >= 0.04
    assert result.requests[0].started == 0.0
    assert not result.relocations


async def test_the_first_request_after_a_relocation_through_a_pool() -> None:
    pool = {"protocol": "pool-of-addresses", "pool_size": 3, "scheduler": "random"}
    result = await netns.carry_out(replace(RUN, **pool))  # type: ignore[arg-type]
    moved(result)
    assert by_server(result.requests) == [At.SOURCE] * 3 + [At.DESTINATION]
    assert result.requests[3].started > (result.relocations[0].restored_at or 1e9)


async def test_under_load_the_next_request_is_on_its_way() -> None:
    result = await netns.carry_out(UNDER_LOAD)
    moved(result)
    assert by_server(result.requests) == [At.SOURCE] * 3 + [At.DESTINATION] * 7
    relocation, stopped = result.relocations[0], result.requests[3]
    assert stopped.service_time is not None
    assert stopped.started < (relocation.restored_at or 0)
    assert stopped.started + stopped.service_time > (relocation.restored_at or 0)


async def test_notification_of_several_clients() -> None:
    result = await netns.carry_out(
        replace(RUN, script=Script.NOTIFICATION, requests=None, clients=5, pause=0.2, before=1.0)
    )
    assert not result.problems
    assert {each.client for each in result.requests} == {1, 2, 3, 4, 5}
    (relocation,) = result.relocations
    assert relocation.imminent_at is not None
    assert relocation.ready_at is not None
    assert relocation.ready_at - relocation.imminent_at >= 0.04
    assert relocation.silent_at is None


async def test_over_time_clients_with_ordinary_requests_follow() -> None:
    result = await netns.carry_out(
        replace(
            RUN,
            script=Script.OVER_TIME,
            workload=Workload.DISTRIBUTION,
            requests=None,
            clients=3,
            pause=0.1,
            before=1.0,
            after=1.5,
            loss_percent=1.5,
        )
    )
    moved(result)
    for client in (1, 2, 3):
        servers = by_server([each for each in result.requests if each.client == client])
        assert servers[0] is At.SOURCE
        assert servers[-1] is At.DESTINATION


@pytest.mark.parametrize("technique", ["handover", "none"])
async def test_follow(technique: str) -> None:
    run = replace(
        RUN,
        script=Script.FOLLOW,
        protocol="symmetric" if technique == "handover" else "none",
        technique=technique,
        requests=None,
        pause=0.05,
        interval=3.5,
        quiet=0.3,
        duration=7.5,
        destination_rtt_ms=10.0,
    )
    result = await netns.carry_out(run)
    assert not result.problems
    near = [each for each in result.requests if each.started < 3.4]
    assert min(each.service_time or 1 for each in near) < 0.04
    far = [each for each in result.requests if 3.6 < each.started < 3.75]
    assert far
    assert all((each.service_time or 0) >= 0.04 for each in far)
    if technique == "none":
        assert not result.relocations
        assert set(by_server(result.requests)) == {At.SOURCE}
    else:
        assert [each.number for each in result.relocations] == [1, 2]
        assert all(each.completed_at is not None for each in result.relocations)
        servers = by_server(result.requests)
        assert (servers[0], servers[-1]) == (At.SOURCE, At.SOURCE)
        assert At.DESTINATION in servers


class CutOff(NetnsStage):
    """A stage whose hosts lose each other before the server is moved."""

    async def _start_server(self) -> None:
        await super()._start_server()
        await self._ground.between.cut()


class WithoutAgent(NetnsStage):
    """A stage whose agent has died."""

    async def _start_server(self) -> None:
        await super()._start_server()
        agent = self._sides[1].agent
        assert agent is not None
        agent.kill()


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        (CutOff, r"not moved, rolled-back: .*in offer"),
        (WithoutAgent, r"agent on destination was killed by SIGKILL"),
    ],
)
async def test_what_goes_wrong_is_in_the_result(stage: type[NetnsStage], reason: str) -> None:
    result = await scripts.carry_out(stage(UNDER_LOAD))
    assert result.has_failed
    assert re.search(reason, result.problems[0])
    assert set(by_server(result.requests)) <= {At.SOURCE}


async def test_two_runs_side_by_side() -> None:
    results = await asyncio.gather(
        netns.carry_out(RUN), netns.carry_out(replace(RUN, seed=2, protocol="symmetric"))
    )
    for result in results:
        moved(result)


async def test_a_run_that_is_cancelled_leaves_nothing() -> None:
    begun = asyncio.Event()

    class Held(NetnsStage):
        def move(self) -> Move:
            begun.set()
            return super().move()

    stage = Held(RUN)
    running = asyncio.create_task(scripts.carry_out(stage))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not stage._ground.source.root.exists()


@pytest.mark.parametrize("technique", ["cold", "post-copy"])
async def test_a_container_under_load(technique: str) -> None:
    result = await in_containers.carry_out(replace(CONTAINER, technique=technique, memory_mb=2))
    moved(result)
    servers = by_server(result.requests)
    assert servers == [At.SOURCE] * 3 + [At.DESTINATION] * 7


async def test_a_container_over_time() -> None:
    over_time: dict[str, Any] = {"script": Script.OVER_TIME, "requests": None, "pause": 0.1}
    result = await in_containers.carry_out(
        replace(CONTAINER, **over_time, clients=2, before=0.5, after=1.5)
    )
    moved(result)


async def test_containers_refuse_what_they_cannot_do_at_once() -> None:
    result = await in_containers.carry_out(replace(CONTAINER, script=Script.FOLLOW))
    assert result.problems == (
        "RunError: the script follow is not for containers; use --backend netns",
    )


async def test_without_soft_dirty_it_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_containers, "_soft_dirty", False)
    result = await in_containers.carry_out(replace(CONTAINER, technique="hybrid"))
    (problem,) = result.problems
    assert "hybrid needs a kernel that tracks changes of memory" in problem
