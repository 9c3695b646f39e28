"""The comparison of the simulation with real sockets: what it computes, and that it runs."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
from quicferry_lab.bench.report import Figure
from quicferry_lab.evaluation import comparison, simulated
from quicferry_lab.evaluation.comparison import Case, as_simulated, cases, figure_of
from quicferry_lab.evaluation.result import Relocation, Result, failure
from quicferry_lab.evaluation.run import Backend, Run, Script

CASES = {case.name: case for case in cases()}


@cache
def simulated_result(run: Run) -> Result:
    return simulated.carry_out(run)


def in_simulation(case: Case) -> Result:
    silence = 0.01 if case.run.script is Script.FIRST_REQUEST else None
    return simulated_result(replace(case.run, backend=Backend.SIM, silence=silence))


@pytest.mark.parametrize("name", CASES)
def test_every_case_has_something_to_compare_in_the_simulation(name: str) -> None:
    case = CASES[name]
    found = in_simulation(case)
    assert found.problems == ()
    figure = figure_of(case, found, found)
    assert figure.value == 0
    assert figure.is_met
    assert "on the hosts" in figure.note


def test_what_is_slower_on_the_hosts_is_a_positive_difference() -> None:
    case = CASES["request, 18 ms, 100 Mbit/s"]
    slower = simulated_result(replace(case.run, backend=Backend.SIM, source_rtt_ms=28.0))
    figure = figure_of(case, slower, in_simulation(case))
    assert figure.value == pytest.approx(10, abs=0.1)
    assert not figure.is_met
    assert figure_of(case, in_simulation(case), slower).value == pytest.approx(-10, abs=0.1)
    assert not figure_of(case, in_simulation(case), slower).is_met


def test_the_simulation_is_silent_for_as_long_as_the_handover_was() -> None:
    case = CASES["first request after a relocation, Symmetric"]
    moves = (Relocation(1, silent_at=2.0, restored_at=2.25),)
    run = as_simulated(Result(case.run, relocations=moves))
    assert (run.backend, run.silence, run.seed) == (Backend.SIM, 0.25, case.run.seed)
    assert simulated_result(run).relocations[0].restored_at == pytest.approx(
        (simulated_result(run).relocations[0].silent_at or 0) + 0.25
    )
    baseline = CASES["request, 18 ms, 100 Mbit/s"].run
    assert as_simulated(Result(baseline)).silence is None


def test_the_first_request_is_the_one_after_the_relocation() -> None:
    case = CASES["first request after a relocation, Symmetric"]
    found = in_simulation(case)
    (value,) = comparison.first_request(found)
    after = [each for each in found.requests if each.number == (case.run.relocate_after or 0) + 1]
    assert [each.service_time for each in after] == [value]
    assert (
        value
        < 0.03
        < 0.12
        < min(comparison.service_times(replace(found, requests=found.requests[:4])))
    )


def test_a_run_that_failed_is_out_of_all_bounds_and_says_why() -> None:
    case = CASES["request, 18 ms, 100 Mbit/s"]
    figure = figure_of(case, failure(case.run, OSError("no such host")), in_simulation(case))
    assert not figure.is_met
    assert "on the hosts: OSError: no such host" in figure.note
    figure = figure_of(case, Result(case.run), in_simulation(case))
    assert math.isinf(figure.value)
    assert "nothing was measured" in figure.note


@pytest.mark.lab
@pytest.mark.timeout(300)
async def test_it_runs_on_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [
        CASES["request, 18 ms, 100 Mbit/s"],
        CASES["first request after a relocation, eager Explicit"],
        CASES["until 10 clients are ready, Explicit"],
    ]
    monkeypatch.setattr(comparison, "cases", lambda: iter(chosen))
    told: list[Figure] = []
    figures = await comparison.compare(told.append)
    assert figures == told
    assert len(figures) == len(chosen)
    # Whether they are within their bounds depends on what else the machine has to do.
    assert all(math.isfinite(figure.value) for figure in figures), figures
