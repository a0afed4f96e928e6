"""A section and its copies: where their records lie, and which of them counts (C42)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from formats.container.model import State

if TYPE_CHECKING:
    from formats.container.encoder import RecordFrame
    from formats.container.model import Identity, Version


@dataclass(slots=True)
class Copy:
    """One record of a section where it lies; commits replace its version."""

    offset: int
    identity: Identity
    version: Version
    length: int
    frame: RecordFrame

    @property
    def counts(self) -> int:
        """The generation it counts as (C42); orphans are void here already."""
        return 0 if self.version.state is State.VOID else self.version.generation


class Damage(NamedTuple):
    """Why a section cannot be read: ``reason`` completes "the section ..."."""

    reason: str
    generation: int
    offset: int


@dataclass(slots=True)
class Section:
    """A section with its copies, by copy number; a lost copy is None.

    Attributes:
        damage: Why it cannot be read, or None.
        rivals: Its other extents, where damage hides which one counts (C47).
    """

    copies: list[Copy | None]
    damage: Damage | None = None
    rivals: list[Section] = field(default_factory=list)

    @property
    def newest(self) -> Copy:
        """The copy that holds the section's name and blob (C42)."""
        return self.newest_and_older[0]

    @property
    def older(self) -> Copy:
        """The copy that the next commit overwrites; the newest if there is only one."""
        return self.newest_and_older[1]

    @property
    def newest_and_older(self) -> tuple[Copy, Copy]:
        """Both at once."""
        first, last = self.copies[0], self.copies[-1]
        if first is None:
            assert last is not None, "a section with no copy left is not known"
            return last, last
        if last is None:
            return first, first
        return (last, first) if last.counts > first.counts else (first, last)

    @property
    def name(self) -> str:
        return self.newest.identity.name

    @property
    def max_size(self) -> int:
        """Worst-case size of the blob, in bytes."""
        return self.newest.identity.max_size

    @property
    def first(self) -> Copy:
        """Copy 0, which is there."""
        assert self.copies[0] is not None, "a section with a lost copy is not written"
        return self.copies[0]

    @property
    def in_place_since(self) -> int | None:
        """The generation from which on the newest blob was written in place, or None (C62)."""
        for copy in self.newest_and_older:
            if copy.version.state is State.IN_PLACE:
                return copy.version.generation
        return None

    @property
    def place(self) -> tuple[int, int]:
        """Byte offset and length of all copies together: the extent."""
        newest = self.newest
        start = newest.offset - newest.identity.copy * newest.length
        return start, newest.length * newest.identity.copies
