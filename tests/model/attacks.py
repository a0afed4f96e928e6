"""Attacks: any parts of a disk set back to what they were before, and any heads lost, together.

An attacker who cannot forge anything can give each block any content that it ever had, or one that
means nothing. That is what is enumerated here: all of it, where the disks are small and the
histories short; else what few parts can do; else a sample. (Little damage is not part of it: a head
that its own check gives back is what it was, `mending.py`. `few_parts` does some all the same.)

What comes of an attack:

- **refused**: the parts of the store contradict each other;
- **damaged heads**: nothing proves what they said, and nothing is answered;
- **reported**: all that changes is reported as corrupt;
- **harmless**: the same is seen as before;
- **restored**: a blob that had gone bad is as its head says;
- **undetected**: something else is seen, and nothing is said of it. Why, is said in `exposure.py`.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import combinations, product
from math import prod
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from tests.model.directory import Refusal, Special
from tests.model.disk import (
    EMPTY,
    NOTHING,
    Block,
    Damaged,
    Disk,
    Free,
    Header,
    Mendable,
    Record,
    written,
)
from tests.model.mending import mended
from tests.model.replay import parts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tests.model.directory import Directory, Value
    from tests.model.disk import Atom

#: Reads a disk.
Read: TypeAlias = "Callable[[Disk], Directory]"


class Past(NamedTuple):
    """What the medium held at some time, and what was read from it then."""

    disk: Disk
    directory: Directory


class Verdict(NamedTuple):
    """What came of an attack; what is seen after it, if anything is answered."""

    what: str
    left: Directory | None


@dataclass(slots=True)
class Target:
    """A disk that is attacked.

    Attributes:
        disk: As it is.
        directory: What is read from it: the truth.
        pasts: What an attacker may have copied before; last first.
        counts: Counts attacks and what became of them.
    """

    disk: Disk
    directory: Directory
    pasts: Sequence[Past]
    counts: Counter[str] = field(default_factory=Counter)

    def judge(self, image: Disk, read: Read) -> Verdict:
        """Return what comes of an attack that leaves an image."""
        try:
            left = read(mended(image))
        except Refusal:
            return Verdict("refused", None)
        if not left.fresh:
            return Verdict("damaged heads", None)
        truth, seen = values(self.directory), values(left)
        changed = [name for name in {**truth, **seen} if truth.get(name) != seen.get(name)]
        if left.damaged:  # then what is not a whole blob is refused
            answered = {name for name, _ in left.answered()}
            changed = [name for name in changed if name in answered]
        if not changed:
            return Verdict("harmless", left)
        restored = left.root is self.directory.root  # what is seen is what is attested
        if restored and all(truth.get(name) is Special.CORRUPT for name in changed):
            return Verdict("restored", left)
        if all(seen.get(name) is Special.CORRUPT for name in changed):
            return Verdict("reported", left)
        return Verdict("undetected", left)

    # -------------------------------------------------------------- enumerating

    def all_images(self, most: int, seed: int) -> Iterator[Disk]:
        """Yield what any number of parts set back, and any heads lost, make of the disk.

        Args:
            most: Where there are more images, a sample of so many is drawn.
            seed: Of the sample.
        """
        options = [self._options(position) for position in range(len(self.disk))]
        if prod(map(len, options)) <= most:
            self.counts["disks attacked in every way"] += 1
            yield from product(*options)
            return
        self.counts["disks attacked in a sample of ways"] += 1
        draw = random.Random(seed)
        for _ in range(most):
            # Some blocks keep what they hold, as else all would be from different times.
            kept = draw.random()
            yield tuple(some[0] if draw.random() < kept else draw.choice(some) for some in options)

    def _options(self, position: int) -> list[Block]:
        """Return all that an attacker can make of a block; first what it holds."""
        block = self.disk[position]
        held = dict.fromkeys([block, *(past.disk[position] for past in self.pasts)])
        if position < 2:
            return [*held, EMPTY]
        if not isinstance(block.head, Record | Free):
            return list(held)
        return [*held, *(Block(head, block.rest) for head in (NOTHING, Damaged(block.head.blocks)))]

    def few_parts(self) -> Iterator[tuple[Disk, int]]:
        """Yield what one part set back and up to two heads damaged make of the disk.

        Yields:
            The image, and how many of the heads are mendable.
        """
        images = dict.fromkeys(image for past in self.pasts for image in self._set_back(past))
        for image in images:
            heads = [(place, _damages(block.head)) for place, block in enumerate(image)]
            harmed = [(place, damages) for place, damages in heads if damages]
            for number in (0, 1, 2):
                for chosen in combinations(harmed, number):
                    for damages in product(*(ways for _, ways in chosen)):
                        writes = [
                            (place, Block(damage, image[place].rest))
                            for (place, _), damage in zip(chosen, damages, strict=True)
                        ]
                        mendable = sum(isinstance(damage, Mendable) for damage in damages)
                        yield written(image, writes), mendable

    def _set_back(self, past: Past) -> Iterator[Disk]:
        for kind, start, blocks in dict.fromkeys([*parts(self.directory), *parts(past.directory)]):
            if kind == "head":
                head = past.disk[start].head
                yield written(self.disk, [(start, Block(head, self.disk[start].rest))])
            else:
                stop = start + blocks
                yield self.disk[:start] + past.disk[start:stop] + self.disk[stop:]

    def several_parts(self, number: int, most: int, seed: int) -> Iterator[Disk]:
        """Yield what so many parts, each set back to a time of its own, make of the disk.

        Args:
            number: Of parts.
            most: Where there are more images, a sample of so many is drawn.
            seed: Of the sample.
        """
        single = dict.fromkeys(image for past in self.pasts for image in self._set_back(past))
        changes = [self._changes(image) for image in single if image != self.disk]
        draw = random.Random(seed)
        count = len(changes) ** number
        chosen: Iterable[tuple[list[tuple[int, Block]], ...]]
        if count <= most:
            chosen = combinations(changes, number)
        else:
            chosen = (tuple(draw.choice(changes) for _ in range(number)) for _ in range(most))
        for several in chosen if changes else ():
            yield written(self.disk, [write for writes in several for write in writes])

    def _changes(self, image: Disk) -> list[tuple[int, Block]]:
        return [
            (position, new)
            for position, (old, new) in enumerate(zip(self.disk, image, strict=True))
            if old is not new
        ]


def _damages(head: Atom) -> tuple[Atom, ...]:
    """Return what can become of a head: it is lost, or only its framing is left, or it is hurt."""
    if isinstance(head, Header):
        return NOTHING, Mendable(head)
    if isinstance(head, Record | Free):
        return NOTHING, Damaged(head.blocks), Mendable(head)
    return ()


def values(directory: Directory) -> dict[str, Value]:
    """Return the sections' values. Of an interrupted resize, either size may be seen."""
    return {name: seen.value for name, seen in directory.view}
