"""Why an attack is not detected: the classes of section 7, each with what explains it.

The root in every head keeps an attacker from showing a state that never was. So the state
after an attack must be that of the whole store at some time; and everything that attests a later
state must have been taken away: set back, or lost. Anything else is unexplained, and a fault of
the rules or of the reader.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from tests.model.attacks import values
from tests.model.directory import Special
from tests.model.disk import Free, Header, Record, State
from tests.model.mending import mended

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.model.attacks import Target
    from tests.model.directory import Directory
    from tests.model.disk import Disk, Root


class Exposure(Enum):
    """The classes of what nothing in the store finds (section 7)."""

    WHOLE = "the whole store set back"
    SINCE_D = "set back to a state since D"
    UNACKNOWLEDGED = "a making or moving of sections undone before D attests it"
    LOST = "set back to a state since D, with heads lost that attested later commits"
    HEADERS = "set back to a state before D, with both header copies"
    GROWTH = "set back to before a growth, with both header copies"


class Attestor(NamedTuple):
    """An item and what it attests: twice a generation, so that half a step is a whole number."""

    position: int
    number: int
    root: Root | None


def attestors(disk: Disk, directory: Directory) -> Iterator[Attestor]:
    """Yield what attests something (C48)."""
    for position in (0, 1):
        head = disk[position].head
        if isinstance(head, Header):
            yield Attestor(position, 2 * head.durable, head.root)
    orphans = {placed.position for placed in (*directory.orphans, *directory.undecided)}
    for position, _, item in directory.items:
        if isinstance(item, Free):
            yield Attestor(position, 2 * item.generation, item.root)
        elif isinstance(item, Record) and item.generation:
            if item.state is State.VOID or position in orphans:
                yield Attestor(position, 2 * item.generation - 1, item.prev)
            else:
                yield Attestor(position, 2 * item.generation, item.root)


def explain(target: Target, image: Disk, left: Directory) -> Exposure | None:
    """Return what explains that an attack is not detected; None if nothing does.

    Args:
        target: What was attacked.
        image: What the attack made of it.
        left: What is read from the image.
    """
    disk, image, truth = target.disk, mended(image), target.directory
    if not any(_shows(past.directory, left) for past in target.pasts):
        return None  # such a state never was
    shown = max(attestor.number for attestor in attestors(image, left))
    later = [
        attestor
        for attestor in attestors(disk, truth)
        if attestor.number > shown or (attestor.number == shown and attestor.root is not left.root)
    ]
    places = {attestor.position for attestor in later}
    # Gone is also what lies in an item that was set back to when it was longer, or that reaches
    # beyond the end that header copies set back tell of; and what looks like part of a torn commit:
    # its blob was torn, or it is not all there any more.
    standing = {0, 1, *(item.position for item in left.items if item.head)}
    standing -= {placed.position for placed in (*left.orphans, *left.undecided)}
    if any(image[place].head is disk[place].head for place in places & standing):
        return None  # something attests what is not seen, and is there
    headers = 0 in places or 1 in places or left.total < truth.total
    if headers and any(image[: truth.total] == past.disk[: truth.total] for past in target.pasts):
        return Exposure.WHOLE
    if left.total < truth.total:
        larger = [copy for copy in (0, 1) if image[copy].head is disk[copy].head]
        grown = any(truth.copies[copy] and _total(truth, copy) > left.total for copy in larger)
        return None if grown else Exposure.GROWTH
    if headers:
        return Exposure.HEADERS
    new = _unacknowledged(disk, truth)
    if new and all(attestor.number >= 2 * truth.generation for attestor in later):
        return Exposure.UNACKNOWLEDGED
    lost = [place for place in places if not isinstance(image[place].head, Record | Free)]
    return Exposure.LOST if lost else Exposure.SINCE_D


def _shows(past: Directory, left: Directory) -> bool:
    """Say whether what is seen is a state of the past, but for what is reported as corrupt."""
    if past.root is left.root:
        return True
    then, seen = values(past), values(left)
    corrupt = {name for name, value in seen.items() if value is Special.CORRUPT}
    same = all(then.get(name) == seen.get(name) for name in {**then, **seen} if name not in corrupt)
    return bool(corrupt) and same


def _total(directory: Directory, copy: int) -> int:
    header = directory.copies[copy]
    return header.total if header else 0


def _unacknowledged(disk: Disk, directory: Directory) -> bool:
    """Say whether the newest commit makes or moves a section, and D does not attest it (C52)."""
    if directory.generation <= directory.bound:
        return False
    return any(
        head.generation == directory.generation and _is_first(disk, position, head)
        for position, _, head in directory.items
        if isinstance(head, Record)
    )


def _is_first(disk: Disk, position: int, record: Record) -> bool:
    """Say whether a record is the first that was written in its extent."""
    if record.copies == 2:
        other = disk[position + record.blocks * (1 - 2 * record.copy)].head
        return isinstance(other, Record) and not other.generation
    if record.section.generation == record.generation:
        return True
    others = (block.head for block in (*disk[:position], *disk[position + 1 :]))
    return any(isinstance(head, Record) and head.section == record.section for head in others)


def denied(target: Target, left: Directory) -> set[str]:
    """Return what is worst: in which ways a blob that exists is denied."""
    truth, seen = values(target.directory), values(left)
    ways = set()
    for name, value in truth.items():
        if isinstance(value, Special) or left.damaged:
            continue
        if name not in seen:
            ways.add("not found")
        elif seen[name] is Special.UNWRITTEN:
            ways.add("unwritten")
    return ways
