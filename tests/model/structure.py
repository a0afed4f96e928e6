"""Space: how extents are taken from free items, and released into them (C14, C52, C55, C56)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from tests.model.directory import Placed, walk
from tests.model.disk import EMPTY, NOTHING, Free, Record, State, never_written, write_head, written
from tests.model.writing import joined

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.model.directory import Extent
    from tests.model.disk import Disk, Root, Write
    from tests.model.rules import Rules
    from tests.model.writing import Epoch


class Newest(NamedTuple):
    """What the head of a free item attests whenever it is written (C56)."""

    generation: int
    root: Root


class Taken(NamedTuple):
    """Extents of void records that are taken from free items.

    Attributes:
        firsts: Copy 0 of each, as it is now.
        extents: The writing of their records.
        shortening: The writing of the heads of the free items that they were in.
    """

    firsts: list[Placed]
    extents: Epoch
    shortening: Epoch


def take(disk: Disk, total: int, firsts: Sequence[Record], newest: Newest) -> Taken | None:
    """Take extents, the longest first, each from the end of the smallest free item (C52).

    Args:
        disk: All of it.
        total: T, in blocks.
        firsts: Copy 0 of each as it is going to be.
        newest: The state of the store.

    Returns:
        None if no free item is long enough for one of them.
    """
    free = {start: blocks for start, blocks, head in walk(disk, total) if isinstance(head, Free)}
    starts: dict[int, int] = {}
    shortened: dict[int, Write] = {}
    for number in sorted(range(len(firsts)), key=lambda number: -_length(firsts[number])):
        length = _length(firsts[number])
        fitting = [(blocks, start) for start, blocks in free.items() if blocks > length]
        if not fitting:
            return None
        blocks, start = min(fitting)
        free[start] = blocks - length
        starts[number] = start + blocks - length
        shortened[start] = write_head(disk, start, Free(blocks - length, *newest))
    placed = [Placed(starts[number], never_written(first)) for number, first in enumerate(firsts)]
    extents: Epoch = []
    for start, first in placed:
        for copy in range(first.copies):
            image = never_written(replace(first, copy=copy)).image
            empty = [EMPTY] * (first.blocks - len(image))
            extents += enumerate([*image, *empty], start + copy * first.blocks)
    return Taken(placed, extents, list(shortened.values()))


def _length(first: Record) -> int:
    return first.blocks * first.copies


def release(
    disk: Disk, total: int, extents: Iterable[Extent], newest: Newest, rules: Rules
) -> list[Epoch]:
    """Make extents free (C56).

    Args:
        disk: All of it.
        total: T, in blocks.
        extents: Of no section any more.
        newest: The state of the store.
        rules: Those in force.
    """
    extents = list(extents)
    epochs = _voiding(disk, extents, rules) if rules.records_are_void_before_they_are_free else []
    inside = {position for extent in extents for position in extent.heads}
    heads: set[int] = set()
    for extent in extents:
        epoch, hidden = merge(disk, total, extent.start, extent.blocks, newest)
        epochs.append(epoch)
        disk = written(disk, epoch)
        inside |= hidden
        heads = (heads | {position for position, _ in epoch}) - hidden
    stale = [write_head(disk, position, NOTHING) for position in sorted(inside - heads)]
    return [*epochs, stale] if stale else epochs


def _voiding(disk: Disk, extents: Sequence[Extent], rules: Rules) -> list[Epoch]:
    """Return the writing of records as void; the newest of each extent last.

    Void in the other order, an extent would have its older blob for a moment.
    """
    older: Epoch = []
    newest: Epoch = []
    for extent in extents:
        records = [(disk[position].head, position) for position in extent.heads]
        standing = [
            (head.generation, position, head)
            for head, position in records
            if isinstance(head, Record) and head.state not in (State.VOID, State.TOMBSTONE)
        ]
        writes = [
            write_head(disk, position, never_written(head))
            for _, position, head in sorted(standing)
        ]
        older += writes[:-1]
        newest += writes[-1:]
    epochs = [epoch for epoch in (older, newest) if epoch]
    return epochs if rules.newest_is_void_last or not epochs else joined(epochs)


def merge(
    disk: Disk, total: int, start: int, blocks: int, newest: Newest
) -> tuple[Epoch, set[int]]:
    """Make blocks a free item together with the free items beside them.

    Returns:
        The writing of its head, and where heads of free items lie in it now.
    """
    place, end = start, start + blocks
    inside = set()
    for position, length, head in walk(disk, total):
        if isinstance(head, Free) and position == start + blocks:
            end += length
            inside.add(position)
        elif isinstance(head, Free) and position + length == start:
            place = position
            inside.add(start)
    return [write_head(disk, place, Free(end - place, *newest))], inside
