"""Commits: atomic changes of one or several sections, with one flush (C31, C32, C50, C62)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tests.model.directory import verifies
from tests.model.disk import Record, Root, State
from tests.model.writing import next_generation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.model.directory import Placed
    from tests.model.writing import Epoch, Store


@dataclass(frozen=True, slots=True)
class Part:
    """What a commit does to one section.

    Attributes:
        record: What it writes; the commit adds generation, members, root and prev.
        replaces: What is the section's newest record yet; None if it does not exist.
        target: The record that it writes over.
        differing: Write of the blob only the blocks that differ from the target's, if that one is
            live and verifies (C62).
    """

    record: Record
    replaces: Placed | None
    target: Placed | None = None
    differing: bool = False

    @property
    def overwrites_the_only_record(self) -> bool:
        """Whether the section has only the record that is written over (C32)."""
        return self.target is not None and self.target == self.replaces and self.record.copies == 1


def commit(store: Store, parts: Sequence[Part]) -> tuple[Epoch, Root]:
    """Return what a commit writes, which is one epoch (C31), and the root after it.

    Args:
        store: The open store.
        parts: What it does.
    """
    members = store.directory.members
    records = []
    for part in parts:
        record = replace(
            part.record,
            generation=next_generation(store),
            members=len(parts),
            root=None,
            prev=store.directory.root,
        )
        if part.replaces:
            members -= {part.replaces.record.member}
        if record.state is not State.TOMBSTONE:
            members |= {record.member}
        records.append(record)
    root = Root(members)
    epoch: Epoch = []
    for part, record in zip(parts, records, strict=True):
        assert part.target
        if record.state is not State.TOMBSTONE or store.rules.tombstone_comes_first:
            epoch += _written(store, part.target, replace(record, root=root), part.differing)
        if part.replaces and not store.rules.failed_write_keeps_to_its_copy:
            # A flush fails, of which all may still reach the medium, or not; the store turns to
            # the other copies.
            position, other = part.replaces
            epoch += enumerate(replace(record, copy=other.copy, root=root).image, position)
    return epoch, root


def _written(store: Store, target: Placed, record: Record, differing: bool) -> Epoch:
    position, older = target
    base = older.content if differing and _can_be_built_on(store, target) else ()
    return [
        (position + number, block)
        for number, block in enumerate(record.image)
        if number == 0 or number >= len(base) or base[number] != record.content[number]
    ]


def _can_be_built_on(store: Store, older: Placed) -> bool:
    """Say whether a record's blob is what its head says, so that a part of it may stay (C62)."""
    if not store.rules.window_verifies_older_copy:
        return True
    return older.record.state is State.LIVE and verifies(store.disk, older)
