"""Bodies of FUSE replies out of values."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats.fuse.messages import MAJOR, MINOR, MOST_WRITE, PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from formats.fuse.messages import Capability

_ATTR = struct.Struct("=6Q10I")
_ENTRY = struct.Struct("=4QII")
_ATTR_HEAD = struct.Struct("=QII")
_OPEN = struct.Struct("=QII")
_INIT = struct.Struct("=IIIIHHIIHHI7I")
_STATFS = struct.Struct("=5Q4I6I")
_COUNT = struct.Struct("=II")
_DIRENT = struct.Struct("=QQII")

_BILLION = 10**9


@dataclass(frozen=True, slots=True)
class Attributes:
    """What stat(2) says of a file. Times are in nanoseconds, the size in bytes."""

    node: int
    size: int
    mode: int
    links: int
    uid: int
    gid: int
    atime: int
    mtime: int
    ctime: int


@dataclass(frozen=True, slots=True)
class Space:
    """What statvfs(3) says of a file system; sizes in blocks."""

    block_size: int
    blocks: int
    free: int
    files: int
    free_files: int
    name_size: int


def encode_init(minor: int, max_readahead: int, flags: Capability) -> bytes:
    """Return the answer to INIT."""
    return _INIT.pack(
        MAJOR,
        min(minor, MINOR),
        max_readahead,
        flags,
        16,
        12,
        MOST_WRITE,
        1,
        MOST_WRITE // PAGE,
        0,
        0,
        *([0] * 7),
    )


def encode_attributes(found: Attributes) -> bytes:
    """Return the answer to GETATTR and SETATTR; the kernel keeps it for no time."""
    return _ATTR_HEAD.pack(0, 0, 0) + _attributes(found)


def encode_entry(found: Attributes) -> bytes:
    """Return the answer to LOOKUP; the kernel keeps it for no time."""
    return _ENTRY.pack(found.node, 0, 0, 0, 0, 0) + _attributes(found)


def encode_open(handle: int) -> bytes:
    """Return the answer to OPEN and OPENDIR, and the second part of that to CREATE."""
    return _OPEN.pack(handle, 0, 0)


def encode_count(size: int) -> bytes:
    """Return the answer to WRITE, or that to a question for the size of an attribute."""
    return _COUNT.pack(size, 0)


def encode_space(found: Space) -> bytes:
    """Return the answer to STATFS."""
    size = found.block_size
    counts = (found.blocks, found.free, found.free, found.files, found.free_files)
    return _STATFS.pack(*counts, size, found.name_size, size, 0, *([0] * 6))


def encode_directory(entries: Sequence[tuple[int, int, bytes]], offset: int, most: int) -> bytes:
    """Return the part of a directory that begins at an offset and fits into a reply.

    Args:
        entries: Node, mode and name of each.
        offset: How many the kernel has seen already.
        most: Bytes that it takes.
    """
    parts: list[bytes] = []
    size = 0
    for index, (node, mode, name) in enumerate(entries[offset:], offset + 1):
        entry = _DIRENT.pack(node, index, len(name), mode >> 12) + name
        entry += bytes(-len(entry) % 8)
        if size + len(entry) > most:
            break
        parts.append(entry)
        size += len(entry)
    return b"".join(parts)


def _attributes(found: Attributes) -> bytes:
    seconds, parts = zip(
        *(divmod(time, _BILLION) for time in (found.atime, found.mtime, found.ctime)), strict=True
    )
    return _ATTR.pack(
        found.node,
        found.size,
        -(-found.size // 512),
        *seconds,
        *parts,
        found.mode,
        found.links,
        found.uid,
        found.gid,
        0,
        PAGE,
        0,
    )
