"""The metrics, the figures to reach and the page, of results made by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from quicferry_lab.bench.report import Figure, as_json
from quicferry_lab.evaluation import bounds, metrics, report, store, thesis
from quicferry_lab.evaluation.result import At, Relocation, Request, Result, failure
from quicferry_lab.evaluation.run import Backend, Peer, Run, Script

FIRST = Run(
    experiment=1,
    whose="thesis",
    backend=Backend.SIM,
    script=Script.FIRST_REQUEST,
    arm="reactive Explicit",
    repetition=1,
    seed=1,
    protocol="explicit",
    policy="reactive",
    technique="cold",
    silence=1.47,
    requests=3,
    relocate_after=2,
)
BASELINE = Run(
    experiment=0,
    whose="thesis",
    backend=Backend.SIM,
    script=Script.BASELINE,
    arm="baseline",
    repetition=1,
    seed=1,
    source_rtt_ms=18.0,
    source_rate_mbit=100.0,
    requests=2,
)
UNDER_LOAD = replace(
    FIRST,
    experiment=2,
    backend=Backend.CONTAINERS,
    script=Script.UNDER_LOAD,
    silence=None,
)
NOTIFIED = replace(
    FIRST,
    experiment=3,
    script=Script.NOTIFICATION,
    technique="none",
    silence=None,
    clients=50,
    source_rtt_ms=18.0,
)
OVER_TIME = replace(
    FIRST,
    experiment=4,
    script=Script.OVER_TIME,
    technique="handover",
    clients=2,
    pause=0.26,
    source_rtt_ms=18.0,
)
FOLLOWING = replace(
    FIRST,
    experiment=5,
    script=Script.FOLLOW,
    technique="hybrid",
    interval=10.0,
    duration=30.0,
    source_rtt_ms=119.0,
    destination_rtt_ms=15.0,
)
STAYING = replace(FOLLOWING, experiment=6, arm="server stays", protocol="none", technique="none")


def keep(folder: Path, results: Sequence[Result], name: str = "") -> Path:
    run = results[0].run
    name = name or f"experiment {run.experiment}"
    path = folder / f"{name.replace(' ', '-')}-{run.backend.value}"
    settings = store.Settings(name, run.backend)
    with store.Store(path, settings, [result.run for result in results]) as kept:
        for result in results:
            kept.add(result)
        kept.complete()
    return path


def request(
    number: int, service_time: float | None, started: float = 0.0, client: int = 1
) -> Request:
    error = "timed out" if service_time is None else ""
    return Request(client, number, started, service_time, "POST", 1024, 1024, At.SOURCE, error)


def repeated(run: Run, number: int) -> list[Run]:
    return [
        replace(run, repetition=repetition, seed=repetition) for repetition in range(1, number + 1)
    ]


def first_requests(run: Run, service_times: Iterable[float]) -> list[Result]:
    times = list(service_times)
    return [
        Result(
            each,
            (request(1, 0.122), request(2, 0.122), request(3, seconds)),
            (Relocation(1, 1.0, 1.1, 2.0, 3.47),),
        )
        for each, seconds in zip(repeated(run, len(times)), times, strict=True)
    ]


def row_of(folder: Path, metric: str) -> dict[str, object]:
    (row,) = metrics.table(store.read(folder)).filter(metric=metric).to_dicts()
    return row


def named(figures: Iterable[Figure], part: str) -> Figure:
    (figure,) = [figure for figure in figures if part in figure.name]
    return figure


def test_the_thesis_is_in_seconds_and_found_by_what_a_figure_is_about() -> None:
    finding = thesis.find(thesis.Key(1, "first_request", "reactiveExplicit", loss_percent=1.5))
    assert finding == thesis.Finding(97, 3, 0.02057, 0.28488, 0.28566, 0.30549, 0.4185)
    key = thesis.Key(3, "notification_time", "symmetric", None, None, 122.0, 122.0, 0.0, 50)
    assert thesis.findings()[key].median == 0.00449
    assert thesis.silence("cold", 100) == pytest.approx(0.57 + 2.33 + 0.34)
    assert thesis.silence("handover", 0) is None


def test_medians_and_percentiles_are_those_of_the_values(tmp_path: Path) -> None:
    times = [0.001 * number for number in range(100, 0, -1)]
    row = row_of(keep(tmp_path, first_requests(FIRST, times)), "first_request")
    assert (row["runs"], row["n"], row["failed"], row["unit"]) == (100, 100, 0, "s")
    assert row["median"] == pytest.approx(0.0505)
    assert row["p95"] == pytest.approx(0.095)
    assert (row["min"], row["max"]) == (0.001, 0.1)
    assert (row["thesis_median"], row["thesis_p95"], row["thesis_n"]) == (0.29056, 0.30093, 100)
    assert row["ratio"] == pytest.approx(0.0505 / 0.29056)


def test_of_ten_values_the_ninth_is_the_95th_percentile_as_in_the_thesis(tmp_path: Path) -> None:
    times = [0.01 * number for number in range(1, 11)]
    assert row_of(keep(tmp_path, first_requests(FIRST, times)), "first_request")[
        "p95"
    ] == pytest.approx(0.09)


def test_failed_runs_are_counted_and_their_values_are_not(tmp_path: Path) -> None:
    good, odd = first_requests(FIRST, [0.1, 99.0])
    bad = failure(replace(FIRST, repetition=3, seed=3), RuntimeError("the link is down"))
    odd = replace(odd, problems=("a client did not follow",))
    row = row_of(keep(tmp_path, [good, odd, bad]), "first_request")
    assert (row["runs"], row["failed_runs"], row["n"], row["failed"]) == (3, 2, 1, 2)
    assert row["median"] == row["max"] == 0.1


def test_failed_requests_are_counted(tmp_path: Path) -> None:
    result = Result(BASELINE, (request(1, 0.018), request(2, None)), problems=("request 2",))
    row = row_of(keep(tmp_path, [result]), "service_time")
    assert (row["n"], row["failed"], row["median"]) == (1, 1, 0.018)


def test_what_the_thesis_did_not_ask_is_null(tmp_path: Path) -> None:
    eager = replace(FIRST, arm="eager Explicit", policy="eager", whose="ours")
    row = row_of(keep(tmp_path, first_requests(eager, [0.018])), "first_request")
    assert row["thesis_median"] is None
    assert row["ratio"] is None


def test_a_relocation_has_its_parts_their_sum_and_what_a_client_waits_beyond(
    tmp_path: Path,
) -> None:
    relocation = Relocation(
        1, 10.0, 10.1, 10.2, 10.6, 10.7, dump=0.1, transfer=0.1, restore=0.15, carried=2_000_000
    )
    requests = (request(1, 5.0), request(2, 0.5, 10.15), request(3, 0.122, 10.7))
    path = keep(tmp_path, [Result(UNDER_LOAD, requests, (relocation,))])
    found = {row["metric"]: row for row in metrics.table(store.read(path)).to_dicts()}
    assert found["work"]["median"] == pytest.approx(0.35)
    assert found["work"]["thesis_median"] == pytest.approx(0.29 + 0.95 + 0.23)
    assert found["silence"]["median"] == pytest.approx(0.4)
    assert found["longest"]["median"] == 0.5
    assert found["beyond"]["median"] == pytest.approx(0.5 - 0.4 - 0.018)
    assert found["dump"]["ratio"] == pytest.approx(0.1 / 0.29)
    assert found["carried"]["unit"] == "B"
    assert "pre_dump" not in found


def test_requests_are_before_during_or_after_the_silence(tmp_path: Path) -> None:
    requests = (
        request(1, 0.5, 1.0),
        request(2, 2.0, 1.9),
        request(3, None, 2.5, client=2),
        request(4, 0.25, 3.5),
    )
    relocation = Relocation(1, 1.8, 1.9, 2.0, 3.0)
    result = Result(OVER_TIME, requests, (relocation,), 1, ("client 2 was lost",))
    path = keep(tmp_path, [result])
    found = {row["metric"]: row for row in metrics.table(store.read(path)).to_dicts()}
    assert (found["before"]["median"], found["after"]["median"]) == (0.5, 0.25)
    assert (found["during"]["n"], found["during"]["failed"]) == (1, 1)
    assert found["failed_requests"]["max"] == found["lost_clients"]["max"] == 1


def test_a_server_is_far_until_it_has_followed_or_the_client_is_back(tmp_path: Path) -> None:
    requests = tuple(
        request(number, 0.1, started) for number, started in enumerate((5, 11, 15, 25))
    )
    moves = (Relocation(1, 12.0, 12.1, 12.2, 13.6), Relocation(2, 22.0, 22.1, 22.2, 23.6))
    followed = keep(tmp_path, [Result(FOLLOWING, requests, moves)])
    stayed = keep(tmp_path, [Result(STAYING, requests)])
    assert row_of(followed, "near_share")["median"] == 0.75
    assert row_of(followed, "far")["n"] == 1
    # It moves away after 10 seconds, and is back after 20.
    assert row_of(stayed, "far")["n"] == 2


def test_the_summary_is_short_and_has_what_differs(tmp_path: Path) -> None:
    results = first_requests(FIRST, [0.16]) + first_requests(
        replace(FIRST, loss_percent=1.5), [0.2]
    )
    rows = metrics.summary(store.read(keep(tmp_path, results)))
    assert rows["loss_percent"].to_list() == [0.0, 1.5]
    assert rows["median"].to_list() == [0.16, 0.2]
    assert "pause" not in rows.columns
    assert "backend" not in rows.columns


def test_figures_are_reached_or_missed(tmp_path: Path) -> None:
    keep(tmp_path, [Result(BASELINE, (request(1, 0.018),))])
    symmetric = replace(FIRST, arm="Symmetric", protocol="symmetric")
    keep(tmp_path, first_requests(FIRST, [0.167]) + first_requests(symmetric, [0.0189]))
    figures = bounds.figures(map(store.read, store.find(tmp_path)))
    reactive = named(figures, "reactive Explicit: median")
    assert (reactive.at_most, reactive.is_met) == (166, False)
    assert reactive.value == pytest.approx(167)
    assert named(figures, "Symmetric: p95").at_most == 21.2
    compared = named(figures, "Symmetric: median to plain")
    assert (round(compared.value, 6), compared.is_met) == (1.05, True)
    assert json.loads(as_json(figures))


def test_a_double_of_the_thesiss_server_may_be_slower_by_a_round_trip(tmp_path: Path) -> None:
    theirs = replace(FIRST, peer=Peer.THESIS_SERVER, whose="ours")
    symmetric = replace(FIRST, arm="Symmetric", protocol="symmetric")
    results = [
        *first_requests(FIRST, [0.150, 0.160, 0.170]),
        *first_requests(symmetric, [0.018]),
        *first_requests(theirs, [0.177, 0.178, 0.5]),
        *first_requests(replace(symmetric, peer=Peer.THESIS_SERVER), [0.030]),
        *first_requests(replace(FIRST, loss_percent=1.5), [0.160]),
        *first_requests(replace(theirs, loss_percent=1.5), [0.179]),
        failure(replace(theirs, loss_percent=1.5, seed=2, repetition=2), RuntimeError("lost")),
        *first_requests(replace(theirs, arm="unheard of"), [9.0]),
    ]
    path = keep(tmp_path, results)
    figures = bounds.figures([store.read(path)])
    lossless = named(figures, "thesis-server, 0 % loss")
    assert lossless.value == pytest.approx(18)
    assert lossless.note.endswith("of 2 protocols and policies: reactive Explicit")
    lossy = named(figures, "thesis-server, 1.5 % loss")
    assert (lossy.at_most, lossy.is_met) == (18, False)
    failed = named(figures, "thesis-server: failed runs")
    assert (failed.value, failed.is_met, failed.note) == (1, False, "of 7")
    # Those of our own server are what they would be without it.
    alone = bounds.figures([store.read(keep(tmp_path / "alone", [*results[:4], results[8]]))])
    assert [figure for figure in figures if figure in alone] == alone
    text = report.write(path)[0].read_text("utf-8")
    row = ("thesis-server", "reactive Explicit", "0", "3", "0", "178.0", "178.0", "0", "160.0")
    cells = r"</td><td[^>]*>".join(map(re.escape, row))
    assert re.search(rf"<td[^>]*>{cells}</td>", text)
    assert "reactive Explicit, thesis-server, 1.5 % loss, seed 2" in text


def test_results_of_the_double_alone_have_a_page(tmp_path: Path) -> None:
    path = keep(tmp_path, first_requests(replace(FIRST, peer=Peer.THESIS_SERVER), [0.178]))
    page, *pictures = report.write(path)
    assert not pictures
    assert "thesis-server" in page.read_text("utf-8")


def test_a_figure_that_no_run_has_come_to_is_missed(tmp_path: Path) -> None:
    result = failure(NOTIFIED, RuntimeError("nobody answered"))
    good = replace(NOTIFIED, arm="Symmetric", protocol="symmetric")
    fine = Result(good, relocations=(Relocation(1, 4.0, 4.003),))
    keep(tmp_path, [result, fine])
    figures = bounds.figures(map(store.read, store.find(tmp_path)))
    explicit = named(figures, "reactive Explicit, 50 clients, 18 ms")
    assert (explicit.value, explicit.is_met) == (1, False)
    assert named(figures, "Symmetric, 50 clients, 18 ms").is_met
    assert "nobody answered" in named(figures, "failed runs").note


def test_relocations_of_containers_have_bounds_and_lost_clients_too(tmp_path: Path) -> None:
    slow = Relocation(1, 1.0, 1.1, 1.2, 1.8, 1.9, dump=0.2, transfer=0.2, restore=0.2)
    keep(tmp_path, [Result(UNDER_LOAD, (request(1, 0.66, 1.19),), (slow,))])
    lost = Result(OVER_TIME, (request(1, 0.02),), (Relocation(1),), 1, ("lost",))
    keep(tmp_path, [lost])
    figures = bounds.figures(map(store.read, store.find(tmp_path)))
    assert not named(figures, "cold + 0 MB").is_met
    assert named(figures, "reactive Explicit: wait beyond").value == pytest.approx(42)
    clients = named(figures, "lost clients")
    assert (clients.value, clients.is_met) == (1, False)
    assert clients.note == "of 2 in 1 combination"
    assert named(figures, "failed requests").is_met


def test_the_page_has_every_picture_and_needs_nothing_else(tmp_path: Path) -> None:
    hostile = "<script>alert('a & b')</script>"
    bad = failure(replace(FIRST, repetition=9, seed=9), RuntimeError(hostile))
    keep(tmp_path, [Result(BASELINE, (request(1, 0.018), request(2, 0.019)))])
    keep(tmp_path, [*first_requests(FIRST, [0.16, 0.17]), bad])
    moved = Relocation(1, 1.0, 1.1, 1.2, 1.6, 1.7, dump=0.1, transfer=0.1, restore=0.2)
    keep(tmp_path, [Result(UNDER_LOAD, (request(1, 0.45, 1.19),), (moved,))])
    keep(tmp_path, [Result(NOTIFIED, (request(1, 0.02),), (Relocation(1, 4.0, 4.02),))])
    keep(tmp_path, [Result(OVER_TIME, (request(1, 0.02), request(2, None)), (moved,), 1, ("x",))])
    keep(tmp_path, [Result(FOLLOWING, (request(1, 0.02, 5.0), request(2, 0.1, 11.0)), (moved,))])
    keep(tmp_path, [Result(STAYING, (request(1, 0.02, 5.0),))])
    keep(tmp_path, first_requests(replace(FIRST, experiment=99), [0.2]), "sweep")
    figure = Figure("simulation <beside> sockets", 0.4, "ms", at_most=2.0)
    (tmp_path / "calibration.json").write_text(as_json([figure]), "utf-8")

    page, *pictures = report.write(tmp_path)

    text = page.read_text("utf-8")
    assert "http" not in text
    assert not re.search(r"<(script|link|iframe|object|img)|@import|url\((?!#)", text)
    assert "&lt;script&gt;alert(&#x27;a &amp; b&#x27;)&lt;/script&gt;" in text
    assert "simulation &lt;beside&gt; sockets" in text
    assert len(pictures) >= 2 * 9
    for png, svg in zip(pictures[::2], pictures[1::2], strict=True):
        assert (png.suffix, svg.suffix, png.stem) == (".png", ".svg", svg.stem)
        assert png.parent == tmp_path / "pictures"
        assert png.read_bytes().startswith(b"\x89PNG")
        assert ElementTree.parse(svg).getroot().tag.endswith("svg")
        assert f'id="{svg.stem}-figure_1"' in text
    assert text.count("<svg") == len(pictures) // 2
    names = re.findall(r'\bid="([^"]*)"', text)
    assert len(names) == len(set(names))
    assert set(re.findall(r'href="#([^"]*)"', text)) <= set(names)


def test_the_page_is_the_same_when_it_is_made_again(tmp_path: Path) -> None:
    keep(tmp_path, first_requests(FIRST, [0.16, 0.17]))
    before = {path: path.read_bytes() for path in report.write(tmp_path)}
    assert {path: path.read_bytes() for path in report.write(tmp_path)} == before
    assert len(before) == 3


def test_the_page_of_one_experiment_names_its_failed_runs(tmp_path: Path) -> None:
    bad = failure(replace(OVER_TIME, seed=77), RuntimeError("no kernel"))
    path = keep(tmp_path, [bad])
    page = report.write(path)[0]
    assert page.parent == path
    text = page.read_text("utf-8")
    assert "1 \N{MULTIPLICATION SIGN} RuntimeError: no kernel" in text
    assert "seed 77" in text


def test_the_page_says_so_when_there_is_nothing(tmp_path: Path) -> None:
    (page,) = report.write(tmp_path)
    assert "There are no results in this directory." in page.read_text("utf-8")


def test_a_calibration_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "calibration.json").write_text("[1]", "utf-8")
    with pytest.raises(store.StoreError, match="make it again, or remove it"):
        report.write(tmp_path)
