"""Headers, opcodes and flags of FUSE messages."""

from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

from formats.errors import FormatError

#: The protocol that is spoken, and the oldest that the kernel may speak.
MAJOR: Final = 7
MINOR: Final = 38
LEAST_MINOR: Final = 31

#: The node of the directory that is mounted.
ROOT: Final = 1

#: Bytes of a write that one request may carry, and of a request with all its structures.
MOST_WRITE: Final = 1 << 20
REQUEST_SIZE: Final = MOST_WRITE + 4096
PAGE: Final = 4096

_IN: Final = struct.Struct("=IIQQIIIHH")
_OUT: Final = struct.Struct("=IiQ")


class Opcode(enum.IntEnum):
    """What is asked for. Those that are not here are answered with ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    RENAME2 = 45


class Capability(enum.IntFlag):
    """What kernel and file system agree on when they begin."""

    ASYNC_READ = 1 << 0
    #: Opening with O_TRUNC is one request.
    ATOMIC_O_TRUNC = 1 << 3
    BIG_WRITES = 1 << 5
    #: The kernel drops what it cached when size or time of a file are others.
    AUTO_INVAL_DATA = 1 << 12
    MAX_PAGES = 1 << 22


class Header(NamedTuple):
    """The head of a request: what, of which node, and for which process."""

    size: int
    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    pid: int


def decode_header(message: bytes | bytearray | memoryview) -> tuple[Header, memoryview]:
    """Return the head of a request and its body.

    Raises:
        FormatError: It is shorter than it says, or than a head.
    """
    view = memoryview(message)
    if len(view) < _IN.size:
        raise FormatError(f"a FUSE request of {len(view)} bytes has no header")
    header = Header(*_IN.unpack_from(view)[:7])
    if not _IN.size <= header.size <= len(view):
        raise FormatError(f"a FUSE request of {len(view)} bytes says that it has {header.size}")
    return header, view[_IN.size : header.size]


def encode_reply(unique: int, error: int, body: bytes = b"") -> bytes:
    """Return a reply: the body, or an error number, which is positive."""
    return _OUT.pack(_OUT.size + len(body), -error, unique) + body
