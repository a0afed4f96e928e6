"""Things measured in turn, and how they compare.

Whatever else the machine does, it does to all of them: only figures of the same
round are compared, and the median of these ratios counts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    #: What one run took, by name; less is better.
    Figures = Mapping[str, float]
    #: The figures of each round, by the name of the cell.
    Runs = Mapping[str, Sequence[Figures]]

ROOT = Path(__file__).resolve().parents[2]
_UNCOMPILED = "PYTHONDONTWRITEBYTECODE"
#: Seconds that a round spends with what takes less.
_LEAST = 0.01


class Cell(NamedTuple):
    """One of the things that are measured in turn.

    Attributes:
        name: Of what is measured.
        run: Does it once.
        prepare: Called before each run, and not measured.
        spoil: Called before the warm-up, so that ``check`` sees what that did.
        check: Called after the warm-up; raises what is wrong with the outcome.
    """

    name: str
    run: Callable[[], Figures]
    prepare: Callable[[], object] | None = None
    spoil: Callable[[], object] | None = None
    check: Callable[[], object] | None = None


def measure(cells: Sequence[Cell], rounds: int) -> dict[str, list[Figures]]:
    """Run each cell once to warm up, and then once per round, each first in its turn."""
    runs: dict[str, list[Figures]] = {cell.name: [] for cell in cells}
    for cell in cells:
        if cell.spoil:
            cell.spoil()
        _run(cell)
        if cell.check:
            cell.check()
    for number in range(rounds):
        first = number % len(cells)
        for cell in (*cells[first:], *cells[:first]):
            runs[cell.name].append(_run(cell))
    return runs


def _run(cell: Cell) -> Figures:
    if cell.prepare:
        cell.prepare()
    return cell.run()


def quotient(runs: Runs, one: str, other: str, figure: str = "seconds") -> float:
    """Return how many times ``other``'s figure ``one``'s is: the median of all rounds."""
    pairs = zip(runs[one], runs[other], strict=True)
    return statistics.median(mine[figure] / theirs[figure] for mine, theirs in pairs)


def quotient_of_sums(runs: Runs, one: str, other: str, figure: str) -> float:
    """Return the same of all rounds together: what is rare and long then counts in full."""
    mine, theirs = (sum(run[figure] for run in runs[name]) for name in (one, other))
    return mine / theirs


def repeated(action: Callable[[], object]) -> Callable[[], Figures]:
    """Return a run of what takes microseconds: often enough to be measured."""

    def run() -> Figures:
        count = max(1, int(_LEAST / max(_seconds(action, 1), 1e-7)))
        return {"seconds": _seconds(action, count) / count}

    return run


def _seconds(action: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        action()
    return time.perf_counter() - started


def process(command: Sequence[str | Path]) -> Callable[[], Figures]:
    """Return a run of a program that must succeed: seconds that pass, and of CPU time."""
    # As where it is installed: its Python keeps what it compiled.
    environment = {name: value for name, value in os.environ.items() if name != _UNCOMPILED}

    def run() -> Figures:
        started = time.perf_counter()
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            assert running.stderr is not None
            complaint = running.stderr.read()
            _, status, usage = os.wait4(running.pid, 0)
            seconds = time.perf_counter() - started
            running.returncode = os.waitstatus_to_exitcode(status)
        if running.returncode:
            raise RuntimeError(f"{command[0]} failed with {running.returncode}: {complaint}")
        return {"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime}

    return run
