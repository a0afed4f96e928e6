"""Creating and resizing sections, and releasing extents: C52, C55, C56.

Space is void before it is anything: an extent enters and leaves the free space
with void records and tombstones only, and what makes it a section, or replaces
one, is an ordinary commit (C14, C46).
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from blobstore.commit import Change, commit
from blobstore.directory import Copy, Section
from blobstore.errors import NoSpaceError
from blobstore.headers import write_durable
from blobstore.writing import Span
from formats.container import (
    ID_SIZE,
    NEVER_WRITTEN,
    Free,
    Identity,
    State,
    record_length,
)
from formats.container_encoder import encode_free, record_frame

if TYPE_CHECKING:
    from blobstore.opened import OpenContainer
    from formats.container import Kind


def create_section(
    container: OpenContainer, name: str, max_size: int, *, kind: Kind, copies: int, type_: str
) -> None:
    """Create an unwritten section out of free space (C52).

    Args:
        container: Its directory has the section once that is durable.
        name: Not taken yet.
        max_size: Worst-case size of its blob, in bytes.
        kind: Blob or window.
        copies: 1 or 2.
        type_: What the blob is, for tools.

    Raises:
        ValueError: The name, type or size breaks C8 or C9.
        NoSpaceError: No free item is large enough.
        DeviceError, PoisonedStoreError, DamagedHeadError: As in `commit`.
    """
    identity = Identity(os.urandom(ID_SIZE), 0, copies, kind, max_size, type_, name)
    section = take_extent(container, identity)
    commit(container, [Change(section.first, name, State.UNWRITTEN)])
    container.directory.sections[name] = section
    write_durable(container)


def resize_section(container: OpenContainer, section: Section, max_size: int) -> None:
    """Move a section to an extent for another worst-case size (C55).

    Args:
        container: Its directory is updated step by step, as things get durable.
        section: Replaced in the directory; not to be used afterwards.
        max_size: In bytes, not below the size of the section's blob.

    Raises:
        NoSpaceError: No free item is large enough; the old extent is only
            freed afterwards.
        CorruptBlobError: The blob to move does not verify.
        DeviceError, PoisonedStoreError, DamagedHeadError: As in `commit`.
    """
    newest = section.newest
    name, state = newest.identity.name, newest.version.state
    blob = b"" if state is State.UNWRITTEN else container.blobs.read(newest)
    moved = take_extent(container, replace(newest.identity, copy=0, max_size=max_size))
    commit(container, [Change(moved.first, name, state, blob, replaces=newest)])
    container.directory.sections[name] = moved
    # Until D says so, the commit is in doubt and might need what it replaced.
    write_durable(container)
    release(container, section)


def take_extent(container: OpenContainer, identity: Identity) -> Section:
    """Take a void extent from free space; a commit makes a section of it (C52, C55).

    Args:
        container: Its free space is updated once the extent is durable.
        identity: Of the extent's copy 0.

    Raises:
        ValueError, NoSpaceError, DeviceError, PoisonedStoreError,
        DamagedHeadError: As in `create_section`.
    """
    container.next_generation()  # refuses a store that must not be written
    block_size = container.block_size
    length = record_length(identity.max_size, block_size)
    copies = [
        Copy(0, placed, NEVER_WRITTEN, length, record_frame(placed, block_size))
        for placed in (replace(identity, copy=copy) for copy in range(identity.copies))
    ]
    free_offset = _choose_free(container, length * len(copies))
    free = container.directory.free[free_offset]
    left = free.length - length * len(copies)
    for number, copy in enumerate(copies):
        copy.offset = free_offset + left + number * length
    # All their bytes: no head that lay there may be found again (C14).
    container.writer.write([head_span(container, copy, copy.length) for copy in copies])
    _write_free(container, free_offset, left)
    return Section(list(copies))


def release(container: OpenContainer, extent: Section) -> None:
    """Make an extent free, merged with its free neighbours (C56).

    Args:
        container: Its free space is updated step by step.
        extent: Of no section any more, by what is durable and decided.

    Raises:
        DeviceError, PoisonedStoreError: The next recovery finishes it.
    """
    writer, free = container.writer, container.directory.free
    copies = [copy for copy in extent.copies if copy]
    standing = [c for c in copies if c.version.state not in (State.VOID, State.TOMBSTONE)]
    for copy in standing:
        copy.version = NEVER_WRITTEN
    if standing:
        writer.write([head_span(container, copy) for copy in standing])
    start, length = extent.place
    stale = {copy.offset for copy in copies}
    right = start + length
    if right in free:
        length += free[right].length
        stale.add(right)
    left = next((offset for offset, item in free.items() if offset + item.length == start), None)
    if left is not None:
        length += start - left
        start = left
    _write_free(container, start, length)
    free.pop(right, None)
    stale.discard(start)
    if stale:
        writer.write([Span(offset, (), container.block_size) for offset in sorted(stale)])


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


def _choose_free(container: OpenContainer, length: int) -> int:
    """Return the offset of the smallest free item that is longer than that."""
    fitting = [(f.length, o) for o, f in container.directory.free.items() if f.length > length]
    if not fitting:
        longest = max((f.length for f in container.directory.free.values()), default=0)
        usable = max(longest - container.block_size, 0)
        raise NoSpaceError(
            f"the section needs {length} bytes in one piece; the largest free piece has {usable}",
            hint="make a larger image and move the sections there",
        )
    return min(fitting)[1]


def _write_free(container: OpenContainer, offset: int, length: int) -> None:
    """Write the head of a free item; it attests the newest state (C56)."""
    directory = container.directory
    assert directory.root is not None, "a store without a root is not written"
    free = Free(directory.generation, directory.root, length)
    head = container.authenticator.seal(offset, encode_free(free))
    container.writer.write([Span(offset, (head,), container.block_size)])
    directory.free[offset] = free
