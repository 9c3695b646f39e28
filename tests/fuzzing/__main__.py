"""Fuzzing: ``make fuzz``, or ``python -m fuzzing`` in the folder of the tests.

Each target in turn gets inputs that follow from a seed, until the time is over. A finding ends it:
the smallest input that shows it is printed, with the command that plays it again.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import logging
import random
import sys
import time
import traceback
from collections.abc import Sequence

from fuzzing.harness import Cost, explore
from fuzzing.targets import TARGETS

EXAMPLES = 10
"""Inputs of a target before it is the next one's turn."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long")
    parser.add_argument("--seed", type=int, help="the first seed; a random one otherwise")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    options = parser.parse_args(arguments)
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"there is no target {', '.join(sorted(unknown))}")
    number = random.randrange(1 << 32) if options.seed is None else options.seed
    names = options.targets or list(TARGETS)
    print(f"seed {number}; targets: {', '.join(names)}", flush=True)
    logging.getLogger().addHandler(logging.NullHandler())  # what peers do wrong is logged as well
    gc.freeze()
    spent = dict.fromkeys(names, 0.0)
    inputs = dict.fromkeys(names, 0)
    most = {name: Cost() for name in names}
    ends_at = time.monotonic() + options.seconds
    for turn, name in enumerate(itertools.cycle(names)):
        if turn >= len(names) and time.monotonic() >= ends_at:
            break
        began_at = time.monotonic()
        this_seed = number + turn // len(names)
        try:
            cost = explore(TARGETS[name], this_seed, EXAMPLES)
        except Exception:
            traceback.print_exc()
            again = f"make fuzz SECONDS=0 SEED={this_seed} TARGETS={name}"
            print(f"FAILED: {name}, seed {this_seed}; again: {again}", file=sys.stderr)
            return 1
        inputs[name] += EXAMPLES
        most[name].seconds = max(most[name].seconds, cost.seconds)
        most[name].memory = max(most[name].memory, cost.memory)
        spent[name] += time.monotonic() - began_at
    for name in names:
        slowest, largest = most[name].seconds * 1000, most[name].memory / 1e6
        print(
            f"{name:<18} {inputs[name]:>6} inputs {spent[name]:>7.1f} s; "
            f"at most {slowest:>5.1f} ms and {largest:>4.1f} MB"
        )
    print(f"nothing found with the seeds {number} to {this_seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
