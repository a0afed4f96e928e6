"""Commits of a section's whole content that write only what differs (C62)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from blobstore.container.commit import Change, commit
from formats.container.model import HEAD_SIZE, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blobstore.container.open_container import OpenContainer
    from blobstore.container.sections import Copy, Section
    from blobstore.store.lookup import Lookup


class _Known(NamedTuple):
    """What is known of the copies of a section.

    Attributes:
        newest: Generation of the newest copy, if what it holds is known.
        older: Generation of the older copy, likewise.
        differing: Blocks in which the older copy differs from the newest, if it
            is known.
    """

    newest: int | None = None
    older: int | None = None
    differing: frozenset[int] = frozenset()


class DifferingWriter:
    """Commits one section again and again, and knows where its copies differ.

    Blocks are counted from the start of a record. What a copy holds is known if
    it was verified or written here, and if nothing was committed to it since:
    then its generation is still the one that is remembered.
    """

    def __init__(self, container: OpenContainer, lookup: Lookup, name: str) -> None:
        """Know nothing of either copy."""
        self._container = container
        self._lookup = lookup
        self._name = name
        self._known = _Known()

    @property
    def section(self) -> Section:
        """The section as it is now; errors as `Lookup.find`."""
        return self._lookup.find(self._name)

    @property
    def copies_are_known(self) -> bool:
        """Whether the next commit need not write the whole record."""
        # A commit that was not made here would have overwritten the older copy.
        return self.section.older.version.generation == self._known.older

    def know_newest(self, copy: Copy) -> None:
        """Note that the newest copy holds what the next commit starts from."""
        self._known = self._known._replace(newest=copy.version.generation)

    def blocks(self, offset: int, size: int) -> range:
        """Return the blocks that ``size`` bytes of the blob, from ``offset`` on, lie in."""
        block_size = self._container.block_size
        start = HEAD_SIZE + offset
        return range(start // block_size, -(-(start + size) // block_size))

    def commit(
        self,
        content: bytearray,
        changed: Iterable[int],
        state: State = State.LIVE,
        *,
        crc32: int | None = None,
    ) -> None:
        """Commit ``content`` into the older copy: all of it, or the blocks that differ.

        Args:
            content: As many bytes as the section holds at most.
            changed: Blocks in which it differs from the newest copy.
            state: What the record becomes, live or in place.
            crc32: Of the content, where it is known.

        Raises:
            DeviceError, PoisonedStoreError, DamagedHeadError: As `commit`.
        """
        section, known = self.section, self._known
        newest, older = section.newest_and_older
        changed = frozenset(changed)
        ranges = None
        # A commit that was not made here would have overwritten the older copy.
        if older.version.generation == known.older:
            # The head is in block 0, whatever else changes.
            ranges = self._ranges({0} | known.differing | changed)
        before = newest.version.generation
        change = Change(section, self._name, state, content, section, ranges, crc32)
        commit(self._container, [change])
        # At once: an interrupt must not leave the blocks of one commit with the
        # generations of another.
        self._known = _Known(
            older.version.generation, before if before == known.newest else None, changed
        )

    def _ranges(self, blocks: set[int]) -> list[tuple[int, int]]:
        """Return runs of blocks as byte ranges of the record."""
        block_size = self._container.block_size
        ranges: list[tuple[int, int]] = []
        for block in sorted(blocks):
            start = block * block_size
            if ranges and ranges[-1][1] == start:
                start, _ = ranges.pop()
            ranges.append((start, (block + 1) * block_size))
        return ranges
