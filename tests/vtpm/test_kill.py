"""A real TPM is killed at random instants: no acknowledged write is lost (V16)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.vtpm.kills import kill_again_and_again

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.slow
def test_v16_no_acknowledged_write_is_lost_when_the_tpm_is_killed(image: Path) -> None:
    tally = kill_again_and_again(image, 30, seed=20261120)
    assert tally.writes > 30
    assert tally.while_starting >= 1
