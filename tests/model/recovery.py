"""Recovery: what a writer does before it writes anything else (C60)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.model.disk import State, write_head, written
from tests.model.headers import durable_epochs, header_epoch
from tests.model.structure import Newest, release

if TYPE_CHECKING:
    from tests.model.directory import Directory, Placed
    from tests.model.disk import Disk, Record
    from tests.model.rules import Rules
    from tests.model.writing import Epoch


def recovery(disk: Disk, directory: Directory, rules: Rules) -> list[Epoch]:
    """Return what recovery writes; an empty epoch is a flush alone.

    Args:
        disk: As the writer sees it, with what may lie in a volatile cache.
        directory: What was read from it.
        rules: Those in force.
    """
    if not rules.recovery_comes_first:
        return []
    first, second = directory.copies
    clean = directory.generation == directory.header.durable and first is second
    flushes = rules.recovery_flushes_first and (not clean or rules.clean_stores_are_flushed_too)
    flushing: list[Epoch] = [[]] if flushes else []
    voiding: list[Epoch] = []
    orphans = _voided_orphans(directory, rules)
    if orphans:
        voiding = [
            [write_head(disk, position, _void(record, rules)) for position, record in orphans]
        ]
        disk = written(disk, voiding[0])
    durable = _header_epochs(directory, rules)
    newest = Newest(directory.generation, directory.root)
    left_over = directory.left_over if rules.left_over_is_released else []
    releasing = release(disk, directory.total, left_over, newest, rules)
    if not rules.orphans_are_voided_before_durable:
        return flushing + durable + voiding + releasing
    if not rules.recovery_writes_durable_before_release:
        return flushing + voiding + releasing + durable
    return flushing + voiding + durable + releasing


def _voided_orphans(directory: Directory, rules: Rules) -> list[Placed]:
    if not rules.orphans_are_voided:
        return []
    left_over = {position for extent in directory.left_over for position in extent.heads}
    return [
        placed
        for placed in directory.orphans
        if rules.left_over_orphans_are_voided or placed.position not in left_over
    ]


def _header_epochs(directory: Directory, rules: Rules) -> list[Epoch]:
    """Return the writing of D, or, if it is written already, of the copy that differs."""
    if rules.recovery_writes_durable:
        epochs = durable_epochs(directory, directory.generation, directory.root, rules)
        if epochs:
            return epochs
    if not rules.header_copies_are_made_equal:
        return []
    wanted = replace(directory.header, total=directory.total)
    differing_copies = [copy for copy in (0, 1) if directory.copies[copy] is not wanted]
    return [header_epoch(copy, wanted) for copy in differing_copies]


def _void(record: Record, rules: Rules) -> Record:
    """Return an orphan's head as void; generation and prev stay."""
    void = replace(record, state=State.VOID)
    if not rules.void_keeps_generation:
        void = replace(void, generation=0)
    if not rules.void_keeps_prev:
        void = replace(void, prev=None)
    return void
