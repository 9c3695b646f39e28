"""Lays siege to servers: ``python -m quicferry_lab.siege``; exit status 1 if a bound is missed."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from quicferry.protocol import QuicferryError

from .attacks import ATTACKS
from .siege import MOST_GROWTH, MOST_TIMES, MOST_WAITING, Row, besiege

_HEADER = f"{'attack':<20} {'done':>8} {'calm':>9} {'besieged':>9} {'requests':>9} {'memory':>9}"


def line(row: Row) -> str:
    """Return a row of the table."""
    verdict = "; ".join(row.missed) or "ok"
    answered = f"{row.requests - row.unanswered}/{row.requests}"
    return (
        f"{row.attack:<20} {row.done:>8} {row.calm * 1000:>6.1f} ms {row.besieged * 1000:>6.1f} ms "
        f"{answered:>9} {row.growth / 1e6:>+6.1f} MB  {verdict}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make siege",
        description="A good client's 99th percentile and a server's memory under each attack: at "
        f"most {MOST_WAITING * 1000:.0f} ms, {MOST_TIMES:.0f} times as long as without it, and "
        f"{MOST_GROWTH >> 20} MB more.",
    )
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    parser.add_argument("--seconds", type=float, default=20, help="of each attack")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    if unknown := set(options.attacks) - set(ATTACKS):
        parser.error(f"there is no attack {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    if not options.json:
        print(_HEADER, flush=True)
    for name in options.attacks or ATTACKS:
        try:
            rows.append(asyncio.run(besiege(name, options.seconds)))
        except QuicferryError as exc:
            print(f"FAILED: {name}: {exc}", file=sys.stderr)
            return 1
        if not options.json:
            print(line(rows[-1]), flush=True)
    if options.json:
        print(json.dumps([asdict(row) | {"missed": row.missed} for row in rows], indent=1))
    return 1 if any(row.missed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
