"""Each technique beside cold: what is to be done, what is made of it, and that it can be done."""

from __future__ import annotations

import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from quicferry_lab.evaluation import ratios, report
from quicferry_lab.evaluation.ratios import Sample, Trial
from quicferry_lab.hosts import LabError
from quicferry_lab.vm import find

from quicferry.cli import main
from quicferry.protocol import QuicferryError

TECHNIQUES = ("cold", "pre-copy", "post-copy", "hybrid")


def sample(technique: str, memory_mb: int, repetition: int, silence: float) -> Sample:
    parts = {"dump": silence / 2, "transfer": silence / 3, "restore": silence / 6}
    ahead = 2 * silence if technique in ("pre-copy", "hybrid") else 0.0
    trial = Trial(technique, memory_mb, repetition)
    return Sample(trial, {"silence": silence, **parts, "ahead": ahead}, 1000, (), "Linux 6.12")


def failed(technique: str, memory_mb: int, repetition: int) -> Sample:
    return Sample(Trial(technique, memory_mb, repetition), {}, 0, ("it <broke>",), "Linux 6.12")


def row(rows: list[dict[str, Any]], technique: str, memory_mb: int, metric: str) -> dict[str, Any]:
    wanted = {"technique": technique, "memory_mb": memory_mb, "metric": metric}
    (found,) = (each for each in rows if wanted.items() <= each.items())
    return found


def test_there_is_a_round_of_all_techniques_after_another_at_each_size() -> None:
    trials = ratios.missing([0, 100, 0], 2)
    assert trials == [
        Trial(technique, memory, repetition)
        for memory in (0, 100)
        for repetition in (1, 2)
        for technique in TECHNIQUES
    ]


def test_what_is_there_is_not_made_again() -> None:
    there = [sample("cold", 0, 1, 1.0), failed("hybrid", 0, 1)]
    trials = ratios.missing([0], 2, there)
    assert len(trials) == 2 * len(TECHNIQUES) - len(there)
    assert not {each.trial for each in there}.intersection(trials)


def test_ratios_are_those_of_medians_at_the_same_size_beside_the_thesis() -> None:
    samples = [
        *(sample("cold", 0, number, value) for number, value in enumerate((10.0, 11.0, 90.0), 1)),
        *(sample("cold", 100, number, value) for number, value in enumerate((40.0, 44.0, 45.0), 1)),
        *(sample("pre-copy", 100, number, value) for number, value in enumerate((9, 11, 12), 1)),
    ]
    rows = ratios.compared(samples)
    assert row(rows, "cold", 0, "silence")["seconds"] == 11.0
    for technique, memory, metric, ratio, thesis in (
        ("cold", 0, "silence", 1.0, 1.0),
        ("cold", 100, "restore", 1.0, 1.0),
        ("pre-copy", 100, "silence", 0.25, 1.57 / 3.24),
        ("pre-copy", 100, "dump", 0.25, 0.29 / 0.57),
        ("pre-copy", 100, "transfer", 0.25, 0.93 / 2.33),
        ("pre-copy", 100, "ahead", 0.5, (0.47 + 2.33) / 3.24),
    ):
        found = row(rows, technique, memory, metric)
        assert found["ratio"] == pytest.approx(ratio)
        assert found["thesis"] == pytest.approx(thesis, abs=0.005)
        assert (found["runs"], found["failed"]) == (3, 0)


def test_trials_that_failed_are_counted_and_are_in_no_median() -> None:
    samples = [sample("cold", 0, 1, 2.0), failed("cold", 0, 2), failed("hybrid", 0, 1)]
    rows = ratios.compared(samples)
    cold, hybrid = (row(rows, technique, 0, "silence") for technique in ("cold", "hybrid"))
    assert (cold["runs"], cold["failed"], cold["seconds"]) == (2, 1, 2.0)
    assert (hybrid["runs"], hybrid["failed"], hybrid["ratio"]) == (1, 1, None)


def test_a_size_that_the_thesis_has_not_tried_has_a_ratio_all_the_same() -> None:
    found = row(ratios.compared([sample("cold", 7, 1, 2.0)]), "cold", 7, "silence")
    assert (found["ratio"], found["thesis"]) == (1.0, None)


def test_samples_are_kept_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"
    samples = [sample("cold", 0, 1, 2.0), failed("hybrid", 0, 1)]
    ratios.write(path, [])
    assert ratios.read(path) == []
    ratios.write(path, samples)
    assert ratios.read(path) == samples
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{}", "[1]", "7", '[{"trial": {"technique": "cold"}}]'])
def test_a_file_that_is_something_else_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"
    path.write_text(text, "utf-8")
    with pytest.raises(QuicferryError, match="name another file, or remove it"):
        ratios.read(path)
    done = CliRunner().invoke(main, ["lab", "ratios", "--out", str(path)])
    assert done.exit_code == 1
    assert "name another file, or remove it" in done.output
    assert path.read_text("utf-8") == text


def test_the_command_prints_what_is_there_and_tells_of_failures(tmp_path: Path) -> None:
    path = tmp_path / "ratios.json"
    there = [sample(technique, 100, 1, 2.0) for technique in TECHNIQUES]
    ratios.write(path, there)
    command = ["lab", "ratios", "--reps", "1", "--memory", "100", "--out", str(path)]
    done = CliRunner().invoke(main, [*command, "--json"])
    assert done.exit_code == 0, done.output
    assert row(json.loads(done.stdout), "hybrid", 100, "ahead")["ratio"] == 2.0
    table = CliRunner().invoke(main, command).stdout
    assert all(technique in table for technique in TECHNIQUES)
    ratios.write(path, [*there[1:], failed("cold", 100, 1)])
    done = CliRunner().invoke(main, [*command, "--json"])
    assert done.exit_code == 1
    assert "cold, 100 MB more, round 1: it <broke>" in done.stderr
    assert row(json.loads(done.stdout), "hybrid", 100, "ahead")["ratio"] is None


def test_the_report_shows_them(tmp_path: Path) -> None:
    samples = [sample("cold", 100, 1, 8.0), sample("hybrid", 100, 1, 2.0), failed("cold", 0, 1)]
    ratios.write(tmp_path / "ratios.json", samples)
    page, *_ = report.write(tmp_path)
    text = page.read_text("utf-8")
    assert 'id="ratios"' in text
    assert "Linux 6.12" in text
    assert '<td class="number">0.25</td><td class="number thesis">0.48</td>' in text


@pytest.mark.lab
@pytest.mark.timeout(200)
async def test_trials_here() -> None:
    trials = [Trial(technique, 50, 1) for technique in ("cold", "post-copy")]
    async with aclosing(ratios.here(trials)) as found:
        samples = [each async for each in found]
    assert [each.trial for each in samples] == trials
    assert [each.problems for each in samples] == [(), ()]
    assert all(each.seconds["silence"] > 0 for each in samples)
    assert [each.seconds["ahead"] for each in samples] == [0.0, 0.0]
    cold, post_copy = (each.carried for each in samples)
    assert post_copy < 50 << 20 < cold


@pytest.mark.lab
@pytest.mark.timeout(1500)
async def test_trials_in_the_virtual_machine() -> None:
    try:
        find()
    except LabError as exc:
        pytest.skip(str(exc))
    trials = [Trial(technique, 0, 1) for technique in ("cold", "pre-copy")]
    async with aclosing(ratios.in_virtual_machine(trials)) as found:
        samples = [each async for each in found]
    assert [each.trial for each in samples] == trials
    assert [each.problems for each in samples] == [(), ()]
    assert samples[1].seconds["ahead"] > 0
