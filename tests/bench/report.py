"""What a suite found: ratios beside what is asked of them, and who was left out."""

from __future__ import annotations

import statistics
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tests.bench.measuring import quotient
from tests.bench.peers import MissingPeerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.bench.measuring import Runs

HEADINGS = ("what", "against", "asked", "measured", "met")


@dataclass(frozen=True)
class Comparison:
    """One line of the table.

    Attributes:
        what: Is measured.
        against: What it is compared with.
        measured: The ratio; None where one of both was left out.
        least: The ratio must be this or more.
        most: It must be this or less.
        unit: Of a measure that is no ratio.
    """

    what: str
    against: str
    measured: float | None
    least: float | None = None
    most: float | None = None
    unit: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is what was asked for; None where nothing was, or nothing is known."""
        if self.measured is None or self.least is self.most:
            return None
        above = self.least is None or self.measured >= self.least
        return above and (self.most is None or self.measured <= self.most)

    def row(self) -> tuple[str, ...]:
        """Return the cells of the table."""
        bounds = [(self.least, "at least"), (self.most, "at most")]
        asked = [f"{words} {self._shown(bound)}" for bound, words in bounds if bound is not None]
        measured = "left out" if self.measured is None else self._shown(self.measured)
        met = {None: "", True: "yes", False: "no"}[self.met]
        return self.what, self.against, " and ".join(asked) or "-", measured, met

    def _shown(self, value: float) -> str:
        return f"{value:.0f} {self.unit}" if self.unit else f"{value:.3g}"


@dataclass
class Report:
    """What one suite found.

    Attributes:
        name: Of the suite.
        comparisons: In the order of the table.
        medians: Of each cell, by the name of what was measured and that of the cell.
        left_out: Why, by the name of who was.
        versions: Of what was compared with.
    """

    name: str
    comparisons: list[Comparison] = field(default_factory=list)
    medians: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def optional(self, name: str) -> Iterator[None]:
        """Leave out what is not installed, and say so."""
        try:
            yield
        except MissingPeerError as error:
            self.left_out[name] = str(error)

    def keep(self, what: str, runs: Runs) -> None:
        """Note the medians of all figures."""
        self.medians[what] = {
            name: {figure: statistics.median(run[figure] for run in rounds) for figure in rounds[0]}
            for name, rounds in runs.items()
        }

    def compare(
        self,
        what: str,
        against: str,
        measured: float | None,
        *,
        least: float | None = None,
        most: float | None = None,
        unit: str = "",
    ) -> None:
        """Add a line to the table."""
        self.comparisons.append(Comparison(what, against, measured, least, most, unit))

    def compare_speed(
        self, what: str, runs: Runs, ours: str, peer: str, least: float | None = None
    ) -> None:
        """Add a line: how many times as fast as a peer, which may have been left out."""
        speed = quotient(runs, peer, ours) if peer in runs else None
        self.compare(what, peer, speed, least=least)

    def compare_time(
        self,
        what: str,
        runs: Runs,
        ours: str,
        peer: str,
        most: float | None = None,
        figure: str = "seconds",
    ) -> None:
        """Add a line: how many times what a peer takes, which may have been left out."""
        time = quotient(runs, ours, peer, figure) if peer in runs else None
        self.compare(what, peer, time, most=most)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        found = [{**asdict(one), "met": one.met} for one in self.comparisons]
        return {**asdict(self), "comparisons": found}

    def details(self) -> str:
        """Return the medians, for people."""
        lines = []
        for what, cells in self.medians.items():
            lines.append(what)
            for name, figures in cells.items():
                shown = "  ".join(_figure(*one) for one in figures.items())
                lines.append(f"    {name:32} {shown}")
        lines += [f"left out: {name}: {why}" for name, why in self.left_out.items()]
        return "\n".join(lines)


def table(comparisons: Sequence[Comparison]) -> str:
    """Return a table in Markdown."""
    rows = [HEADINGS, *(one.row() for one in comparisons)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"| {' | '.join(text.ljust(width) for text, width in zip(row, widths, strict=True))} |"
        for row in rows
    ]
    rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _figure(name: str, value: float) -> str:
    return f"{name} {value * 1e3:11.4f} ms"
