"""Taking extents out of free space, and releasing them into it: C14, C52, C55, C56.

Space is void before it is anything: an extent enters and leaves the free space
with void records and tombstones only, and what makes it a section, or replaces
one, is an ordinary commit (C46).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobstore.directory import Copy, Section
from blobstore.errors import NoSpaceError
from blobstore.writing import Span
from formats.container import NEVER_WRITTEN, Free, State, record_length
from formats.container_encoder import encode_free, record_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blobstore.opened import OpenContainer
    from formats.container import Identity


#: What records may be that lie in space that becomes free (C56).
_BLOBLESS = (State.VOID, State.TOMBSTONE)


def take_extents(
    container: OpenContainer, identities: Sequence[Identity], *, within: int | None = None
) -> list[Section]:
    """Take void extents out of free space; a commit makes sections of them (C52, C55).

    Args:
        container: Its free space is updated once the extents are durable.
        identities: Of copy 0 of each.
        within: Offset of the only free item to take them from; any if None.

    Returns:
        The extents, in the same order.

    Raises:
        ValueError: A name, type or size breaks C8 or C9.
        NoSpaceError: They do not fit; nothing was changed.
        DeviceError, PoisonedStoreError, DamagedHeadError: As in `commit`.
    """
    container.next_generation()  # refuses a store that must not be written
    extents = [_void_extent(container, identity) for identity in identities]
    free = {
        offset: item.length
        for offset, item in container.directory.free.items()
        if within in (None, offset)
    }
    shortened = _place(container, extents, free)
    # All their bytes: no head that lay there may be found again (C14).
    container.writer.write(
        [
            head_span(container, copy, copy.length)
            for extent in extents
            for copy in extent.copies
            if copy
        ]
    )
    _write_free(container, {offset: free[offset] for offset in shortened})
    return extents


def release(container: OpenContainer, extents: Sequence[Section]) -> None:
    """Make extents free, merged with their free neighbours (C56).

    Args:
        container: Its free space is updated step by step.
        extents: Of no section any more, by what is durable and decided.

    Raises:
        DeviceError, PoisonedStoreError: The next recovery finishes it.
    """
    writer = container.writer
    older, newest = [], []
    for extent in extents:
        standing = [c for c in extent.copies if c and c.version.state not in _BLOBLESS]
        standing.sort(key=lambda copy: copy.version.generation)
        older += standing[:-1]
        newest += standing[-1:]
    for copies in filter(None, (older, newest)):
        for copy in copies:
            copy.version = NEVER_WRITTEN
        writer.write([head_span(container, copy) for copy in copies])
    inside = {copy.offset for extent in extents for copy in extent.copies if copy}
    for extent in extents:
        start, length = extent.place
        inside |= merge(container, start, length)
    inside -= container.directory.free.keys()
    if inside:
        writer.write([Span(offset, (), container.block_size) for offset in sorted(inside)])


def merge(container: OpenContainer, start: int, length: int) -> set[int]:
    """Write one free item over some bytes and the free items beside them.

    Args:
        container: Its free space is updated once that is durable.
        start: Byte offset of what becomes free, or is.
        length: Its bytes.

    Returns:
        Offsets of the free items that lie inside the new one.
    """
    free = container.directory.free
    inside = set()
    right = start + length
    if right in free:
        length += free[right].length
        inside.add(right)
    left = next((offset for offset, item in free.items() if offset + item.length == start), None)
    if left is not None:
        length += start - left
        inside.add(start)
        start = left
    _write_free(container, {start: length})
    for offset in inside:
        free.pop(offset, None)
    return inside


def head_span(container: OpenContainer, copy: Copy, length: int | None = None) -> Span:
    """Return the head of a record, then zeros, as they are written.

    Args:
        container: Whose record it is.
        copy: The record.
        length: Bytes in all; a block if None.
    """
    frame = copy.frame
    head = container.authenticator.seal(copy.offset, frame.head(copy.version), frame.check_start)
    return Span(copy.offset, (head,), length or container.block_size)


def free_span(container: OpenContainer, offset: int, item: Free) -> Span:
    """Return the head of a free item as it is written."""
    head = container.authenticator.seal(offset, encode_free(item))
    return Span(offset, (head,), container.block_size)


def free_item(container: OpenContainer, length: int) -> Free:
    """Return a free item of so many bytes; it attests the newest state (C56)."""
    directory = container.directory
    assert directory.root is not None, "a store without a root is not written"
    return Free(directory.generation, directory.root, length)


def _void_extent(container: OpenContainer, identity: Identity) -> Section:
    """Return an extent of void records that has no place yet."""
    block_size = container.block_size
    length = record_length(identity.max_size, block_size)
    copies: list[Copy | None] = []
    for copy in range(identity.copies):
        placed = identity._replace(copy=copy)
        copies.append(Copy(0, placed, NEVER_WRITTEN, length, record_frame(placed, block_size)))
    return Section(copies)


def _place(container: OpenContainer, extents: Sequence[Section], free: dict[int, int]) -> set[int]:
    """Give extents their offsets: each the end of the smallest free item that is longer.

    Args:
        container: Not modified.
        extents: Their offsets are set, the longest first.
        free: Lengths of the free items by offset; shortened by what is taken.

    Returns:
        Which free items were shortened.
    """
    shortened = set()
    for extent in sorted(extents, key=lambda extent: extent.place[1], reverse=True):
        _, length = extent.place
        fitting = [(left, offset) for offset, left in free.items() if left > length]
        if not fitting:
            usable = max(max(free.values(), default=0) - container.block_size, 0)
            raise NoSpaceError(
                f"section {extent.name!r} needs {length} bytes in one piece; the largest free "
                f"piece has {usable}",
                hint="let the image grow, or make a larger one and move the sections there",
            )
        left, offset = min(fitting)
        free[offset] = left - length
        shortened.add(offset)
        for number, copy in enumerate(filter(None, extent.copies)):
            copy.offset = offset + free[offset] + number * copy.length
    return shortened


def _write_free(container: OpenContainer, lengths: dict[int, int]) -> None:
    """Write heads of free items."""
    items = {offset: free_item(container, length) for offset, length in lengths.items()}
    container.writer.write([free_span(container, offset, item) for offset, item in items.items()])
    container.directory.free.update(items)
