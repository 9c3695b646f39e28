"""The figures to reach, computed from whatever results there are.

What cannot be computed because its results are not there is left out; what is there and has failed
is a figure, and a missed one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from quicferry_lab.bench.report import Figure
from quicferry_lab.evaluation import metrics
from quicferry_lab.evaluation.metrics import Measured
from quicferry_lab.evaluation.run import Backend, Peer
from quicferry_lab.evaluation.store import Tables

REACTIVE_MS = 166.0
"""A probe timeout of the old path (RFC 9002 6.2.1: its 122 ms and 26 ms), then one round trip."""

PARALLEL_P95_MS = 190.0
OVER_BASELINE = 1.05
EXPLICIT_ROUND_TRIPS = 1.5
BEYOND_MS = 50.0
"""What a client waits more than the silence and one round trip of the new path."""

WORK_S = {("cold", 0): 0.5, ("cold", 100): 1.4, ("post-copy", 100): 0.5}
"""Dump, transfer and restore by technique and megabytes of memory, as it is done by default."""

USUAL_COMPRESSION = "zstd"

_IN = {"s": 1.0, "ms": 1000.0}
_AS_FAST_AS_BASELINE = ("eager Explicit", "proactive Explicit", "Symmetric")


def figures(results: Iterable[Tables]) -> list[Figure]:
    """Return all figures that can be computed, those of one experiment after another.

    Args:
        results: What any directories have, as `quicferry_lab.evaluation.store.read` returns it.
    """
    return of_measured([metrics.measured(tables) for tables in results])


def of_measured(measured: Sequence[Measured]) -> list[Figure]:
    """Return the same of results whose metrics are known already."""
    found: list[Figure] = []
    for number, of_experiment in (
        (1, lambda one: _protocols(one, measured)),
        (2, _relocations),
        (3, _notifications),
        (4, _losses),
    ):
        for one in measured:
            if one.experiment == number:
                found += of_experiment(one)
    return found + [figure for one in measured for figure in _failed_runs(one)]


def _protocols(every: Measured, measured: Iterable[Measured]) -> Iterator[Figure]:
    one = every.only(pl.col("peer") == Peer.OURS.value)
    first = one.rows.filter(pl.col("metric") == "first_request")
    for row in first.filter(pl.col("loss_percent") == 0).to_dicts():
        for quantile in ("median", "p95"):
            bound, note = _bound_of_first_request(row, quantile)
            if bound is not None:
                name = _name(one, f"{row['arm']}: {quantile}")
                yield _figure(name, row, quantile, "ms", bound, note)
    yield from _beside_baseline(one, measured, first)
    lossy = one.tables.runs.filter(pl.col("loss_percent") > 0)
    if len(lossy):
        yield Figure(
            _name(one, "failed runs with loss"),
            int(lossy["failed"].sum()),
            "runs",
            at_most=0,
            note=f"of {len(lossy)}; thesis: 5 of 100 proactive, 3 of 100 reactive",
        )
    yield from _beside_ours(every)


def _beside_ours(one: Measured) -> Iterator[Figure]:
    """Yield by how much a double of the thesis's server is slower, where it is the most."""
    pairs = [
        {**row, "more": row["median"] - row["ours_median"]}
        for row in metrics.beside_ours(one, "first_request")
        if row["median"] is not None and row["ours_median"] is not None
    ]
    for loss in dict.fromkeys(row["loss_percent"] for row in pairs):
        alike = [row for row in pairs if row["loss_percent"] == loss]
        most = max(alike, key=lambda row: float(row["more"]))
        yield Figure(
            _name(one, f"thesis-server, {loss:g} % loss: median more than ours"),
            most["more"] * _IN["ms"],
            "ms",
            at_most=most["destination_rtt_ms"],
            note=f"a round trip; the most of {len(alike)} protocols and policies: {most['arm']}",
        )
    runs = one.tables.runs.filter(pl.col("peer") == Peer.THESIS_SERVER.value)
    if len(runs):
        failed = int(runs["failed"].sum())
        name = _name(one, "thesis-server: failed runs")
        yield Figure(name, failed, "runs", at_most=0, note=f"of {len(runs)}")


def _bound_of_first_request(row: Mapping[str, Any], quantile: str) -> tuple[float | None, str]:
    thesis = row[f"thesis_{quantile}"]
    note = "" if thesis is None else f"thesis {thesis * 1000:.1f}"
    match row["arm"], quantile:
        case "pool of 3, parallel", "p95":
            return PARALLEL_P95_MS, "thesis 1735.4, random"
        case "reactive Explicit", _:
            return REACTIVE_MS, note
        case _:
            return None if thesis is None else round(thesis * 1000, 2), note


def _beside_baseline(
    one: Measured, measured: Iterable[Measured], first: pl.DataFrame
) -> Iterator[Figure]:
    lossless = pl.col("loss_percent") == 0
    baselines = [
        row
        for other in measured
        if other.experiment == 0 and other.backend is one.backend
        for row in other.rows.filter(lossless & (pl.col("metric") == "service_time")).to_dicts()
        if row["median"] is not None
    ]
    if not baselines:
        return
    baseline = baselines[-1]["median"]
    for row in first.filter(lossless & pl.col("arm").is_in(_AS_FAST_AS_BASELINE)).to_dicts():
        if row["median"] is not None:
            yield Figure(
                _name(one, f"{row['arm']}: median to plain QUIC's"),
                row["median"] / baseline,
                "times",
                at_most=OVER_BASELINE,
                note=_of_runs(row, f"plain QUIC: {baseline * 1000:.2f} ms"),
            )


def _relocations(one: Measured) -> Iterator[Figure]:
    if one.backend is Backend.CONTAINERS:
        is_usual = (pl.col("loss_percent") == 0) & (pl.col("compression") == USUAL_COMPRESSION)
        usual = one.only(is_usual)
        for row in _rows(usual, ("technique", "memory_mb"), "work").to_dicts():
            if bound := WORK_S.get((row["technique"], row["memory_mb"])):
                what = f"{row['technique']} + {row['memory_mb']} MB: dump, transfer, restore"
                note = f"thesis {row['thesis_median']:.2f}"
                yield _figure(_name(one, what), row, "median", "s", bound, note)
        for row in _rows(usual, ("arm",), "beyond").to_dicts():
            name = _name(one, f"{row['arm']}: wait beyond silence and a round trip")
            note = "all techniques and sizes of memory"
            yield _figure(name, row, "median", "ms", BEYOND_MS, note)
    if one.backend is not Backend.SIM:
        handovers = one.only((pl.col("technique") == "handover") & (pl.col("loss_percent") == 0))
        for row in _rows(handovers, ("technique",), "silence").to_dicts():
            name = _name(one, "handover: silence")
            yield _figure(name, row, "median", "ms", None, "all protocols")


def _notifications(one: Measured) -> Iterator[Figure]:
    rows = _rows(one, ("arm", "clients", "source_rtt_ms"), "notification_time")
    explicit = rows.filter((pl.col("arm") == "reactive Explicit") & (pl.col("clients") == 50))
    for row in explicit.to_dicts():
        rtt = row["source_rtt_ms"]
        name = _name(one, f"reactive Explicit, 50 clients, {rtt:g} ms: notification")
        yield _figure(name, row, "median", "ms", EXPLICIT_ROUND_TRIPS * rtt, _thesis_ms(row))
    symmetric = rows.filter(pl.col("arm") == "Symmetric", pl.col("thesis_median").is_not_null())
    for row in symmetric.to_dicts():
        clients = _number(row["clients"], "client")
        name = _name(one, f"Symmetric, {clients}, {row['source_rtt_ms']:g} ms: notification")
        bound = round(row["thesis_median"] * 1000, 2)
        yield _figure(name, row, "median", "ms", bound, _thesis_ms(row))


def _losses(one: Measured) -> Iterator[Figure]:
    runs = one.tables.runs
    requests = one.tables.requests
    done = runs.join(requests, on="run", how="semi", maintain_order="left")
    not_done = len(runs) - len(done)
    failed = requests.filter(pl.col("service_time").is_null()).group_by("run").len("failed_of_run")
    done = done.join(failed, on="run", how="left", maintain_order="left")
    for (rtt, loss), part in done.group_by("source_rtt_ms", "loss_percent", maintain_order=True):
        where = f"{rtt:g} ms, {loss:g} % loss"
        note = f"in {_number(len(part), 'combination')}"
        if not_done:
            note += f"; {not_done} of all {len(runs)} failed before their first request"
        yield Figure(
            _name(one, f"{where}: lost clients"),
            int(part["lost_clients"].sum()),
            "",
            at_most=0,
            note=f"of {int(part['clients'].sum())} {note}",
        )
        yield Figure(
            _name(one, f"{where}: failed requests"),
            int(part["failed_of_run"].sum()),
            "",
            at_most=0,
            note=f"of {len(requests.join(part, on='run', how='semi'))} {note}",
        )


def _failed_runs(one: Measured) -> Iterator[Figure]:
    failed = one.tables.runs.filter(pl.col("failed"))
    if len(failed) and one.experiment is not None:
        why = failed["problems"].str.split("\n").list.first().value_counts(sort=True)
        most, often = why.row(0)
        yield Figure(
            _name(one, "failed runs, of all"),
            len(failed),
            "runs",
            at_most=0,
            note=f"of {len(one.tables.runs)}; {often} times: {most}",
        )


def _rows(one: Measured, by: Sequence[str], metric: str) -> pl.DataFrame:
    """Return one metric over all runs that have some parameters in common."""
    return metrics.table(one.tables, by).filter(pl.col("metric") == metric)


def _name(one: Measured, what: str) -> str:
    return f"{one.experiment} ({one.place}) {what}"


def _number(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _of_runs(row: Mapping[str, Any], note: str) -> str:
    failed = f", {row['failed_runs']} failed" if row["failed_runs"] else ""
    return f"{note}{'; ' if note else ''}{_number(row['runs'], 'run')}{failed}"


def _figure(
    name: str, row: Mapping[str, Any], quantile: str, unit: str, bound: float | None, note: str
) -> Figure:
    """Return a quantile as a figure; if no run has come to it, the number of those runs."""
    note = _of_runs(row, note)
    if row[quantile] is None:
        return Figure(f"{name}: runs without any", row["failed"], "runs", at_most=0, note=note)
    return Figure(name, row[quantile] * _IN[unit], unit, at_most=bound, note=note)


def _thesis_ms(row: Mapping[str, Any]) -> str:
    return f"thesis {row['thesis_median'] * 1000:.1f}" if row["thesis_median"] is not None else ""
