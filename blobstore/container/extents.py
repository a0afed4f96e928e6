"""Taking extents out of free space, and releasing them into it: C14, C52, C55, C56.

Space is void before it is anything: an extent enters and leaves the free space
with void records and tombstones only, and what makes it a section, or replaces
one, is an ordinary commit (C46).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from blobstore.container.durable import Span
from blobstore.container.headers import make_equal, write_durable
from blobstore.container.sections import Copy, Section
from formats.container.encoder import record_frame
from formats.container.model import NEVER_WRITTEN, Free, State, record_length

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from blobstore.container.open_container import OpenContainer
    from formats.container.model import Identity


#: What records may be that lie in space that becomes free (C56).
_BLOBLESS = (State.VOID, State.TOMBSTONE)


def take_extents(
    container: OpenContainer, identities: Sequence[Identity], *, within: int | None = None
) -> list[Section]:
    """Take void extents out of free space; a commit makes sections of them (C52, C55).

    Args:
        container: Its free space is updated once the extents are durable; until
            a commit takes them up they are left over.
        identities: Of copy 0 of each.
        within: Offset of the only free item to take them from, at its end; any
            if None.

    Returns:
        The extents, in the same order.

    Raises:
        ValueError: A name, type or size breaks C8 or C9.
        NoSpaceError: They do not fit; nothing was changed.
        DeviceFullError: They would, but the device has no space to store them;
            nothing was changed.
        DeviceError, PoisonedStoreError, DamagedHeadError: As in `commit`.
    """
    from blobstore.container.placing import place_extents  # noqa: PLC0415  few puts need it

    container.next_generation()  # refuses a store that must not be written
    make_equal(container)  # space that an interrupted growth added is used only then (C57)
    extents = [_void_extent(container, identity) for identity in identities]
    free = place_extents(container, extents, within)
    known = container.directory.free
    items = {
        offset: free_item(container, length)
        for offset, length in free.items()
        if offset not in known or known[offset].length != length
    }
    # All their bytes: no head that lay there may be found again (C14).
    void = [
        head_span(container, copy, copy.length)
        for extent in extents
        for copy in extent.copies
        if copy
    ]
    # What follows an extent in its free item gets a head of its own, not seen yet either.
    container.writer.write_free(
        void + [free_span(container, o, item) for o, item in items.items() if o not in known]
    )

    def follow() -> None:
        known.update(items)
        for extent in extents:
            container.directory.leave_over(extent)

    shortened = [free_span(container, o, item) for o, item in items.items() if o in known]
    container.writer.write(shortened, follow)
    return extents


def release(container: OpenContainer) -> None:
    """Make what is left over free, merged with its free neighbours (C56).

    Also what an earlier change left over because it was interrupted.

    Args:
        container: Its free space is updated step by step.

    Raises:
        DeviceError, PoisonedStoreError: The next recovery finishes it.
    """
    extents = list(container.directory.left_over)
    if not extents:
        return
    container.next_generation()  # refuses a store that must not be written
    # Until D says so, the last commit is in doubt and might need what it replaced.
    write_durable(container)
    older, newest = [], []
    for extent in extents:
        standing = [c for c in extent.copies if c and c.version.state not in _BLOBLESS]
        standing.sort(key=lambda copy: copy.version.generation)
        older += standing[:-1]
        newest += standing[-1:]
    for copies in filter(None, (older, newest)):
        _make_void(container, copies)
    inside = {copy.offset for extent in extents for copy in extent.copies if copy}
    for extent in extents:
        inside |= merge(container, *extent.place, extent)
    wipe_heads(container, inside)


def _make_void(container: OpenContainer, copies: Sequence[Copy]) -> None:
    """Write the heads of records as void, of generation 0, and flush."""
    heads = [head_span(container, replace(copy, version=NEVER_WRITTEN)) for copy in copies]

    def follow() -> None:
        for copy in copies:
            copy.version = NEVER_WRITTEN

    container.writer.write(heads, follow)


def merge(
    container: OpenContainer, start: int, length: int, extent: Section | None = None
) -> set[int]:
    """Write one free item over some bytes and the free items beside them.

    Args:
        container: Its free space is updated once that is durable.
        start: Byte offset of what becomes free, or is.
        length: Its bytes.
        extent: What was left over there.

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
    item = free_item(container, length)

    def follow() -> None:
        free[start] = item
        for offset in inside:
            free.pop(offset, None)
        if extent is not None:
            container.directory.take_up(extent)

    container.writer.write([free_span(container, start, item)], follow)
    return inside


def wipe_heads(container: OpenContainer, offsets: Collection[int]) -> None:
    """Overwrite heads that lie inside free items by now (C56, step 3).

    Args:
        container: Not modified.
        offsets: Of the heads; those of free items are left alone.

    Raises:
        DeviceError, PoisonedStoreError: It failed; what is left has no meaning.
    """
    inside = sorted(set(offsets) - container.directory.free.keys())
    if inside:
        container.writer.write_free([Span(offset, (), container.block_size) for offset in inside])


def head_span(container: OpenContainer, copy: Copy, length: int | None = None) -> Span:
    """Return the head of a record, then zeros, as they are written.

    Args:
        container: Whose record it is.
        copy: The record.
        length: Bytes in all; a block if None.
    """
    head = container.authenticator.record_head(copy.offset, copy.frame, copy.version)
    return Span(copy.offset, (head,), length or container.block_size)


def free_span(container: OpenContainer, offset: int, item: Free) -> Span:
    """Return the head of a free item as it is written."""
    head = container.authenticator.free_head(offset, item)
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
