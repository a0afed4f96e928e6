"""OVMF and a TPM from one image: nothing that was confirmed is lost, whatever is killed."""

from __future__ import annotations

import pytest

from tests.owner.machines import VICTIMS, story
from tests.support.effort import cases

pytestmark = [pytest.mark.interop, pytest.mark.slow]


def test_v70_n27_a_machine_and_its_owner_are_killed_again_and_again() -> None:
    """`python -m tests.owner.machines 100` does it as often as you like."""
    with story(seed=15) as machine:
        for number in range(cases(3, 100)):
            machine.live(VICTIMS[number % 3], through=number % 2 == 1)
        machine.finish()
        assert machine.tally.confirmed["V"] > 0
        assert machine.tally.confirmed["N"] > 0
