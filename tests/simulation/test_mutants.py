"""A product that breaks a promise is found, in fewer steps than CI makes."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.run import run_many
from tests.simulation.scheduler import SimulationError

STEPS = 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("left_out", MUTANTS)
def test_a_product_without_it_is_found(left_out: str) -> None:
    with MUTANTS[left_out](), pytest.raises(SimulationError, match="replay it"):
        run_many(1, STEPS)
