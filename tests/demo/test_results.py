from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from quicferry_lab.demo.chart import service_time_chart
from quicferry_lab.demo.plot import save_plot
from quicferry_lab.demo.results import Arrival, ClientReport, DemoResult, Gap, Relocation, Sample
from quicferry_lab.demo.settings import Settings, Technique

SOURCE, DESTINATION = "127.0.0.1:4433", "127.0.0.2:4433"
CLIENT_KEYS = [
    "id",
    "protocol",
    "policy",
    "migrated",
    "requests_ok",
    "requests_failed",
    "bytes_verified",
    "longest_gap_ms",
    "switch_to_first_response_ms",
]


def report(number: int) -> ClientReport:
    samples = tuple(Sample(100 + at / 10, 0.02, "echo") for at in range(100))
    return ClientReport(
        id=number,
        status="done",
        reconnects=0,
        requests_ok=100,
        requests_failed=0,
        bytes_verified=12345,
        migrations=1,
        gaps=(Gap(101.0, 101.05), Gap(104.995, 105.03)),
        samples=samples,
        arrivals=(Arrival(100.1, SOURCE), Arrival(105.03, DESTINATION)),
        errors=(),
    )


def come_again(number: int) -> ClientReport:
    return replace(report(number), reconnects=1, migrations=0)


@pytest.fixture
def result() -> DemoResult:
    plans = Settings(clients=5).plans()
    reports = [report(plan.id) if plan.has_extension else come_again(plan.id) for plan in plans]
    relocation = Relocation(SOURCE, DESTINATION, 104.98, 105.0, 105.01, 105.04)
    return DemoResult(
        Technique.REBIND, 100.0, (relocation,), 1, tuple(zip(plans, reports, strict=True))
    )


def with_first_client(result: DemoResult, **changes: object) -> DemoResult:
    (plan, first), *others = result.clients
    return replace(result, clients=((plan, replace(first, **changes)), *others))  # type: ignore[arg-type]  # any field


def test_json_has_exactly_the_promised_keys_first(result: DemoResult) -> None:
    encoded = json.loads(json.dumps(result.encode()))
    assert list(encoded)[:4] == ["ok", "technique", "relocations", "clients"]
    assert encoded["technique"] == "rebind"
    assert encoded["relocations"] == [
        {
            "from": SOURCE,
            "to": DESTINATION,
            "imminent_to_ready_ms": 20.0,
            "switch_to_all_completed_ms": 30.0,
        }
    ]
    assert [list(client)[:9] for client in encoded["clients"]] == [CLIENT_KEYS] * 5


def test_a_good_run_is_ok(result: DemoResult) -> None:
    encoded = result.encode()
    assert encoded["ok"] is True
    assert encoded["clients"][0]["migrated"] is True
    assert encoded["clients"][0]["switch_to_first_response_ms"] == 20.0
    assert encoded["clients"][0]["longest_gap_ms"] == 50.0
    assert encoded["clients"][0]["gap_at_switch_ms"] == 35.0


def test_a_client_without_the_extension_comes_again_and_has_not_failed(result: DemoResult) -> None:
    last = result.encode()["clients"][-1]
    assert (last["protocol"], last["migrated"], last["reconnects"]) == ("none", False, 1)
    assert last["gap_at_switch_ms"] == 35.0
    assert result.ok


def test_the_phases_of_a_handover_are_told_in_milliseconds(result: DemoResult) -> None:
    phases = {"freeze": 0.0015, "commit": 0.002}
    handed_over = replace(result.relocations[0], phases=phases)
    encoded = replace(result, relocations=(handed_over,)).encode()
    assert encoded["relocations"][0]["phases_ms"] == {"freeze": 1.5, "commit": 2.0}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"requests_failed": 1, "errors": ("body 7 is wrong",)}, "client 1: body 7 is wrong"),
        ({"requests_failed": 2}, "client 1: 2 requests failed"),
        ({"requests_ok": 0}, "client 1: no request was answered"),
        ({"migrations": 0}, "client 1: 0 migrations completed"),
    ],
)
def test_what_goes_wrong_makes_the_run_fail(
    result: DemoResult, changes: dict[str, object], problem: str
) -> None:
    failed = with_first_client(result, **changes)
    assert not failed.ok
    assert failed.encode()["ok"] is False
    assert failed.problems == [problem]


def test_a_relocation_that_did_not_take_place_makes_the_run_fail(result: DemoResult) -> None:
    assert not replace(result, planned_relocations=2).ok


def test_the_first_response_counts_only_after_the_switch_and_from_the_new_address(
    result: DemoResult,
) -> None:
    arrivals = (
        Arrival(100.0, SOURCE),
        Arrival(101.0, DESTINATION),  # an earlier round trip
        Arrival(102.0, SOURCE),
        Arrival(105.11, DESTINATION),
        Arrival(105.12, SOURCE),
        Arrival(105.13, DESTINATION),
    )
    _, first = with_first_client(result, arrivals=arrivals).clients[0]
    assert result.switch_to_first_response(first) == pytest.approx(0.1)


def test_reports_survive_the_way_between_processes() -> None:
    assert ClientReport.decode(json.loads(json.dumps(report(1).encode()))) == report(1)


def test_chart_marks_the_relocation_and_fits(result: DemoResult) -> None:
    lines = service_time_chart(result, width=60, height=5).splitlines()
    assert max(len(line) for line in lines) <= 60
    marks = next(line for line in lines if line.strip() == "▲")
    assert 30 <= marks.index("▲") <= 40
    assert "█" in lines[4]


def test_chart_without_samples_says_so(result: DemoResult) -> None:
    empty = replace(result, clients=())
    assert service_time_chart(empty) == "no request was answered"


@pytest.mark.parametrize(
    ("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_plot_is_written_in_the_format_of_its_name(
    result: DemoResult, tmp_path: Path, suffix: str, magic: bytes
) -> None:
    path = tmp_path / f"plot.{suffix}"
    save_plot(result, path)
    assert path.read_bytes().startswith(magic)


def test_plot_of_a_run_without_relocation(result: DemoResult, tmp_path: Path) -> None:
    save_plot(replace(result, relocations=()), tmp_path / "plot.png")
