"""The report of the evaluation: one page with all pictures in it, and the pictures as files.

`write` makes it of whatever results a directory has: any experiments, on any backends, and sweeps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import polars as pl

from quicferry import __version__
from quicferry_lab.bench.report import Figure
from quicferry_lab.evaluation import bounds, experiment, metrics, ratios
from quicferry_lab.evaluation.metrics import Measured
from quicferry_lab.evaluation.report import pictures, sections
from quicferry_lab.evaluation.report.page import (
    MET,
    MISSED,
    MISSING,
    NAME,
    TEXT,
    THESIS,
    VERDICT,
    Column,
    Section,
    figure,
    page,
    paragraph,
    table,
)
from quicferry_lab.evaluation.report.pictures import Picture
from quicferry_lab.evaluation.store import StoreError

PAGE = "report.html"
PICTURES = "pictures"
CALIBRATION = "calibration.json"
RATIOS = "ratios.json"

_TITLE = "Moving a live QUIC server: the evaluation"
_LEAD = (
    "What was measured, beside what the thesis found (D. Casu, University of Pisa, 2022). "
    "Everything here is computed from the tables beside this page; a run that failed is counted "
    "and named, and never left out."
)
_VERSIONS = ("quicferry", "aioquic", "python")
_FOLLOWING = (5, 6)


def write(folder: Path) -> list[Path]:
    """Write the report of a directory's results into it.

    Args:
        folder: The directory; the results are in it, or in directories right below it.

    Returns:
        The page, ``report.html``, and then each picture as PNG and SVG, in ``pictures/``.

    Raises:
        QuicferryError: Results, ratios, or the calibration cannot be read.
    """
    measured = metrics.measure(folder)
    saved: list[Path] = []

    def draw(picture: Picture | None) -> str:
        if picture is None:
            return ""
        (folder / PICTURES).mkdir(exist_ok=True)
        png, svg = pictures.save(picture, folder / PICTURES)
        saved.extend([png, svg])
        return figure(pictures.inlined(svg), picture.title, picture.caption)

    with matplotlib.rc_context(pictures.LOOK):
        parts = _sections(folder, measured, draw)
    path = folder / PAGE
    path.write_text(page(_TITLE, _LEAD, parts, f"Made by quicferry {__version__}."), "utf-8")
    return [path, *saved]


def _sections(folder: Path, measured: Sequence[Measured], draw: sections.Draw) -> list[Section]:
    if not measured:
        nothing = (
            "There are no results in this directory. `quicferry lab run` and `quicferry lab sweep` "
            "make some."
        )
        found = [Section("nothing", "No results", paragraph(nothing))]
    else:
        found = [_what_was_run(measured), *_figures_to_reach(measured)]
    for number in experiment.NUMBERS:
        of_it = [one for one in measured if one.experiment == number]
        if of_it and number not in _FOLLOWING:
            title = f"{number}. {metrics.described(number).title}"
            body = sections.of_experiment(number, of_it, measured, draw)
            found.append(Section(f"experiment-{number}", title, body))
    if of_both := [one for one in measured if one.experiment in _FOLLOWING]:
        numbers = sorted({one.experiment for one in of_both if one.experiment is not None})
        title = " and ".join(f"{number}. {metrics.described(number).title}" for number in numbers)
        found.append(Section("following", title, sections.of_following(of_both, draw)))
    for number, one in enumerate(one for one in measured if one.experiment is None):
        title = f"Sweep in {one.tables.folder.resolve().name}"
        found.append(Section(f"sweep-{number + 1}", title, sections.of_sweep(one, draw)))
    return [*found, *_ratios(folder), *_trust(folder)]


def _what_was_run(measured: Sequence[Measured]) -> Section:
    grounds = [_ground(one.tables.runs) for one in measured]
    is_common = len(set(grounds)) == 1
    columns = [
        *(Column(name, NAME) for name in ("what", "backend", "form")),
        *map(Column, ("runs", "failed", "repetitions", "seeds")),
        *([] if is_common else [Column("with", TEXT)]),
    ]
    rows = []
    for one, ground in zip(measured, grounds, strict=True):
        runs = one.tables.runs
        scale = one.tables.settings.get("time_scale", 1.0)
        form = "quick" if one.is_quick else "whole"
        rows.append(
            [
                str(one.tables.settings["name"]),
                one.backend.value,
                form if scale == 1 else f"{form}, long times \N{MULTIPLICATION SIGN} {scale:g}",
                str(len(runs)),
                str(runs["failed"].sum()),
                str(max(runs["repetition"], default=0)),
                f"{min(runs['seed'])} to {max(runs['seed'])}" if len(runs) else MISSING,
                *([] if is_common else [ground]),
            ]
        )
    common = paragraph(f"All with {grounds[0]}.") if is_common else ""
    return Section("what-was-run", "What was run", common + table("", columns, rows))


def _ground(runs: pl.DataFrame) -> str:
    """Return what some runs were carried out with: versions, kernels and machines."""
    versions = ", ".join(f"{name} {_all_of(runs, name)}" for name in _VERSIONS)
    return f"{versions}; {_all_of(runs, 'kernel')}; {_all_of(runs, 'machine')}"


def _all_of(runs: pl.DataFrame, name: str) -> str:
    """Return what is in a column, each value once."""
    if name not in runs.columns:
        return MISSING
    return ", ".join(map(str, runs[name].drop_nulls().unique(maintain_order=True))) or MISSING


def _figures_to_reach(measured: Sequence[Measured]) -> list[Section]:
    found = bounds.of_measured(measured)
    if not found:
        return []
    return [Section("figures", "The figures to reach", _tally(found) + _figures(found))]


def _ratios(folder: Path) -> list[Section]:
    path = folder / RATIOS
    if not path.exists():
        return []
    samples = ratios.read(path)
    machines = ", ".join(dict.fromkeys(sample.machine for sample in samples))
    columns = [
        Column("technique", NAME),
        *map(Column, ("memory, MB", "runs", "failed")),
        *(
            column
            for metric in ratios.METRICS
            for column in (Column(metric), Column("thesis", THESIS))
        ),
    ]
    rows: dict[tuple[str, int], list[str]] = {}
    for row in ratios.compared(samples):
        first = [row["technique"], *(str(row[name]) for name in ("memory_mb", "runs", "failed"))]
        cells = rows.setdefault((row["technique"], row["memory_mb"]), first)
        cells += [_two_digits(row["ratio"]), _two_digits(row["thesis"])]
    text = (
        "Times as ratios to those of cold with the same memory, each trial of a round right after "
        f"the one before ({machines}). In an emulated machine the seconds themselves mean nothing. "
        "What is copied ahead, while the server still serves, is set beside the silence of cold."
    )
    body = paragraph(text) + table("Ratios of medians to cold", columns, rows.values())
    return [Section("ratios", "Each technique beside cold", body)]


def _two_digits(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{ratio:.2f}"


def _trust(folder: Path) -> list[Section]:
    path = folder / CALIBRATION
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        found = [_figure(entry) for entry in entries]
    except (OSError, ValueError, TypeError, AttributeError) as exc:
        raise StoreError(
            f"{path} is not what `quicferry lab calibrate` writes ({exc}); make it again, or "
            "remove it"
        ) from exc
    text = (
        "The simulation has real connections, but neither sockets nor processes; and the links of "
        "the laboratory are emulated. These figures say what links do that should do something "
        "known, and how far the same runs differ between the simulation and real sockets."
    )
    return [
        Section(
            "trust",
            "How far the simulation can be trusted",
            paragraph(text) + _tally(found) + _figures(found),
        )
    ]


def _figure(entry: dict[str, Any]) -> Figure:
    return Figure(**{name: value for name, value in entry.items() if name != "is_met"})


def _tally(found: Sequence[Figure]) -> str:
    promised = [each for each in found if each.at_most is not None or each.at_least is not None]
    met = sum(each.is_met for each in promised)
    return paragraph(f"{met} of {len(promised)} are reached.", "tally") if promised else ""


def _figures(found: Sequence[Figure]) -> str:
    columns = [
        Column("figure", NAME),
        Column("value"),
        Column("bound"),
        Column("verdict", VERDICT),
        Column("note", TEXT),
    ]
    return table("", columns, map(_figure_row, found))


def _figure_row(each: Figure) -> list[str]:
    bound, verdict = "", ""
    if each.at_most is not None:
        bound = f"\N{LESS-THAN OR EQUAL TO} {each.at_most:g}"
    elif each.at_least is not None:
        bound = f"\N{GREATER-THAN OR EQUAL TO} {each.at_least:g}"
    if bound:
        verdict = MET if each.is_met else MISSED
    return [each.name, f"{each.value:.4g} {each.unit}".strip(), bound, verdict, each.note]
