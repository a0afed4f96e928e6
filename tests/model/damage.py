"""Damage: one atom of a disk goes bad. No other value may come of it without a report.

What may be seen of a section is its blob, or that it is corrupt, or, where the head of an item is
damaged and nothing proves what it said, nothing at all, which then does not mean that there is no
such section (C43). Only where a blob of a commit in doubt goes bad, which cannot be told from a
torn one, or a head, before a commit that made or moved sections was acknowledged, may the state
before that commit be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.model.directory import Placed, Refusal, Special, describe, framed_end
from tests.model.disk import NOTHING, Block, Damaged, Record, State, written
from tests.model.reader import read

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from tests.model.directory import Directory, Item, Value
    from tests.model.disk import Disk, Root
    from tests.model.rules import Rules


class Harm(NamedTuple):
    """A damage that does harm: what went bad, and what came of it."""

    what: str
    detail: str


class _Damage(NamedTuple):
    """An atom gone bad; `before` is the root before a commit in doubt that may be lost with it.

    Without a blob of it a commit looks torn. One that makes or moves sections is not acknowledged
    before D attests it (C52); until then it may look as if it had never been, if its heads are
    lost, or if their framing claims the space of the other copy as well, or if the head of the free
    space before them is lost, in which a remnant claims more (C56).
    """

    what: str
    disk: Disk
    before: Root | None = None


def harmful_damages(
    disk: Disk, directory: Directory, rules: Rules, counts: Counter[str]
) -> Iterator[Harm]:
    """Damage each atom of each item in turn, and read what is left.

    Args:
        disk: All of it durable.
        directory: What is read from it.
        rules: Those in force.
        counts: Counts damages and what became of them.
    """
    truth = _values(directory)
    for damage in _damages(disk, directory):
        counts["damages"] += 1
        try:
            left = read(damage.disk, rules)
        except Refusal as refusal:
            yield Harm(damage.what, f"the whole store is refused: {refusal}")
            continue
        seen = _values(left)
        wrong = [
            name
            for name in {**truth, **seen}
            if seen.get(name) != truth.get(name)
            and seen.get(name) is not Special.CORRUPT
            and not (name not in seen and left.hides_names)
        ]
        if not wrong:
            counts["damages harmless" if seen == truth else "damages reported"] += 1
        elif left.root is damage.before:
            counts["damages like torn commits"] += 1
        else:
            detail = f"sees {describe(left.view)} instead of {describe(directory.view)}"
            yield Harm(damage.what, detail)


def _values(directory: Directory) -> dict[str, Value]:
    """Return the sections' values. Of an interrupted resize, either size may be seen."""
    return {name: seen.value for name, seen in directory.view}


def _damages(disk: Disk, directory: Directory) -> Iterator[_Damage]:
    doubted = in_doubt(directory)
    before = doubted[0].record.prev if doubted else None
    new = before if any(is_in_new_extent(disk, placed) for placed in doubted) else None
    for item in directory.items:
        yield from _damaged_heads(disk, directory, item, new)
        record = item.head
        if not isinstance(record, Record) or record.state is not State.LIVE:
            continue
        torn = before if Placed(item.position, record) in doubted else None
        for place in range(item.position, item.position + len(record.image)):
            block = disk[place]
            what = f"blob {place} is damaged"
            yield _Damage(what, written(disk, [(place, Block(block.head, NOTHING))]), torn)
            if place > item.position:
                yield _Damage(what, written(disk, [(place, Block(NOTHING, block.rest))]), torn)


def in_doubt(directory: Directory) -> list[Placed]:
    """Return the records of the newest commit, if nothing but they attest it."""
    if directory.generation <= directory.bound:
        return []
    return [
        Placed(position, head)
        for position, _, head in directory.items
        if isinstance(head, Record) and head.generation == directory.generation
    ]


def is_in_new_extent(disk: Disk, placed: Placed) -> bool:
    """Say whether a record is the first that was written in its extent (C52, C55)."""
    position, record = placed
    if record.copies == 2:
        other = disk[position + record.blocks * (1 - 2 * record.copy)].head
        return isinstance(other, Record) and not other.generation
    if record.section.generation == record.generation:
        return True
    others = (block.head for block in (*disk[:position], *disk[position + 1 :]))
    return any(isinstance(head, Record) and head.section == record.section for head in others)


def _damaged_heads(
    disk: Disk, directory: Directory, item: Item, before: Root | None
) -> Iterator[_Damage]:
    """Damage a head: its framing is lost, or left, or says just what a reader expects."""
    position, total = item.position, directory.total
    rest = disk[position].rest
    # If the other copy tells where the record was, it is known that one is lost.
    told = isinstance(item.head, Record) and item.head.copies == 2
    lost = written(disk, [(position, Block(NOTHING, rest))])
    yield _Damage(f"head {position} is damaged", lost, None if told else before)
    for blocks in range(1, total - position + 1):
        damaged = written(disk, [(position, Block(Damaged(blocks), rest))])
        # Where nothing begins that it could end at, it is as good as lost.
        if framed_end(damaged, position, total):
            what = f"head {position} is damaged, of {blocks} by its framing"
            yield _Damage(what, damaged, None if told and blocks == item.blocks else before)
