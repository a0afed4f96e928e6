"""Bodies of FUSE requests as values."""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from formats.errors import FormatError

_LONG = struct.Struct("=Q")
_INIT = struct.Struct("=IIII")
_GETATTR = struct.Struct("=IIQ")
_SETATTR = struct.Struct("=II6Q8I")
_OPEN = struct.Struct("=II")
_CREATE = struct.Struct("=IIII")
_READ = struct.Struct("=QQIIQII")
_HANDLE = struct.Struct("=QII")
_RENAME2 = struct.Struct("=QII")
_XATTR = struct.Struct("=II")
_FALLOCATE = struct.Struct("=QQQII")
_FORGET_ONE = struct.Struct("=QQ")


class Changed(enum.IntFlag):
    """Which attributes a SETATTR sets."""

    MODE = 1 << 0
    UID = 1 << 1
    GID = 1 << 2
    SIZE = 1 << 3
    ATIME = 1 << 4
    MTIME = 1 << 5
    HANDLE = 1 << 6
    ATIME_NOW = 1 << 7
    MTIME_NOW = 1 << 8


#: Of a WRITE: pages that were written through a mapping, by whichever process.
WRITE_CACHE = 1 << 0


class Init(NamedTuple):
    """What the kernel speaks."""

    major: int
    minor: int
    max_readahead: int
    flags: int


class SetAttributes(NamedTuple):
    """New attributes; those that `valid` names. Times are in nanoseconds."""

    valid: Changed
    handle: int
    size: int
    atime: int
    mtime: int
    mode: int
    uid: int
    gid: int


class Create(NamedTuple):
    """A file to be made and opened."""

    flags: int
    mode: int
    umask: int
    name: bytes


class Read(NamedTuple):
    """A range to be read, of a file or a directory."""

    handle: int
    offset: int
    size: int


class Write(NamedTuple):
    """Bytes to be written."""

    handle: int
    offset: int
    flags: int
    data: memoryview


class Rename(NamedTuple):
    """A new name; the flags are those of renameat2(2)."""

    directory: int
    flags: int
    old: bytes
    new: bytes


class Fallocate(NamedTuple):
    """A range to be allocated."""

    handle: int
    offset: int
    size: int
    mode: int


def names(body: memoryview, count: int) -> list[bytes]:
    """Return names, each of which ends with a zero byte.

    Raises:
        FormatError: There are fewer.
    """
    found = bytes(body).split(b"\0", count)
    if len(found) <= count:
        raise FormatError(f"a FUSE request has fewer than {count} names")
    return found[:count]


def decode_init(body: memoryview) -> Init:
    """Return the first request's body; errors as `names`."""
    return Init(*_unpack(_INIT, body))


def decode_long(body: memoryview) -> int:
    """Return a number of 64 bits: a handle, a node, a count; errors as `names`."""
    return int(_unpack(_LONG, body)[0])


def decode_getattr(body: memoryview) -> int | None:
    """Return the handle whose file is meant, if one is; errors as `names`."""
    flags, _, handle = _unpack(_GETATTR, body)
    return handle if flags & 1 else None


def decode_setattr(body: memoryview) -> SetAttributes:
    """Return what SETATTR sets; errors as `names`."""
    valid, _, handle, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid, _ = (
        _unpack(_SETATTR, body)
    )
    return SetAttributes(
        Changed(valid & (2 * Changed.MTIME_NOW - 1)),
        handle,
        size,
        atime * 10**9 + atime_ns,
        mtime * 10**9 + mtime_ns,
        mode,
        uid,
        gid,
    )


def decode_open(body: memoryview) -> int:
    """Return the flags of open(2); errors as `names`."""
    return int(_unpack(_OPEN, body)[0])


def decode_create(body: memoryview) -> Create:
    """Return what CREATE makes; errors as `names`."""
    flags, mode, umask, _ = _unpack(_CREATE, body)
    return Create(flags, mode, umask, names(body[_CREATE.size :], 1)[0])


def decode_read(body: memoryview) -> Read:
    """Return what READ or READDIR reads; errors as `names`."""
    return Read(*_unpack(_READ, body)[:3])


def decode_write(body: memoryview) -> Write:
    """Return what WRITE writes; errors as `names`."""
    handle, offset, size, flags, *_ = _unpack(_READ, body)
    data = body[_READ.size : _READ.size + size]
    if len(data) != size:
        raise FormatError(f"a FUSE write of {size} bytes has {len(data)}")
    return Write(handle, offset, flags, data)


def decode_handle(body: memoryview) -> int:
    """Return the handle that FLUSH, FSYNC or RELEASE is for; errors as `names`."""
    return int(_unpack(_HANDLE, body)[0])


def decode_rename(body: memoryview, *, flagged: bool) -> Rename:
    """Return the names of RENAME, or of RENAME2, which has flags; errors as `names`."""
    if flagged:
        directory, flags, _ = _unpack(_RENAME2, body)
        old, new = names(body[_RENAME2.size :], 2)
        return Rename(directory, flags, old, new)
    old, new = names(body[_LONG.size :], 2)
    return Rename(decode_long(body), 0, old, new)


def decode_xattr_size(body: memoryview) -> int:
    """Return how many bytes of an extended attribute are wanted; errors as `names`."""
    return int(_unpack(_XATTR, body)[0])


def decode_xattr_name(body: memoryview) -> bytes:
    """Return which extended attribute GETXATTR is for; errors as `names`."""
    return names(body[_XATTR.size :], 1)[0]


def decode_fallocate(body: memoryview) -> Fallocate:
    """Return what FALLOCATE allocates; errors as `names`."""
    return Fallocate(*_unpack(_FALLOCATE, body)[:4])


def decode_forgets(body: memoryview) -> list[tuple[int, int]]:
    """Return nodes, and how many lookups of each are forgotten; errors as `names`."""
    count = int(_unpack(_XATTR, body)[0])
    start = _XATTR.size
    if len(body) < start + count * _FORGET_ONE.size:
        raise FormatError(f"a FUSE request does not have the {count} nodes that it says")
    return [_FORGET_ONE.unpack_from(body, start + i * _FORGET_ONE.size) for i in range(count)]


def _unpack(form: struct.Struct, body: memoryview) -> tuple[int, ...]:
    if len(body) < form.size:
        raise FormatError(f"the body of a FUSE request has {len(body)} of {form.size} bytes")
    return form.unpack_from(body)
