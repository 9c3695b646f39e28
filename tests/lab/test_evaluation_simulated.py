"""Runs of the evaluation in virtual time, and the requests that all backends send."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
from quicferry_lab.evaluation.experiment import Choices, load
from quicferry_lab.evaluation.result import At, Relocation, Result
from quicferry_lab.evaluation.run import Backend, Peer, Run, Script, Workload
from quicferry_lab.evaluation.simulated import carry_out, http
from quicferry_lab.evaluation.simulated.scripts import SCRIPTS
from quicferry_lab.evaluation.simulated.world import DESTINATION, SOURCE, World, begin
from quicferry_lab.evaluation.workload import (
    GET_PROBABILITY,
    Requests,
    Wanted,
    get_sizes,
    phase,
    post_sizes,
    stagger,
)
from quicferry_lab.simulation import Datagram, SimulatedAddress, body

SOURCE_RTT, DESTINATION_RTT = 0.122, 0.018
SLACK = 0.004
"""Seconds for what a request and its response take on the wire."""

FIRST = Run(
    experiment=1,
    whose="thesis",
    backend=Backend.SIM,
    script=Script.FIRST_REQUEST,
    arm="an arm",
    repetition=1,
    seed=1,
    protocol="explicit",
    policy="reactive",
    technique="cold",
    silence=0.7,
    pause=0.3,
    imminent_after=3,
    relocate_after=4,
    quiet=2.0,
    requests=6,
)
BASELINE = replace(
    FIRST,
    experiment=0,
    script=Script.BASELINE,
    protocol="none",
    technique="none",
    silence=None,
    source_rtt_ms=18.0,
    source_rate_mbit=100.0,
    pause=0.0,
)
UNDER_LOAD = replace(FIRST, experiment=2, script=Script.UNDER_LOAD, pause=0.0, requests=12)
NOTIFICATION = replace(
    FIRST,
    experiment=3,
    script=Script.NOTIFICATION,
    technique="none",
    silence=None,
    clients=6,
    before=0.8,
    requests=None,
)
OVER_TIME = replace(
    FIRST,
    experiment=4,
    script=Script.OVER_TIME,
    clients=3,
    workload=Workload.DISTRIBUTION,
    pause=0.1,
    before=0.4,
    after=0.8,
    source_rtt_ms=18.0,
    source_rate_mbit=100.0,
    requests=None,
)
FOLLOW = replace(
    FIRST,
    experiment=5,
    script=Script.FOLLOW,
    pause=0.2,
    interval=4.0,
    duration=10.0,
    quiet=0.5,
    requests=None,
)
ARMS = {
    "proactive": {"policy": "proactive"},
    "reactive": {"policy": "reactive"},
    "eager": {"policy": "eager"},
    "pool": {"protocol": "pool-of-addresses", "pool_size": 3, "scheduler": "random"},
    "parallel pool": {"protocol": "pool-of-addresses", "pool_size": 3, "scheduler": "parallel"},
    "symmetric": {"protocol": "symmetric"},
    "synchronized": {"protocol": "synchronized-symmetric"},
}


def arm(run: Run, name: str) -> Run:
    return replace(run, **ARMS[name])  # type: ignore[arg-type]


def ended_well(run: Run) -> Result:
    result = carry_out(run)
    assert result.problems == ()
    assert result.run is run
    assert result.lost_clients == 0
    assert result.requests
    assert min(each.started for each in result.requests) == 0
    numbers = [(each.client, each.number) for each in result.requests]
    assert numbers == sorted(set(numbers))
    return result


def first_request(run: Run) -> float:
    """Return what the first request after the relocation took."""
    assert run.relocate_after is not None
    row = ended_well(run).requests[run.relocate_after]
    assert row.server is At.DESTINATION
    assert row.service_time is not None
    return row.service_time


def assert_in_order(relocation: Relocation) -> None:
    instants = (
        relocation.imminent_at,
        relocation.ready_at,
        relocation.silent_at,
        relocation.restored_at,
        relocation.completed_at,
    )
    known = [at for at in instants if at is not None]
    assert len(known) == len(instants)
    assert known == sorted(known)
    assert known[3] - known[2] == pytest.approx(FIRST.silence)


# The scripts


def test_baseline_is_requests_at_the_source() -> None:
    result = ended_well(BASELINE)
    assert result.relocations == ()
    assert [each.number for each in result.requests] == [1, 2, 3, 4, 5, 6]
    for row in result.requests:
        assert (row.method, row.upload, row.download, row.server) == (
            "POST",
            1024,
            1024,
            At.SOURCE,
        )
        assert row.service_time is not None
        assert DESTINATION_RTT < row.service_time < DESTINATION_RTT + SLACK


@pytest.mark.parametrize("name", ARMS)
def test_the_first_request_goes_to_the_moved_server(name: str) -> None:
    result = ended_well(arm(FIRST, name))
    (relocation,) = result.relocations
    assert_in_order(relocation)
    servers = [each.server for each in result.requests]
    assert servers == [At.SOURCE] * 4 + [At.DESTINATION] * 2
    before, after = result.requests[3:5]
    assert before.service_time is not None
    assert relocation.restored_at is not None
    assert after.started > relocation.restored_at
    answered_at = before.started + before.service_time
    assert after.started - answered_at == pytest.approx(FIRST.quiet)


def test_a_request_waits_for_a_server_that_is_away_for_longer_than_the_quiet_time() -> None:
    result = ended_well(replace(FIRST, quiet=0.1))
    restored_at = result.relocations[0].restored_at
    assert restored_at is not None
    assert restored_at < result.requests[4].started < restored_at + 1


@pytest.mark.parametrize("name", ARMS)
def test_requests_go_on_under_load(name: str) -> None:
    result = ended_well(arm(UNDER_LOAD, name))
    (relocation,) = result.relocations
    assert_in_order(relocation)
    servers = [each.server for each in result.requests]
    assert len(servers) == 12
    moved = servers.index(At.DESTINATION)
    assert set(servers[moved:]) == {At.DESTINATION}
    assert moved >= 4
    slowest = max(each.service_time or 0 for each in result.requests)
    assert slowest > 0.7  # somebody has waited for the silent server


@pytest.mark.parametrize(("name", "rtts"), [("reactive", 1), ("symmetric", 0), ("synchronized", 1)])
def test_clients_are_notified_in_round_trips(name: str, rtts: int) -> None:
    result = ended_well(arm(NOTIFICATION, name))
    assert {each.client for each in result.requests} == set(range(1, 7))
    (relocation,) = result.relocations
    assert relocation.imminent_at is not None
    assert relocation.ready_at is not None
    assert relocation.silent_at is relocation.completed_at is None
    took = relocation.ready_at - relocation.imminent_at
    assert rtts * SOURCE_RTT <= took <= 1.5 * rtts * SOURCE_RTT


@pytest.mark.parametrize("name", ["proactive", "reactive", "pool", "symmetric"])
def test_many_clients_follow_over_time(name: str) -> None:
    result = ended_well(arm(OVER_TIME, name))
    (relocation,) = result.relocations
    assert_in_order(relocation)
    for client in range(1, 4):
        servers = [each.server for each in result.requests if each.client == client]
        assert servers[0] is At.SOURCE
        assert servers[-1] is At.DESTINATION
    assert {each.method for each in result.requests} == {"GET", "POST"}


@pytest.mark.parametrize("name", ["proactive", "eager", "symmetric", "a pool of both hosts"])
def test_the_server_follows_its_client(name: str) -> None:
    pool = {"protocol": "pool-of-addresses", "pool_size": 2, "scheduler": "random"}
    run = replace(FOLLOW, **pool) if name not in ARMS else arm(FOLLOW, name)  # type: ignore[arg-type]
    result = ended_well(run)
    assert len(result.relocations) == 2
    for relocation in result.relocations:
        assert_in_order(relocation)
    places = [place for place, _ in itertools.groupby(each.server for each in result.requests)]
    assert places == [At.SOURCE, At.DESTINATION, At.SOURCE]
    last = result.requests[-1].service_time
    assert last is not None
    assert last < DESTINATION_RTT + SLACK


def test_a_server_that_stays_is_far_from_its_client_every_other_time() -> None:
    result = ended_well(replace(FOLLOW, protocol="none", technique="none", silence=None))
    assert result.relocations == ()
    assert {each.server for each in result.requests} == {At.SOURCE}
    far = [(each.service_time or 0) > SOURCE_RTT for each in result.requests]
    # What was under way at a move may have taken longer, whichever way it went.
    assert [far[0], far[len(far) // 2], far[-1]] == [False, True, False]
    assert 0.2 < sum(far) / len(far) < 0.6


# What is asked of the protocols


@pytest.fixture(scope="module")
def plain() -> float:
    """What a request takes where no server moves."""
    times = sorted(each.service_time or 0 for each in carry_out(BASELINE).requests)
    return times[len(times) // 2]


@pytest.mark.parametrize("name", ["proactive", "eager", "symmetric", "synchronized"])
def test_the_first_request_costs_nothing_more(name: str, plain: float) -> None:
    assert first_request(arm(FIRST, name)) <= 1.05 * plain


def test_a_reactive_client_waits_for_its_probe_timeout(plain: float) -> None:
    took = first_request(FIRST)
    assert took > plain + SOURCE_RTT
    assert took < plain + 3 * SOURCE_RTT


def test_a_parallel_pool_is_as_fast_as_a_pool_of_one() -> None:
    one = first_request(replace(arm(FIRST, "parallel pool"), pool_size=1))
    six = first_request(replace(arm(FIRST, "parallel pool"), pool_size=6))
    assert six == pytest.approx(one, abs=0.001)


# A double of the thesis's server


def connection_ids_of_server(run: Run) -> dict[SimulatedAddress, set[bytes]]:
    """Carry out a run; return what connection IDs the server used at which address."""
    used: dict[SimulatedAddress, set[bytes]] = {SOURCE: set(), DESTINATION: set()}

    def note(sent: Datagram) -> bool:
        if sent.source in used:
            used[sent.source].add(sent.data[1:9])
        return True

    with begin(run) as simulation:
        world = World(run, simulation)
        world.network.filters.append(note)
        SCRIPTS[run.script](world)
    assert not world.result().has_failed
    return used


def test_it_is_the_double_that_is_measured() -> None:
    """It goes on with the connection ID that it has when it moves, until it is asked."""
    run = arm(FIRST, "symmetric")
    ours = connection_ids_of_server(run)
    theirs = connection_ids_of_server(replace(run, peer=Peer.THESIS_SERVER))
    assert not ours[SOURCE] & ours[DESTINATION]
    assert theirs[SOURCE] & theirs[DESTINATION]


@pytest.mark.parametrize("name", ARMS)
def test_the_first_request_to_a_thesis_server_is_as_fast_as_to_ours(name: str) -> None:
    run = arm(FIRST, name)
    with_theirs = first_request(replace(run, peer=Peer.THESIS_SERVER))
    assert with_theirs <= first_request(run) + DESTINATION_RTT


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("seed", range(1, 4))
def test_a_thesis_server_is_followed_in_spite_of_losses(name: str, seed: int) -> None:
    ended_well(replace(arm(FIRST, name), peer=Peer.THESIS_SERVER, loss_percent=5.0, seed=seed))


# Losses and failures


def test_lost_packets_cost_time_and_no_request() -> None:
    many = replace(BASELINE, requests=40)
    slowest = max(each.service_time or 0 for each in ended_well(many).requests)
    times = [each.service_time or 0 for each in ended_well(replace(many, loss_percent=5)).requests]
    assert len(times) == 40
    assert sum(time > 1.5 * slowest for time in times) >= 2


@pytest.mark.parametrize("name", ["reactive", "eager", "pool", "symmetric"])
def test_a_relocation_goes_well_in_spite_of_losses(name: str) -> None:
    ended_well(arm(replace(OVER_TIME, loss_percent=5.0), name))


def test_a_server_that_comes_back_too_late_is_a_failure_that_says_so() -> None:
    result = carry_out(replace(FIRST, silence=70.0))  # clients wait for 60 s
    assert result.has_failed
    assert result.lost_clients == 1
    assert any("client 1 has lost its connection" in each for each in result.problems)
    assert [each.error for each in result.requests[:4]] == [""] * 4
    (relocation,) = result.relocations
    assert relocation.ready_at is not None
    assert relocation.completed_at is None


def test_lost_clients_are_counted() -> None:
    result = carry_out(replace(OVER_TIME, silence=70.0))
    assert result.lost_clients == 3
    waiting = [each for each in result.requests if each.error]
    assert {each.client for each in waiting} == {1, 2, 3}
    assert all("connection lost" in each.error for each in waiting)
    assert all(each.service_time is None for each in waiting)


@pytest.mark.parametrize("workload", Workload)
def test_a_wrong_byte_is_a_failure(workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(offset: int, size: int) -> bytes:
        data = bytearray(body(offset, size))
        data[len(data) // 2] ^= 1
        return bytes(data)

    monkeypatch.setattr(http, "body", damaged)
    result = carry_out(replace(BASELINE, workload=workload))
    assert any("wrong data" in each for each in result.problems)
    assert result.requests[0].service_time is None


def test_a_protocol_that_nobody_knows_is_a_failure() -> None:
    (problem,) = carry_out(replace(FIRST, protocol="teleport")).problems
    assert "unknown migration protocol 'teleport'" in problem


# The same again


@pytest.mark.parametrize("run", [replace(OVER_TIME, loss_percent=3.0), FOLLOW], ids=str)
def test_a_run_happens_again_in_another_process(run: Run) -> None:
    here = carry_out(run)
    program = (
        "import sys, pickle\n"
        "from quicferry_lab.evaluation.simulated import carry_out\n"
        "sys.stdout.buffer.write(pickle.dumps(carry_out(pickle.load(sys.stdin.buffer))))\n"
    )
    there = subprocess.run(
        [sys.executable, "-c", program],
        input=pickle.dumps(run),
        env={**os.environ, "PYTHONHASHSEED": "77"},
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    assert pickle.loads(there.stdout) == here


def test_another_seed_is_another_run() -> None:
    assert carry_out(OVER_TIME).requests != carry_out(replace(OVER_TIME, seed=2)).requests


def test_every_experiment_has_runs_for_this_backend() -> None:
    for number in range(7):
        (run, *_) = load(number).runs(Choices(Backend.SIM, repetitions=1, is_quick=True))
        assert ended_well(run).requests


# The requests


def test_fixed_requests_are_echoes() -> None:
    for wanted in itertools.islice(Requests(Workload.FIXED, 1, 1), 5):
        assert (wanted.method, wanted.path) == ("POST", "/echo")
        assert (wanted.upload, wanted.download) == (1024, 1024)


def test_the_distribution_is_that_of_the_files() -> None:
    drawn = list(itertools.islice(Requests(Workload.DISTRIBUTION, 1, 1), 40_000))
    gets = [each for each in drawn if each.method == "GET"]
    posts = [each for each in drawn if each.method == "POST"]
    assert len(gets) / len(drawn) == pytest.approx(GET_PROBABILITY, abs=0.01)
    assert {each.upload for each in gets} == {each.download for each in posts} == {0}
    assert all(each.path == f"/bytes/{each.download}?seed={each.body_seed}" for each in gets)
    assert all(each.is_upload for each in posts)
    mean = sum(each.download for each in gets) / len(gets)
    assert mean == pytest.approx(get_sizes().mean, rel=0.1)
    mean = sum(each.upload for each in posts) / len(posts)
    assert mean == pytest.approx(post_sizes().mean, rel=0.1)


def test_each_client_and_each_seed_has_requests_of_its_own() -> None:
    def some(seed: int, client: int) -> tuple[Wanted, ...]:
        return tuple(itertools.islice(Requests(Workload.DISTRIBUTION, seed, client), 20))

    assert some(1, 1) == some(1, 1)
    assert len({some(seed, client) for seed in range(3) for client in range(1, 4)}) == 9


def test_clients_begin_at_different_moments() -> None:
    for share in (phase, stagger):
        shares = [share(1, client) for client in range(1, 101)]
        assert len(set(shares)) == 100
        assert 0 <= min(shares) < 0.1
        assert 0.9 < max(shares) < 1
    assert phase(1, 1) != stagger(1, 1)
