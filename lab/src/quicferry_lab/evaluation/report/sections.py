"""What the page says of each experiment: its question, pictures and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from quicferry_lab.evaluation import metrics
from quicferry_lab.evaluation.metrics import METRICS, Measured
from quicferry_lab.evaluation.report import (
    boxes,
    failures,
    following,
    notifications,
    over_time,
    relocations,
    sweeps,
)
from quicferry_lab.evaluation.report.page import (
    MISSING,
    NAME,
    NUMBER,
    THESIS,
    Column,
    heading,
    paragraph,
    plain,
    table,
)
from quicferry_lab.evaluation.report.pictures import Picture
from quicferry_lab.evaluation.run import Backend, Peer

Draw = Callable[[Picture | None], str]
"""Keeps a picture, and returns it as an element of the page, which is empty if there is none."""

_SWEEP_ROWS = 400

_PHASES = {
    "pre_dump": "pre-dump",
    "pre_dump_transfer": "transfer of it",
    "dump": "dump",
    "transfer": "transfer",
    "restore": "restore",
    "work": "dump + transfer + restore",
    "silence": "silence",
}


def of_experiment(
    number: int, of_it: Sequence[Measured], others: Sequence[Measured], draw: Draw
) -> str:
    """Return everything about one of the experiments 0 to 4.

    Args:
        number: Which one.
        of_it: Its results, of one backend after another.
        others: All results.
        draw: What to do with a picture.
    """
    parts = [paragraph(metrics.described(number).question, "question")]
    if number == 2:
        parts.append(draw(relocations.silences(of_it)))
    for one in of_it:
        if len(of_it) > 1:
            parts.append(heading(f"On {one.place}"))
        if len(one.tables.runs):
            parts += _BODIES[number](one, others, draw)
        parts += failures.of(one)
    return "\n".join(parts)


def of_following(of_both: Sequence[Measured], draw: Draw) -> str:
    """Return everything about experiments 5 and 6, which are to be seen together."""
    numbers = sorted({one.experiment for one in of_both if one.experiment is not None})
    parts = [paragraph(metrics.described(number).question, "question") for number in numbers]
    for backend in dict.fromkeys(one.backend for one in of_both):
        parts.append(draw(following.over_the_hour(of_both, backend)))
        parts.append(draw(following.distribution(of_both, backend)))
        rows = [
            (one, found)
            for one in sorted(of_both, key=lambda one: -(one.experiment or 0))
            if one.backend is backend
            for found in _grouped(one, ("arm",))
        ]
        parts.append(_following_table(f"On {backend.value}", [found for _, found in rows]))
    for one in of_both:
        parts += failures.of(one)
    return "\n".join(parts)


def of_sweep(one: Measured, draw: Draw) -> str:
    """Return everything about a sweep."""
    parts = [paragraph("What do the parameters do, one by one and together?", "question")]
    parts.append(draw(sweeps.effects(one)))
    parameters = metrics.telling_apart(one.tables.runs)
    chosen = sweeps.metric_of(one)
    rows = one.rows.filter(metric=chosen or "")
    caption = f"{METRICS[chosen].label.capitalize()}, in ms" if chosen else "Nothing was measured"
    if len(rows) > _SWEEP_ROWS:
        caption += f": the first {_SWEEP_ROWS} of {len(rows)} combinations"
    columns = [
        *(Column(name.replace("_", " "), NAME) for name in parameters),
        *map(Column, ("runs", "failed", "median", "p95", "max")),
    ]
    cells = [
        [
            *(plain(row[name]) for name in parameters),
            str(row["runs"]),
            str(row["failed_runs"]),
            *(_ms(row, name) for name in ("median", "p95", "max")),
        ]
        for row in rows.head(_SWEEP_ROWS).to_dicts()
    ]
    return "\n".join([*parts, table(caption, columns, cells), *failures.of(one)])


def _service_times(one: Measured, others: Sequence[Measured], draw: Draw) -> list[str]:
    metric = "service_time" if one.experiment == 0 else "first_request"
    ours = one.only(pl.col("peer") == Peer.OURS.value)
    parts = []
    if len(ours.tables.runs):
        parts = [
            draw(boxes.service_times(ours, others)),
            _beside_thesis(ours, metric, ("arm", "loss_percent"), METRICS[metric].label),
        ]
    return [*parts, _beside_ours(one, metric)]


def _beside_ours(one: Measured, metric: str) -> str:
    """Return a table of a metric with other servers than ours; nothing if there are none."""
    quantiles = ("median", "p95")
    columns = [
        *_named("peer", "arm", "loss_percent"),
        *map(Column, ("runs", "failed", *quantiles)),
        *(Column(f"ours: {name}") for name in ("failed", *quantiles)),
        Column("median: more than ours"),
    ]
    cells = []
    for row in metrics.beside_ours(one, metric):
        ours, failed = row["ours_median"], row["ours_failed_runs"]
        more = None if None in (ours, row["median"]) else row["median"] - ours
        cells.append(
            [
                *_parameters(row, "peer", "arm", "loss_percent"),
                str(row["runs"]),
                str(row["failed_runs"]),
                *(_ms(row, name) for name in quantiles),
                MISSING if failed is None else str(failed),
                *(_ms(row, f"ours_{name}") for name in quantiles),
                _ms({"more": more}, "more"),
            ]
        )
    if not cells:
        return ""
    label = METRICS[metric].label
    return table(
        f"{label[0].upper()}{label[1:]}, in ms, of our clients with a double of the thesis's "
        "server, beside that with ours",
        columns,
        cells,
    )


def _relocations(one: Measured, others: Sequence[Measured], draw: Draw) -> list[str]:
    parts = [draw(boxes.waits(one)), _phases(one)]
    columns = [
        *_named("arm", "loss_percent"),
        *map(Column, ("runs", "failed", "longest: median", "p95", "max")),
        *map(Column, ("beyond: median", "p95", "max")),
    ]
    cells = [
        [
            *_parameters(group, "arm", "loss_percent"),
            *_counts(found),
            *(_ms(found.get("longest"), name) for name in ("median", "p95", "max")),
            *(_ms(found.get("beyond"), name) for name in ("median", "p95", "max")),
        ]
        for group, found in _grouped(one, ("arm", "loss_percent"))
    ]
    caption = (
        "The longest request, and what it takes beyond the silence and one round trip of the new "
        "path, in ms, over all techniques"
    )
    return [*parts, table(caption, columns, cells)]


def _phases(one: Measured) -> str:
    by = ("technique", "memory_mb", "compression", "loss_percent")
    groups = _grouped(one, by)
    phases, carrying = (
        [name for name in names if any(name in found for _, found in groups)]
        for names in (_PHASES, ["carried"])
    )
    columns = [
        *_named(*by),
        *map(Column, ("runs", "failed")),
        *(Column(_PHASES[name]) for name in phases),
        *(Column("carried, MB") for _ in carrying),
        Column("thesis: dump + transfer + restore", THESIS),
        Column("ratio"),
    ]
    cells = []
    for group, found in groups:
        work = found.get("work") or found.get("silence") or {}
        cells.append(
            [
                *_parameters(group, *by),
                *_counts(found),
                *(_seconds((found.get(name) or {}).get("median")) for name in phases),
                *(_megabytes(found.get(name)) for name in carrying),
                _seconds(work.get("thesis_median")),
                _ratio(work),
            ]
        )
    assumed = "; assumed here, not found" if one.backend is Backend.SIM else ""
    caption = f"Medians of what a relocation is made of, in s, over all protocols{assumed}"
    return table(caption, columns, cells)


def _notification_times(one: Measured, others: Sequence[Measured], draw: Draw) -> list[str]:
    return [
        draw(notifications.notification_times(one)),
        _beside_thesis(
            one,
            "notification_time",
            ("arm", "clients", "source_rtt_ms"),
            "from imminent to ready",
        ),
    ]


def _over_time(one: Measured, others: Sequence[Measured], draw: Draw) -> list[str]:
    by = ("technique", "arm", "source_rtt_ms", "loss_percent")
    phases = ("before", "during", "after")
    columns = [
        *_named(*by),
        *map(Column, ("runs", "failed", "requests")),
        *(Column(f"{phase}: {name}") for phase in phases for name in ("median", "p95")),
        *map(Column, ("longest", "failed requests", "lost clients")),
    ]
    cells = [
        [
            *_parameters(group, *by),
            *_counts(found),
            _requests(found[phase] for phase in phases if phase in found),
            *(_ms(found.get(phase), name) for phase in phases for name in ("median", "p95")),
            _ms(found.get("longest"), "max"),
            _total(found.get("failed_requests")),
            _total(found.get("lost_clients")),
        ]
        for group, found in _grouped(one, by)
    ]
    caption = (
        "Service times before, during and after the silence, in ms, over all sizes of memory and "
        "pauses"
    )
    return [
        draw(over_time.service_times(one)),
        draw(over_time.longest(one)),
        table(caption, columns, cells),
    ]


_BODIES: Mapping[int, Callable[[Measured, Sequence[Measured], Draw], list[str]]] = {
    0: _service_times,
    1: _service_times,
    2: _relocations,
    3: _notification_times,
    4: _over_time,
}


def _following_table(
    caption: str, groups: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> str:
    columns = [
        Column("protocol and policy", NAME),
        *map(Column, ("requests", "failed", "near, %", "all: mean", "median", "p95", "max")),
        *map(Column, ("near: median", "far: median", "silence, s", "beyond: median", "max")),
    ]
    cells = []
    for group, found in groups:
        every = found.get("service_time") or {}
        share = (found.get("near_share") or {}).get("median")
        cells.append(
            [
                str(group["arm"]),
                f"{every.get('n', 0) + every.get('failed', 0):,}",
                str(every.get("failed", 0)),
                MISSING if share is None else f"{share * 100:.1f}",
                *(_ms(every, name) for name in ("mean", "median", "p95", "max")),
                _ms(found.get("near"), "median"),
                _ms(found.get("far"), "median"),
                _seconds((found.get("silence") or {}).get("median")),
                *(_ms(found.get("beyond"), name) for name in ("median", "max")),
            ]
        )
    return table(
        f"{caption}: service times in ms; beyond is what the longest request of a relocation takes "
        "more than the silence and one round trip of the near path",
        columns,
        cells,
    )


def _beside_thesis(one: Measured, metric: str, by: Sequence[str], label: str) -> str:
    """Return a table with one row per group: our quantiles, the thesis's, and the ratio."""
    rows = metrics.table(one.tables, by).filter(metric=metric)
    quantiles = ("min", "median", "p95", "max")
    columns = [
        *_named(*by),
        *map(Column, ("runs", "failed")),
        *map(Column, quantiles),
        *(Column(f"thesis: {name}", THESIS) for name in ("failed", *quantiles)),
        Column("ratio"),
    ]
    cells = []
    for row in rows.to_dicts():
        finding = metrics.in_thesis(row)
        cells.append(
            [
                *_parameters(row, *by),
                str(row["runs"]),
                str(row["failed_runs"]),
                *(_ms(row, name) for name in quantiles),
                MISSING if finding is None else str(finding.failed),
                *(_ms(None if finding is None else vars(finding), name) for name in quantiles),
                _ratio(row),
            ]
        )
    return table(
        f"{label[0].upper()}{label[1:]}, in ms; the ratio is our median to the thesis's",
        columns,
        cells,
    )


def _grouped(
    one: Measured, by: Sequence[str]
) -> list[tuple[Mapping[str, Any], dict[str, dict[str, Any]]]]:
    """Return the metrics of each group by their names, with the group's parameters."""
    groups: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in metrics.table(one.tables, by).to_dicts():
        groups.setdefault(tuple(row[name] for name in by), {})[row["metric"]] = row
    return [(dict(zip(by, key, strict=True)), found) for key, found in groups.items()]


_NAMES = {
    "arm": "protocol and policy",
    "loss_percent": "loss, %",
    "peer": "server",
    "source_rtt_ms": "RTT, ms",
    "memory_mb": "memory, MB",
}


def _named(*parameters: str) -> list[Column]:
    kinds = {"arm": NAME, "peer": NAME, "technique": NAME, "compression": NAME}
    return [Column(_NAMES.get(name, name), kinds.get(name, NUMBER)) for name in parameters]


def _parameters(group: Mapping[str, Any], *names: str) -> list[str]:
    return [plain(group[name]) for name in names]


def _counts(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    row = next(iter(found.values()))
    return [str(row["runs"]), str(row["failed_runs"])]


def _requests(rows: Iterable[Mapping[str, Any]]) -> str:
    return f"{sum(row['n'] + row['failed'] for row in rows):,}"


def _ms(row: Mapping[str, Any] | None, name: str) -> str:
    value = None if row is None else row.get(name)
    if value is None:
        return MISSING
    return f"{value * 1000:,.2f}" if abs(value) < 0.1 else f"{value * 1000:,.1f}"


def _seconds(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _megabytes(row: Mapping[str, Any] | None) -> str:
    value = None if row is None else row["median"]
    return MISSING if value is None else f"{value / 1e6:,.1f}"


def _ratio(row: Mapping[str, Any]) -> str:
    return MISSING if row.get("ratio") is None else f"{row['ratio']:.2f}"


def _total(row: Mapping[str, Any] | None) -> str:
    """Return the sum of a number of each run."""
    return MISSING if row is None or row["mean"] is None else f"{row['mean'] * row['n']:.0f}"
