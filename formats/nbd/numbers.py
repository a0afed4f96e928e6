"""The numbers of the protocol, and the limits that this server sets (``spec/nbd.md``)."""

from __future__ import annotations

from enum import IntEnum
from typing import Final

SERVER_MAGIC: Final = 0x4E42444D41474943
OPTION_MAGIC: Final = 0x49484156454F5054
OPTION_REPLY_MAGIC: Final = 0x0003E889045565A9
REQUEST_MAGIC: Final = 0x25609513
SIMPLE_REPLY_MAGIC: Final = 0x67446698
STRUCTURED_REPLY_MAGIC: Final = 0x668E33EF

#: Flags of both sides in the handshake (N1, N2).
FIXED_NEWSTYLE: Final = 1
NO_ZEROES: Final = 2

#: Most bytes of data of one option, and most options of one connection (N3).
MAX_OPTION_SIZE: Final = 64 << 10
MAX_OPTIONS: Final = 256
#: Most bytes of a name (N5), or of a message for people.
MAX_NAME_SIZE: Final = 4096
#: Most bytes that are read or written by one request (N13, N15).
MAX_TRANSFER: Final = 32 << 20

#: The only context of BLOCK_STATUS, and its number (N10).
ALLOCATION_CONTEXT: Final = "base:allocation"
ALLOCATION_ID: Final = 1

#: Flags of extents (N20).
STATE_ZERO: Final = 2


class Option(IntEnum):
    """What a client asks for in the handshake."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(IntEnum):
    """What it is answered with."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = 0x80000001
    ERR_POLICY = 0x80000002
    ERR_INVALID = 0x80000003
    ERR_PLATFORM = 0x80000004
    ERR_TLS_REQD = 0x80000005
    ERR_UNKNOWN = 0x80000006
    ERR_BLOCK_SIZE_REQD = 0x80000008


class Info(IntEnum):
    """What INFO and GO tell of an export."""

    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlag(IntEnum):
    """What an export can do (N12)."""

    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Command(IntEnum):
    """What a request asks for."""

    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntEnum):
    """How it is to be carried out (N16)."""

    FUA = 1
    NO_HOLE = 2
    DF = 4
    REQ_ONE = 8
    FAST_ZERO = 16


class Chunk(IntEnum):
    """Types of structured replies (N18)."""

    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = 0x8001


class Errno(IntEnum):
    """Errors of requests, with the protocol's own numbers (N19)."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108
