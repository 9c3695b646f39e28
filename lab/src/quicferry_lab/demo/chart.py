"""A picture of service time over time, drawn with text.

Each column is a slice of time: a solid bar up to the median service time of the requests that were
sent in it, a light one up to the maximum. The scale is logarithmic. A line marks each relocation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from quicferry_lab.demo.results import DemoResult, Sample

MARGIN = 9
SOLID, LIGHT, LINE, MARK = "█", "░", "│", "▲"


def service_time_chart(
    result: DemoResult, *, kind: str = "echo", width: int = 78, height: int = 9
) -> str:
    """Return the picture as lines of text.

    Args:
        result: what to draw.
        kind: of the requests that count.
        width: of the picture in characters.
        height: of the bars in lines.
    """
    samples = [
        sample
        for _, report in result.clients
        for sample in report.samples
        if sample.kind == kind and sample.started >= result.started
    ]
    if not samples:
        return "no request was answered"
    columns = max(10, width - MARGIN - 1)
    end = max(sample.started + sample.seconds for sample in samples)
    slice_length = (end - result.started) / columns

    def column_of(at: float) -> int:
        return min(columns - 1, max(0, int((at - result.started) / slice_length)))

    scale = _Scale(samples, height)
    slices: list[list[float]] = [[] for _ in range(columns)]
    for sample in samples:
        slices[column_of(sample.started)].append(sample.seconds)
    bars = [
        (scale.level(median(times)), scale.level(max(times))) if times else (0, 0)
        for times in slices
    ]
    marks = {column_of(relocation.switched_at) for relocation in result.relocations}

    lines = []
    for level in range(height, 0, -1):
        row = "".join(
            _cell(level, solid, top, marked=column in marks)
            for column, (solid, top) in enumerate(bars)
        )
        lines.append(f"{scale.label(level):>{MARGIN - 1}} ┤{row}".rstrip())
    lines.append(" " * MARGIN + "└" + "─" * columns)
    arrows = "".join(MARK if column in marks else " " for column in range(columns))
    lines.append(" " * (MARGIN + 1) + arrows.rstrip())
    seconds = f"{end - result.started:.1f} s"
    lines.append(" " * (MARGIN + 1) + "0 s" + seconds.rjust(columns - 3))
    lines.append(
        f"{'':{MARGIN + 1}}{kind} time: {SOLID} median {LIGHT} maximum {MARK} network switch"
    )
    return "\n".join(lines)


class _Scale:
    """A logarithmic scale with a whole number of levels."""

    def __init__(self, samples: Sequence[Sample], height: int) -> None:
        times = [sample.seconds for sample in samples]
        self._low = math.log(max(1e-5, min(times)) / 2)
        self._high = max(math.log(max(times)), self._low + 0.1)
        self._height = height

    def level(self, seconds: float) -> int:
        share = (math.log(max(seconds, 1e-5)) - self._low) / (self._high - self._low)
        return max(1, min(self._height, round(share * self._height)))

    def label(self, level: int) -> str:
        log = self._low + (self._high - self._low) * level / self._height
        milliseconds = math.exp(log) * 1000
        return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"


def _cell(level: int, solid: int, top: int, *, marked: bool) -> str:
    if level <= solid:
        return SOLID
    if level <= top:
        return LIGHT
    return LINE if marked else " "
