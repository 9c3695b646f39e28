"""Runs the benchmarks: ``python -m quicferry_lab.bench``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

from . import handover, loopback, scale, simulated, snapshots
from .report import Figure, as_json

_PARTS: dict[str, Callable[[], Iterator[Figure]]] = {
    "simulated": simulated.figures,
    "scale": scale.figures,
    "snapshots": snapshots.figures,
    "loopback": loopback.figures,
    "handover": handover.figures,
}


def main() -> int:
    """Measure and print; return 1 if a promise is not kept."""
    parser = argparse.ArgumentParser(prog="quicferry_lab.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*_PARTS, []], help="what to measure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    figures = []
    for name in arguments.parts or _PARTS:
        for figure in _PARTS[name]():
            figures.append(figure)
            if not arguments.json:
                print(figure.line(), flush=True)
    if arguments.json:
        print(as_json(figures))
    return 0 if all(figure.is_met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
