"""What a reader finds: items, sections, the state of the store, and what the user sees of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from tests.model.disk import Content, Damaged, Free, Header, Record, Root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.model.disk import Disk, Member, SectionId


class Special(Enum):
    """What a reader says of a section other than a blob."""

    UNWRITTEN = "unwritten"
    CORRUPT = "corrupt"


Value: TypeAlias = Content | Special


class Seen(NamedTuple):
    """What the user sees of a section: how many blocks a copy of it has, and what it holds."""

    blocks: int
    value: Value


#: Nothing is said of the size of a section that is corrupt.
CORRUPT = Seen(0, Special.CORRUPT)

#: What the user sees: names and what they stand for.
View: TypeAlias = frozenset[tuple[str, Seen]]


class Refusal(Exception):  # noqa: N818  not a mistake of the caller's
    """The whole store is refused; the message says why."""


class Placed(NamedTuple):
    """A record and the block it starts at."""

    position: int
    record: Record


class Item(NamedTuple):
    """An item: where it starts, how long it is, and its head, which is None if damaged."""

    position: int
    blocks: int
    head: Record | Free | None


class Extent(NamedTuple):
    """The adjacent records of a section, all together `blocks` long."""

    start: int
    blocks: int
    copies: int

    @property
    def heads(self) -> list[int]:
        """Return the blocks that the records start at."""
        return [self.start + copy * self.blocks // self.copies for copy in range(self.copies)]


@dataclass(slots=True)
class Section:
    """A section as its reader sees it: its extent (C47) and its newest record (C42)."""

    extent: Extent
    records: dict[int, Placed]
    newest: Placed
    value: Value

    @property
    def older(self) -> Placed:
        """The record that the next commit overwrites; the newest if there is only one."""
        others = [placed for placed in self.records.values() if placed is not self.newest]
        return others[0] if others else self.newest


@dataclass(slots=True)
class Directory:
    """The state of a store as recovery leaves it, and what recovery has to write.

    Attributes:
        copies: The header copies; None where damaged.
        header: The one that counts (C40).
        total: T, in blocks.
        items: All but the header copies, in order.
        damaged: Blocks of damaged heads that their own checks do not mend.
        fresh: Whether what is seen is proven to be the newest there is (C67). Else nothing is
            answered, unless a human accepts that (`permitted`).
        generation: The highest found anywhere (C44's G).
        counted: The highest that counts: of D, of free items, of complete commits. A pin by
            generation asks for this one.
        bound: The decided bound (C35).
        orphans: Records of the newest commit, if it is not complete (C44).
        undecided: The same, if damage leaves open whether it is.
        sections: By id, those that exist.
        left_over: Extents that recovery makes free (C46, C47).
        members: Members of all sections (C24).
        root: Of them.
        view: What the user sees.
        hides_names: Whether a name that is not found may have been in a damaged head (C43).
    """

    copies: tuple[Header | None, Header | None]
    header: Header
    total: int
    items: list[Item]
    damaged: list[int]
    fresh: bool
    generation: int
    counted: int
    bound: int
    orphans: list[Placed]
    undecided: list[Placed]
    sections: dict[SectionId, Section]
    left_over: list[Extent]
    members: frozenset[Member]
    root: Root
    view: View
    hides_names: bool

    def section(self, name: str) -> Section | None:
        """Return the section of that name."""
        for section in self.sections.values():
            if section.newest.record.name == name:
                return section
        return None

    def permitted(self) -> View:
        """Return what is answered, if a human accepts that nothing proves it to be the newest.

        With a damaged head that is whole blobs only: a section that seems never written, or not to
        be there, may have been written since.
        """
        if not self.damaged:
            return self.view
        return frozenset(item for item in self.view if not isinstance(item[1].value, Special))

    def answered(self) -> View:
        """Return what is answered; all else is refused, or reported as corrupt."""
        return self.permitted() if self.fresh else frozenset()


def describe(view: View) -> str:
    """Return a view in words: a piece of a blob is told by generation and operation."""
    words = []
    for name, (blocks, value) in sorted(view, key=str):
        if isinstance(value, Special):
            words.append(f"{name} {value.value}")
        else:
            generations = "+".join(f"{piece.generation}.{piece.operation}" for piece in value)
            words.append(f"{name}={generations}/{blocks}")
    return "{" + ", ".join(words) + "}"


def verifies(disk: Disk, placed: Placed) -> bool:
    """Say whether the mac of a record agrees (C22, C23): whether its blob is all there."""
    position, record = placed
    if not record.content:
        return True
    return (
        disk[position].rest is record.image[0].rest
        and disk[position + 1 : position + len(record.image)] == record.image[1:]
    )


def walk(disk: Disk, total: int) -> Iterator[Item]:
    """Yield the items from the first after the header copies to T (C41, C43)."""
    position = 2
    before: Record | Free | None = None
    while position < total:
        head = _sound(disk, position, total)
        end = position + head.blocks if head else _hidden_end(disk, position, total, before)
        yield Item(position, end - position, head)
        position, before = end, head


def _hidden_end(disk: Disk, position: int, total: int, before: Record | Free | None) -> int:
    """Return where the item whose head is damaged ends (C43).

    Args:
        disk: All of it.
        position: Where the item starts.
        total: T, in blocks.
        before: The head of the item before it, if that one is sound.
    """
    framed = framed_end(disk, position, total)
    if framed:
        return framed
    if isinstance(before, Record) and (before.copy, before.copies) == (0, 2):
        return min(position + before.blocks, total)
    end = position + 1
    while end < total and not _sound(disk, end, total):
        end += 1
    return end


def framed_end(disk: Disk, position: int, total: int) -> int | None:
    """Return where an item with a damaged head ends by its framing, if a reader believes that."""
    head = disk[position].head
    if isinstance(head, Damaged):
        end = position + head.blocks
        if end == total or (end < total and _sound(disk, end, total)):
            return end
    return None


def _sound(disk: Disk, position: int, total: int) -> Record | Free | None:
    """Return the head at a block if it is sound (C21)."""
    head = disk[position].head
    if isinstance(head, Record | Free) and position + head.blocks <= total:
        return head
    return None
