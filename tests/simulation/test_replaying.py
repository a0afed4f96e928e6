"""The same seed is the same simulation, in every process, and a failure says how to have it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.mutants import MUTANTS
from tests.simulation.run import simulate
from tests.simulation.scheduler import SimulationError

_SEEDS = (3, 7, 15)  # the last one is encrypted
_STEPS = 5_000
_DIGESTS = f"""
from tests.simulation.run import simulate
for seed in {_SEEDS}[::STEP]:
    print(seed, simulate(seed, steps={_STEPS}).scheduler.digest)
"""


def _digests(hash_seed: str, order: int) -> list[str]:
    """Return the digest of each seed, computed in this order by a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _DIGESTS.replace("STEP", str(order))],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    return sorted(done.stdout.split("\n"))


def test_a_seed_leads_to_the_same_steps_in_each_process_and_after_other_seeds() -> None:
    assert _digests("1", 1) == _digests("77", -1)


def test_two_seeds_lead_to_different_steps() -> None:
    one, other = (simulate(seed, steps=_STEPS).scheduler.digest for seed in _SEEDS[:2])
    assert one != other


def test_a_failure_says_how_to_replay_it_and_the_replay_fails_alike() -> None:
    def failure() -> str:
        with MUTANTS["condition"](), pytest.raises(SimulationError) as caught:
            simulate(1)
        return str(caught.value)

    told = failure()
    assert "python -m tests.simulation --seed 1 --steps 20000" in told
    assert "the last events" in told
    assert failure() == told
