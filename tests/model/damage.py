"""Damage: one atom of a disk goes bad. No other value may come of it without a report.

What may be seen of a section is its blob, or that it is corrupt, or, where the head of an item is
damaged, nothing at all, which then does not mean that there is no such section (C43). Only where
the blob of a commit in doubt goes bad, which cannot be told from a torn one, may the state before
that commit be seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.model.directory import Refusal, Special, describe, framed_end
from tests.model.disk import NOTHING, Block, Damaged, Free, Record, State, written
from tests.model.reader import read

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator

    from tests.model.directory import Directory, Value
    from tests.model.disk import Disk, Root
    from tests.model.rules import Rules


class Harm(NamedTuple):
    """A damage that does harm: what went bad, and what came of it."""

    what: str
    detail: str


class _Damage(NamedTuple):
    """An atom gone bad; `before` is the root before a commit in doubt whose blob it was in."""

    what: str
    disk: Disk
    before: Root | None = None


def harmful_damages(
    disk: Disk, directory: Directory, rules: Rules, counts: Counter[str]
) -> Iterator[Harm]:
    """Damage each atom of each item in turn, and read the rest.

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
        elif left.orphans and left.root is damage.before:
            counts["damages like torn commits"] += 1
        else:
            detail = f"sees {describe(left.view)} instead of {describe(directory.view)}"
            yield Harm(damage.what, detail)


def _values(directory: Directory) -> dict[str, Value]:
    """Return the sections' values. Of an interrupted resize, either size may be seen."""
    return {name: seen.value for name, seen in directory.view}


def _damages(disk: Disk, directory: Directory) -> Iterator[_Damage]:
    frees = [item.head.generation for item in directory.items if isinstance(item.head, Free)]
    bound = max(directory.header.durable, *frees, 0)
    for item in directory.items:
        yield from _damaged_heads(disk, directory, item.position)
        record = item.head
        if not isinstance(record, Record) or record.state is not State.LIVE:
            continue
        in_doubt = record.generation == directory.generation > bound
        before = record.prev if in_doubt else None
        for place in range(item.position, item.position + len(record.image)):
            block = disk[place]
            what = f"blob {place} is damaged"
            yield _Damage(what, written(disk, [(place, Block(block.head, NOTHING))]), before)
            if place > item.position:
                yield _Damage(what, written(disk, [(place, Block(NOTHING, block.rest))]), before)


def _damaged_heads(disk: Disk, directory: Directory, position: int) -> Iterator[_Damage]:
    """Damage a head: its framing is lost, or left, or says just what a reader expects."""
    rest, total = disk[position].rest, directory.total
    lost = written(disk, [(position, Block(NOTHING, rest))])
    yield _Damage(f"head {position} is damaged", lost)
    for blocks in range(1, total - position + 1):
        damaged = written(disk, [(position, Block(Damaged(blocks), rest))])
        # Where nothing begins that it could end at, it is as good as lost.
        if framed_end(damaged, position, total):
            what = f"head {position} is damaged, of {blocks} by its framing"
            yield _Damage(what, damaged)
