"""What is known of damaged heads: what they said, or that they counted nothing (C67, C71, C72).

A head's own check proves what it said if it is damaged but little. The root proves that heads that
are lost counted nothing: with void records and free space in their place, the store is what its
newest items attest. (Rebuilding lost records that count, C73, is left to repair.)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from tests.model.directory import Placed
from tests.model.disk import Free, Mendable, Record, State, never_written, write_head, written

if TYPE_CHECKING:
    from tests.model.directory import Directory
    from tests.model.disk import Disk, Write
    from tests.model.rules import Rules

_NOTHING_LEFT = (State.VOID, State.TOMBSTONE)


class Guess(NamedTuple):
    """What a disk is if its lost heads counted nothing, and the other copies of lost records."""

    disk: Disk
    twins: list[Placed]


def mended(disk: Disk) -> Disk:
    """Return a disk with all heads mended that their own checks prove (C71)."""
    heads = [
        write_head(disk, position, block.head.original)
        for position, block in enumerate(disk)
        if isinstance(block.head, Mendable)
    ]
    return written(disk, heads) if heads else disk


def without_lost_heads(disk: Disk, directory: Directory) -> Guess | None:
    """Return the disk with void records and free items in place of what damage hides (C72).

    Returns:
        None if a head stands there that may stand for something.
    """
    gaps: list[tuple[int, int]] = []
    records: dict[int, Record] = {}
    for position, blocks, head in directory.items:
        if isinstance(head, Record):
            records[position] = head
        elif head is None and gaps and gaps[-1][1] == position:
            gaps[-1] = (gaps[-1][0], position + blocks)
        elif head is None:
            gaps.append((position, position + blocks))
    heads: list[Write] = []
    twins: list[Placed] = []
    for position, record in records.items():
        if record.copies == 1:
            continue
        place = position + record.blocks * (1 - 2 * record.copy)
        other = records.get(place)
        if other and (other.section, other.copy) == (record.section, 1 - record.copy):
            continue
        if _carve(gaps, place, place + record.blocks):
            lost = never_written(replace(record, copy=1 - record.copy))
            heads.append(write_head(disk, place, lost))
            twins.append(Placed(position, record))
        elif record.state in _NOTHING_LEFT:  # a remnant in lost free space
            heads.append(write_head(disk, position, Free(record.blocks, 0, None)))
    for start, end in gaps:
        inside = (disk[position].head for position in range(start, end))
        if any(isinstance(head, Record) and head.state not in _NOTHING_LEFT for head in inside):
            return None
        heads.append(write_head(disk, start, Free(end - start, 0, None)))
    return Guess(written(disk, heads), twins)


def _carve(gaps: list[tuple[int, int]], start: int, end: int) -> bool:
    """Take a range out of the gap it lies in; say whether there is one."""
    for number, (low, high) in enumerate(gaps):
        if low <= start and end <= high:
            gaps[number : number + 1] = [g for g in ((low, start), (end, high)) if g[0] < g[1]]
            return True
    return False


def nothing_newer_is_lost(guess: Guess, proven: Directory, rules: Rules) -> bool:
    """Say whether no lost record can have been the newest of its section (C74).

    A commit that nobody attests leaves no trace if its heads are lost; what it and those before it
    changed elsewhere could then be set back. Its record lay in the older copy of its section, so
    that the other copy is the newest that is left; or in a new extent (C52), so that the other copy
    was never written.
    """
    newest = {section.newest.position for section in proven.sections.values()}
    unsure = False
    for position, record in guess.twins:
        if position in newest and rules.lost_copy_may_be_newer:
            unsure = True
        new = record.state is State.VOID and not record.generation
        if new and rules.lost_first_copy_may_count:
            unsure = True
    return not unsure or nothing_followed(proven)


def nothing_followed(directory: Directory) -> bool:
    """Say whether what is sound shows that the newest commit did not complete.

    Nothing is committed before D is written in recovery.
    """
    generation = directory.generation
    if generation <= directory.bound:
        return False
    heads = [item.head for item in directory.items if isinstance(item.head, Record)]
    newest = [head for head in heads if head.generation == generation]
    members = [head for head in newest if head.state is not State.VOID]
    if not members:
        return True
    voided = len(members) < len(newest)
    return bool(directory.orphans) and (voided or len(members) == members[0].members)
