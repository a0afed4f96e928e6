"""Mending in memory: what damaged heads said, where their own checks prove it (C67, C71)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model.disk import Mendable, write_head, written

if TYPE_CHECKING:
    from tests.model.disk import Disk


def mended(disk: Disk) -> Disk:
    """Return a disk with all heads mended that are damaged but little."""
    heads = [
        write_head(disk, position, block.head.original)
        for position, block in enumerate(disk)
        if isinstance(block.head, Mendable)
    ]
    return written(disk, heads) if heads else disk
