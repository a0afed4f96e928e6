"""Making a container where another one was (C59): there is none, or all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.model.directory import Refusal, describe
from tests.model.disk import (
    NOTHING,
    PLAIN,
    Block,
    Body,
    Header,
    Piece,
    SectionId,
    crash_images,
    difference,
    written,
)
from tests.model.explore import Failure
from tests.model.headers import SectionSpec, initialise, new_items
from tests.model.reader import read

if TYPE_CHECKING:
    from collections import Counter

    from tests.model.disk import Disk
    from tests.model.rules import Rules

_SPECS = (SectionSpec("A"), SectionSpec("P", copies=1))
_FREE = 2
_ANOTHER_STORE = 0


def another_store() -> Disk:
    """Return the disk of another store, whose items only its own key makes sound."""
    _, header = new_items(_SPECS, _FREE)
    old = Header(_ANOTHER_STORE, 7, header.total, 7, None)
    item = Body(Piece(SectionId("another", 0, 0), 0, 0, 0), 0)
    return (Block(old, NOTHING),) * 2 + (Block(item, item),) * (header.total - 2)


def initialise_failures(rules: Rules, counts: Counter[str], *, crashes: int = 2) -> list[Failure]:
    """Make a container over another one, with a power cut anywhere; and again where it was cut.

    Args:
        rules: Those in force.
        counts: Counts the images.
        crashes: How many power cuts.
    """
    old = another_store()
    wanted = old
    for epoch in initialise(_SPECS, _FREE, rules):
        wanted = written(wanted, epoch)
    failures: list[Failure] = []
    found: dict[Disk, tuple[str, ...]] = {old: ()}
    for _ in range(crashes):
        begun, found = found, {}
        for start, history in begun.items():
            base = start
            for number, epoch in enumerate(initialise(_SPECS, _FREE, rules)):
                for image in crash_images(base, epoch, PLAIN):
                    counts["images"] += 1
                    words = f"initialise: cut@{number}{{{difference(base, image)}}}"
                    found.setdefault(image, (*history, words))
                base = written(base, epoch)
        for image, history in found.items():
            problem = _find_problem(image, old, wanted, rules)
            if problem:
                failures.append(Failure("WRONG", history, problem))
    return failures


def _find_problem(image: Disk, old: Disk, wanted: Disk, rules: Rules) -> str | None:
    heads = [block.head for block in image[:2]]
    stores = {head.store for head in heads if isinstance(head, Header)}
    if not stores:
        return None  # there is no container
    if stores == {_ANOTHER_STORE}:
        return None if image[2:] == old[2:] else "the old header stands over new items"
    try:
        directory = read(image, rules)
    except Refusal as refusal:
        return str(refusal)
    if directory.damaged or directory.view != read(wanted, rules).view:
        return f"sees {describe(directory.view)}"
    return None
