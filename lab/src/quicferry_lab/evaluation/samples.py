"""The values that metrics are of: what each run, or each of its requests, has come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from quicferry_lab.evaluation import thesis
from quicferry_lab.evaluation.run import WITHOUT, Script
from quicferry_lab.evaluation.store import Tables

NEEDED = (
    *("run", "script", "client", "number", "started", "service_time", "relocate_after"),
    *("technique", "interval", "duration", "destination_rtt_ms"),
)
"""What of the requests the metrics are computed from: there may be millions."""

Values = Iterator[tuple[str, pl.DataFrame]]
"""The name of a metric, and its values, with the run of each; null where it failed."""


def all_of(tables: Tables) -> Values:
    """Yield each metric's values, for what happens in these runs."""
    for script in tables.runs["script"].unique(maintain_order=True):
        runs, relocations, requests = (
            frame.filter(pl.col("script") == script)
            for frame in (tables.runs, tables.relocations, tables.requests)
        )
        runs = runs.unique("run", maintain_order=True)
        of_script = replace(tables, runs=runs, relocations=relocations, requests=requests)
        yield from _OF_SCRIPT[Script(script)](of_script)


def with_phase(tables: Tables) -> pl.DataFrame:
    """Return the requests with a column ``phase``: before, during or after the silence.

    *Before*: the response was there when the server fell silent. *After*: the request was sent when
    the server could speak again. All others, and those that failed on the way, are *during*.
    """
    ended = pl.col("started") + pl.col("service_time").fill_null(float("inf"))
    before = pl.col("silent_at").is_null() | (ended <= pl.col("silent_at"))
    after = pl.col("started") >= pl.col("restored_at")
    return _with_silence(tables).with_columns(
        pl.when(before)
        .then(pl.lit("before"))
        .when(after)
        .then(pl.lit("after"))
        .otherwise(pl.lit("during"))
        .alias("phase")
    )


def with_place(tables: Tables) -> pl.DataFrame:
    """Return the requests with a column ``place``: whether the server was *near* or *far*.

    The client begins near the server. Each of its moves takes it away, or, if the server has stayed
    where it was, back; when the server has followed, it is near again. Moves are every
    ``interval`` seconds.
    """
    frames = [tables.requests.with_columns(pl.lit("near").alias("place")).clear()]
    for (run,), requests in tables.requests.group_by("run", maintain_order=True):
        relocations = tables.relocations.filter(pl.col("run") == run)
        is_far = [False] * len(requests)
        for begin, end in far_times(requests.row(0, named=True), relocations):
            is_far = [
                before or begin <= started < end
                for before, started in zip(is_far, requests["started"], strict=True)
            ]
        place = ["far" if far else "near" for far in is_far]
        frames.append(requests.with_columns(pl.Series("place", place, pl.String)))
    return pl.concat(frames)


def far_times(run: Mapping[str, Any], relocations: pl.DataFrame) -> list[tuple[float, float]]:
    """Return from when to when the server of a run was far from its client.

    Args:
        run: The run's parameters.
        relocations: Its relocations.
    """
    moves = [run["interval"] * number for number in range(1, _moves(run) + 1)]
    ends = [*moves[1:], float("inf")]
    if run["technique"] == WITHOUT:
        return list(zip(moves[::2], ends[::2], strict=True))
    restored = dict(zip(relocations["number"], relocations["restored_at"], strict=True))
    spans = []
    for number, (move, end) in enumerate(zip(moves, ends, strict=True), start=1):
        back = restored.get(number)
        spans.append((move, end if back is None else min(end, back)))
    return spans


def _moves(run: Mapping[str, Any]) -> int:
    """Return how often a client moves: the last time before the end of the run."""
    interval, duration = run["interval"], run["duration"]
    return max(0, int(duration / interval - 1e-9)) if interval > 0 else 0


def _baseline(tables: Tables) -> Values:
    yield "service_time", _of_requests(tables.requests)


def _first_request(tables: Tables) -> Values:
    number = pl.col("number") - pl.col("relocate_after")
    yield "first_request", _per_run(tables, _of_requests(tables.requests.filter(number == 1)))
    yield "request_before", _per_run(tables, _of_requests(tables.requests.filter(number == 0)))
    yield from _of_relocations(tables)


def _under_load(tables: Tables) -> Values:
    yield from _of_relocations(tables)
    yield "longest", _per_run(tables, _longest(_around(tables)))
    yield "beyond", _per_run(tables, _beyond(tables).filter(number=1).drop("number"))


def _notification(tables: Tables) -> Values:
    yield "notification_time", _per_run(tables, _notification_time(tables))


def _over_time(tables: Tables) -> Values:
    requests = with_phase(tables)
    for phase in ("before", "during", "after"):
        yield phase, _of_requests(requests.filter(pl.col("phase") == phase))
    yield "longest", _per_run(tables, _longest(tables.requests))
    yield from _of_relocations(tables)
    yield from _losses(tables)


def _follow(tables: Tables) -> Values:
    requests = with_place(tables)
    yield "service_time", _of_requests(requests)
    for place in ("near", "far"):
        yield place, _of_requests(requests.filter(pl.col("place") == place))
    share = requests.group_by("run").agg((pl.col("place") == "near").mean().alias("value"))
    yield "near_share", _per_run(tables, share)
    yield "silence", _of_column(tables, pl.col("restored_at") - pl.col("silent_at"))
    yield "beyond", _beyond(tables).drop("number")
    yield from _losses(tables)


_OF_SCRIPT: dict[Script, Callable[[Tables], Values]] = {
    Script.BASELINE: _baseline,
    Script.FIRST_REQUEST: _first_request,
    Script.UNDER_LOAD: _under_load,
    Script.NOTIFICATION: _notification,
    Script.OVER_TIME: _over_time,
    Script.FOLLOW: _follow,
}


def _of_relocations(tables: Tables) -> Values:
    first = replace(tables, relocations=tables.relocations.filter(pl.col("number") == 1))
    yield "notification_time", _per_run(first, _notification_time(first))
    for name in ("pre_dump", "pre_dump_transfer", *thesis.SILENCE, "carried"):
        yield name, _per_run(first, _of_column(first, pl.col(name)))
    work = pl.sum_horizontal(thesis.SILENCE, ignore_nulls=False)
    yield "work", _per_run(first, _of_column(first, work))
    silence = pl.col("restored_at") - pl.col("silent_at")
    yield "silence", _per_run(first, _of_column(first, silence))


def _notification_time(tables: Tables) -> pl.DataFrame:
    first = tables.relocations.filter(pl.col("number") == 1)
    return first.select("run", (pl.col("ready_at") - pl.col("imminent_at")).alias("value"))


def _losses(tables: Tables) -> Values:
    failed = tables.requests.group_by("run").agg(
        pl.col("service_time").null_count().cast(pl.Float64).alias("value")
    )
    every = tables.runs.select("run").join(failed, on="run", how="left", maintain_order="left")
    yield "failed_requests", every.with_columns(pl.col("value").fill_null(0.0))
    yield "lost_clients", tables.runs.select("run", pl.col("lost_clients").alias("value"))


def _around(tables: Tables) -> pl.DataFrame:
    """Return the requests from when the server was told to get ready."""
    ended = pl.col("started") + pl.col("service_time").fill_null(float("inf"))
    return _with_silence(tables).filter(
        pl.col("imminent_at").is_null() | (ended >= pl.col("imminent_at"))
    )


def _longest(requests: pl.DataFrame) -> pl.DataFrame:
    return requests.group_by("run", maintain_order=True).agg(
        pl.col("service_time").max().alias("value")
    )


def _beyond(tables: Tables) -> pl.DataFrame:
    """Return what the longest request of each relocation took beyond the silence.

    That is the longest service time of those that met the silence, less the silence and a round
    trip of the new path: what the protocol, and finding the server, add to what nobody could have
    avoided. A silence shorter than a round trip of the old path may be all over while a request is
    on its way; then what is left is the longer way.
    """
    requests = tables.requests.select("run", "started", "service_time", "destination_rtt_ms")
    pairs = tables.relocations.select("run", "number", "silent_at", "restored_at").join(
        requests, on="run", maintain_order="left"
    )
    ended = pl.col("started") + pl.col("service_time")
    silence = pl.col("restored_at") - pl.col("silent_at")
    met = (pl.col("started") < pl.col("restored_at")) & (ended > pl.col("silent_at"))
    beyond = pl.col("service_time") - silence - pl.col("destination_rtt_ms") / 1000
    return (
        pairs.filter(met)
        .group_by("run", "number", maintain_order=True)
        .agg(beyond.max().alias("value"))
    )


def _with_silence(tables: Tables) -> pl.DataFrame:
    """Return the requests with the instants of the first relocation of their run."""
    first = tables.relocations.filter(pl.col("number") == 1)
    instants = first.select("run", "imminent_at", "silent_at", "restored_at")
    return tables.requests.join(instants, on="run", how="left", maintain_order="left")


def _of_requests(requests: pl.DataFrame) -> pl.DataFrame:
    return requests.select("run", pl.col("service_time").alias("value"))


def _of_column(tables: Tables, value: pl.Expr) -> pl.DataFrame:
    return tables.relocations.select("run", value.cast(pl.Float64).alias("value"))


def _per_run(tables: Tables, values: pl.DataFrame) -> pl.DataFrame:
    """Return one value for each run: null where there is none, or the run has failed."""
    return (
        tables.runs.select("run", "failed")
        .join(values, on="run", how="left", maintain_order="left")
        .select("run", pl.when(~pl.col("failed")).then(pl.col("value")).alias("value"))
    )
