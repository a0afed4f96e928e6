"""Twenty devices use one image at the same time, and each finds what was confirmed to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.owner.many import run_devices
from tests.support.effort import cases

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.interop
def test_o1_twenty_devices_have_one_owner(tmp_path: Path) -> None:
    """`python -m tests.owner.many` measures it."""
    found = run_devices(tmp_path, at_least=cases(15, 1000))
    assert len(found.confirmed) == 20
    assert set(found.memory) == {"owner", *(f"tpm-{number}" for number in range(6))}
