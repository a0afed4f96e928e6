"""Recovery: what a writer does before it writes anything else (C60)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tests.model.disk import State, write_head, written
from tests.model.headers import header_epoch
from tests.model.structure import Freed

if TYPE_CHECKING:
    from tests.model.directory import Directory
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
    header = directory.header
    first, second = directory.copies
    clean = directory.generation == header.durable and first is second
    flushes = rules.recovery_flushes_first and (not clean or rules.clean_stores_are_flushed_too)
    epochs: list[Epoch] = [[]] if flushes else []

    if directory.orphans and rules.orphans_are_voided:
        orphans = [(position, _void(record, rules)) for position, record in directory.orphans]
        epochs.append([write_head(disk, position, record) for position, record in orphans])
        disk = written(disk, epochs[-1])

    for extent in directory.left_over if rules.left_over_is_freed else ():
        freed = Freed(extent, directory.generation, directory.root)
        for epoch in freed.epochs(disk, directory.total, rules):
            epochs.append(epoch)
            disk = written(disk, epoch)

    if rules.header_copies_are_made_equal:
        wanted = replace(header, total=directory.total)
        differing_copies = [copy for copy in (0, 1) if directory.copies[copy] is not wanted]
        epochs += [header_epoch(copy, wanted) for copy in differing_copies]
    return epochs


def _void(record: Record, rules: Rules) -> Record:
    """Return an orphan's head as void; generation and prev stay."""
    void = replace(record, state=State.VOID)
    if not rules.void_keeps_generation:
        void = replace(void, generation=0)
    if not rules.void_keeps_prev:
        void = replace(void, prev=None)
    return void
