"""The comparison of writes over NBD runs; no time is judged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bench.nbd_writes import OURS, measure

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.interop
def test_all_servers_are_measured(tmp_path: Path) -> None:
    found = measure(tmp_path, rounds=1, writes=3)
    assert set(found) == {"nbdkit", "qemu-nbd", *(name for name, *_ in OURS)}
    assert all(figures.median > 0 for figures in found.values())
