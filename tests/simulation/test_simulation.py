"""A million steps of the product in simulated trouble, in which nothing may be lost."""

from __future__ import annotations

import pytest

from tests.simulation.plans import FAULTS
from tests.simulation.run import run_many

#: Together they make a million.
PARTS = 10
STEPS = 100_000


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_is_lost_in_a_million_steps(part: int) -> None:
    report = run_many(1000 * part + 1, STEPS)
    assert report.steps >= STEPS
    for happened in ("acknowledged", "read", "recovered", "flushed windows", "told", "unknown"):
        assert report.counts[happened] > 10, f"{happened}: too little of it to prove anything"
    assert sum(report.counts.get(fault, 0) for fault in FAULTS) > 50
