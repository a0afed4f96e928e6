"""Creating and resizing sections, and freeing extents: C33, C52, C55, C56."""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

from blobstore.commit import member_of
from blobstore.directory import Copy, Section
from blobstore.errors import NoSpaceError
from blobstore.writing import Span
from formats.container import (
    ID_SIZE,
    NEVER_WRITTEN,
    Free,
    Identity,
    State,
    Version,
    record_length,
)
from formats.container_encoder import encode_free, record_frame

if TYPE_CHECKING:
    from blobstore.opened import OpenContainer
    from formats.container import Kind
    from formats.device import ReadableBuffer

_UNKNOWN = bytes(32)


def create_section(
    container: OpenContainer, name: str, max_size: int, *, kind: Kind, copies: int, type_: str
) -> Section:
    """Create an unwritten section out of free space (C52).

    Args:
        container: Its directory is updated once the section is durable.
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
    section = _place(container, identity, State.UNWRITTEN, b"", replaces=None)
    container.directory.sections[name] = section
    return section


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
    state = newest.version.state
    blob = container.blobs.read(newest) if state is State.LIVE else b""
    identity = replace(newest.identity, copy=0, max_size=max_size)
    moved = _place(container, identity, state, blob, replaces=newest)
    container.directory.sections[identity.name] = moved
    release(container, *section.extent)


def release(container: OpenContainer, start: int, length: int) -> None:
    """Make an extent free, merged with its free neighbours (C56).

    The free item gets the current generation and root, which must be those of
    the change that left the extent over.
    """
    directory = container.directory
    assert directory.root is not None, "nothing is freed in a store without a root"
    heads = [start, *_inner_heads(container, start, length)]
    left = next((o for o, free in directory.free.items() if o + free.length == start), None)
    right = start + length
    if right in directory.free:
        length += directory.free[right].length
        heads.append(right)
    if left is not None:
        length += start - left
        start = left
    free = Free(directory.generation, directory.root, length)
    _write_free(container, start, free)
    stale = [offset for offset in heads if offset != start]
    directory.free.pop(right, None)
    directory.free[start] = free
    if stale:
        container.writer.write([Span(o, (), container.block_size) for o in stale])


def _inner_heads(container: OpenContainer, start: int, length: int) -> list[int]:
    """Return where the second record of an extent of two starts, if it is one.

    Both records are of equal length; at worst a block of fill is zeroed.
    """
    half = length // 2
    return [start + half] if half and half % container.block_size == 0 else []


def _place(
    container: OpenContainer,
    identity: Identity,
    state: State,
    blob: ReadableBuffer,
    *,
    replaces: Copy | None,
) -> Section:
    """Write an extent into free space and publish it (C52, C55)."""
    frame = record_frame(identity, container.block_size)
    generation = container.next_generation()
    directory, authenticator = container.directory, container.authenticator
    prev = directory.root
    assert prev is not None, "next_generation refuses a store without a root"
    length = record_length(identity.max_size, container.block_size)
    free_offset = _choose_free(container, length * identity.copies)
    free = directory.free[free_offset]
    start = free_offset + free.length - length * identity.copies

    version = Version(state, generation, 0, len(blob), zlib.crc32(blob), _UNKNOWN, _UNKNOWN, prev)
    mac = authenticator.mac(frame.mac_input(version), (blob,))
    new_state = directory.state + authenticator.member(identity.section_id, generation, mac)
    if replaces is not None:
        new_state -= member_of(container, replaces)
    root = authenticator.root(new_state)

    copies = [Copy(start, identity, replace(version, mac=mac, root=root), length, frame)]
    if identity.copies > 1:
        second = replace(identity, copy=1)
        blank = record_frame(second, container.block_size)
        copies.append(Copy(start + length, second, NEVER_WRITTEN, length, blank))
    container.writer.write(
        [_whole_record(container, copy, blob if copy is copies[0] else b"") for copy in copies]
    )
    shortened = Free(generation, root, free.length - length * identity.copies)
    _write_free(container, free_offset, shortened)

    directory.free[free_offset] = shortened
    directory.state, directory.root = new_state, root
    directory.generation = generation
    directory.clean = False
    return Section(list(copies))


def _whole_record(container: OpenContainer, copy: Copy, blob: ReadableBuffer) -> Span:
    """Return a record with all its bytes, fill included (C14)."""
    return Span(copy.offset, (sealed_head(container, copy), blob), copy.length)


def sealed_head(container: OpenContainer, copy: Copy) -> bytes:
    """Return the head of a record as it is written."""
    frame = copy.frame
    return container.authenticator.seal(copy.offset, frame.head(copy.version), frame.check_start)


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


def _write_free(container: OpenContainer, offset: int, free: Free) -> None:
    head = container.authenticator.seal(offset, encode_free(free))
    container.writer.write([Span(offset, (head,), container.block_size)])
