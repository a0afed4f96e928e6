"""``python -m tests.simulation``: simulations from a seed on, or the one that failed again."""

from __future__ import annotations

import argparse
import json
import sys
import time

from tests.simulation.run import LENGTH, Report, run_many
from tests.simulation.scheduler import SimulationError


def main() -> int:
    """Run simulations; exit with 1 if one fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of the first simulation")
    parser.add_argument(
        "--steps",
        type=int,
        default=LENGTH,
        help="in all; a simulation has at most %(default)s, and the next one the next seed",
    )
    parser.add_argument("--report", action="store_true", help="say what happened, and how often")
    parser.add_argument("--trace", type=int, default=60, help="events that a failure shows")
    asked = parser.parse_args()
    began, said = time.monotonic(), time.monotonic()

    def progress(report: Report) -> None:
        nonlocal said
        if asked.report and time.monotonic() - said >= 60:
            said = time.monotonic()
            print(f"{report.steps} steps, {report.steps / (said - began):.0f} in a second")
            sys.stdout.flush()

    try:
        report = run_many(asked.seed, asked.steps, progress, traced=asked.trace)
    except SimulationError as error:
        print(error)
        return 1
    print(f"{report.steps} steps in {report.runs} simulations: nothing was lost")
    if asked.report:
        json.dump(report.counts, sys.stdout, indent=2, sort_keys=True)
        print(f"\n{report.steps / (time.monotonic() - began):.0f} steps in a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
