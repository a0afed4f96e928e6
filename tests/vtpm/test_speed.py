"""The benchmark of NV writes runs; what it measures is in docs/benchmarks.md, not asserted here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bench.vtpm_nv_writes import measure

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.interop
def test_nv_writes_are_measured_beside_swtpms(tmp_path: Path) -> None:
    found = measure(tmp_path, ("swtpm", "encrypted"), rounds=2, writes=25)
    assert set(found) == {"swtpm", "encrypted"}
    assert all(seconds > 0 for seconds in found.values())
