"""The client's side: the handshake that chooses an export, requests, and heads of replies.

There is no I/O here either. `negotiate` is a generator: it yields the bytes to send, the number
of bytes to receive, or `ENCRYPT`, and returns what the server tells of the export
(``spec/nbd.md``, N60 to N69).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from formats.errors import DeviceError, FormatError, UnsupportedError
from formats.nbd.numbers import (
    ALLOCATION_CONTEXT,
    FIXED_NEWSTYLE,
    MAX_NAME_SIZE,
    MAX_OPTION_SIZE,
    MAX_TRANSFER,
    NO_ZEROES,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    REQUEST_MAGIC,
    SERVER_MAGIC,
    SIMPLE_REPLY_MAGIC,
    STATE_ZERO,
    STRUCTURED_REPLY_MAGIC,
    Errno,
    Info,
    Option,
    OptionReply,
    TransmissionFlag,
)
from formats.nbd.structures import (
    CHUNK,
    EXPORT,
    EXTENT,
    FAILURE,
    GREETING,
    OFFSET,
    OPTION,
    OPTION_REPLY,
    REQUEST,
    SIMPLE_REPLY,
)

if TYPE_CHECKING:
    from collections.abc import Generator

    from formats.nbd.numbers import Command

_BLOCK_SIZE: Final = struct.Struct(">III")
_ZEROS: Final = 124

#: Bytes of the head that each reply begins with; a structured one has `MORE_OF_CHUNK` more.
REPLY_HEAD: Final = SIMPLE_REPLY.size
MORE_OF_CHUNK: Final = CHUNK.size - SIMPLE_REPLY.size

_ERROR: Final = 1 << 31
#: Most replies to one option: a server could go on for ever.
_MOST_REPLIES: Final = 64
_DONE: Final = 1
_ERROR_CHUNK: Final = 1 << 15
_HOLE: Final = struct.Struct(">QI")


class Encrypt:
    """What `negotiate` yields where TLS begins."""


ENCRYPT: Final = Encrypt()


@dataclass(frozen=True, slots=True)
class Served:
    """What a server tells of the export that was chosen.

    Attributes:
        size: In bytes.
        flags: Of `TransmissionFlag`.
        least: Bytes that offsets and lengths must be multiples of.
        preferred: Bytes that they are best multiples of.
        most: Bytes of the largest read or write.
        structured: Whether replies are structured.
        allocation: Number of the context that tells of zeros, or None.
    """

    size: int
    flags: int
    least: int = 1
    preferred: int = 4096
    most: int = MAX_TRANSFER
    structured: bool = False
    allocation: int | None = None

    def can(self, flag: TransmissionFlag) -> bool:
        """Say whether the export has a transmission flag."""
        return bool(self.flags & flag)


class Head(NamedTuple):
    """The head of a reply, or of a part of one.

    Attributes:
        cookie: Of the request.
        kind: Type of the chunk; None for a simple reply.
        error: Of a simple reply; 0 is success.
        length: Bytes of the chunk that follow.
        is_last: Whether the reply ends with this.
    """

    cookie: int
    kind: int | None
    error: int
    length: int
    is_last: bool


def negotiate(
    name: str, *, encrypted: bool = False
) -> Generator[int | bytes | Encrypt, bytes, Served]:
    """Choose an export.

    Args:
        name: Of the export; empty is the server's default.
        encrypted: Whether to begin with TLS; a server without it is refused.

    Raises:
        DeviceError: The server does not serve this export, or not in this way.
        UnsupportedError: It speaks an older form of the protocol only.
        FormatError: It breaks the protocol.
    """
    magic, second, flags = GREETING.unpack((yield GREETING.size))
    if magic != SERVER_MAGIC:
        raise FormatError(f"what answers does not speak NBD: it begins with {magic:#x} [N60]")
    if second != OPTION_MAGIC or not flags & FIXED_NEWSTYLE:
        raise UnsupportedError(
            "the NBD server speaks only a form of the protocol from before 2011 [N60]",
            feature="NBD before fixed newstyle",
        )
    yield struct.pack(">I", FIXED_NEWSTYLE | (flags & NO_ZEROES))
    if encrypted:
        error, message, _ = yield from _ask(Option.STARTTLS)
        if error:
            raise DeviceError(f"the NBD server does not encrypt: {message or hex(error)} [N61]")
        yield ENCRYPT
    error, _, _ = yield from _ask(Option.STRUCTURED_REPLY)
    structured = not error
    allocation = None
    if structured:
        allocation = yield from _allocation(name)
    served = yield from _go(name)
    if served is None:
        served = yield from _export_name(name, has_zeros=not flags & NO_ZEROES)
    return replace(served, structured=structured, allocation=allocation)


def request(command: Command, cookie: int, offset: int, length: int, flags: int = 0) -> bytes:
    """Return a request; the data of a WRITE comes after it."""
    return REQUEST.pack(REQUEST_MAGIC, flags, command, cookie, offset, length)


def is_chunk(head: bytes) -> bool:
    """Say whether a reply is structured, from its first `REPLY_HEAD` bytes.

    Raises:
        FormatError: They do not begin a reply.
    """
    magic = int.from_bytes(head[:4], "big")
    if magic not in (SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC):
        raise FormatError(f"the NBD server sent a reply that begins with {magic:#010x} [N63]")
    return magic == STRUCTURED_REPLY_MAGIC


def decode_head(head: bytes) -> Head:
    """Return what the head of a reply says, with `MORE_OF_CHUNK` where `is_chunk` says so."""
    if len(head) == SIMPLE_REPLY.size:
        _, error, cookie = SIMPLE_REPLY.unpack(head)
        return Head(cookie, None, error, 0, is_last=True)
    _, flags, kind, cookie, length = CHUNK.unpack(head)
    return Head(cookie, kind, 0, length, is_last=bool(flags & _DONE))


def is_failure(kind: int) -> bool:
    """Say whether a chunk tells of an error."""
    return bool(kind & _ERROR_CHUNK)


def decode_failure(data: bytes) -> tuple[int, str]:
    """Return number and message of an error; errors as `decode_extents`."""
    if len(data) < FAILURE.size:
        raise FormatError("the NBD server sent an error that ends within its head [N63]")
    error, size = FAILURE.unpack_from(data)
    text = data[FAILURE.size : FAILURE.size + size]
    return error or Errno.EIO, text.decode(errors="replace")


def decode_offset(data: bytes) -> int:
    """Return where a chunk of data begins, from its first 8 bytes."""
    offset: int = OFFSET.unpack(data)[0]
    return offset


def decode_hole(data: bytes) -> tuple[int, int]:
    """Return offset and length of a hole; errors as `decode_extents`."""
    if len(data) != _HOLE.size:
        raise FormatError(f"the NBD server sent a hole in {len(data)} bytes [N63]")
    offset, length = _HOLE.unpack(data)
    return offset, length


def decode_extents(data: bytes, context: int | None) -> list[tuple[int, bool]] | None:
    """Return lengths of extents, and whether each is known to be zeros.

    None if they are of another context than was chosen.

    Raises:
        FormatError: The server breaks the protocol.
    """
    size = len(data) - 4
    if size <= 0 or size % EXTENT.size:
        raise FormatError(f"the NBD server sent extents in {len(data)} bytes [N63]")
    if int.from_bytes(data[:4], "big") != context:
        return None
    found = [(length, bool(flags & STATE_ZERO)) for length, flags in EXTENT.iter_unpack(data[4:])]
    if not all(length for length, _ in found):
        raise FormatError("the NBD server sent an extent of no bytes [N63]")
    return found


# ------------------------------------------------------------- internal


def _ask(
    option: int, data: bytes = b""
) -> Generator[int | bytes | Encrypt, bytes, tuple[int, str, list[tuple[int, bytes]]]]:
    """Send an option; return its error or 0, the error's message, and the other replies."""
    yield OPTION.pack(OPTION_MAGIC, option, len(data)) + data
    replies: list[tuple[int, bytes]] = []
    while len(replies) < _MOST_REPLIES:
        magic, answered, kind, size = OPTION_REPLY.unpack((yield OPTION_REPLY.size))
        if magic != OPTION_REPLY_MAGIC or answered != option:
            raise FormatError(f"the NBD server does not answer option {option} [N60]")
        if size > MAX_OPTION_SIZE:
            raise FormatError(f"the NBD server answers an option with {size} bytes [N60]")
        content = (yield size) if size else b""
        if kind == OptionReply.ACK:
            return 0, "", replies
        if kind & _ERROR:
            return kind, content[:MAX_NAME_SIZE].decode(errors="replace"), replies
        replies.append((kind, content))
    raise FormatError(f"the NBD server answers option {option} without end [N60]")


def _allocation(name: str) -> Generator[int | bytes | Encrypt, bytes, int | None]:
    """Ask for the context that tells of zeros; return its number, or None."""
    encoded, query = name.encode(), ALLOCATION_CONTEXT.encode()
    data = _with_length(encoded) + struct.pack(">I", 1) + _with_length(query)
    error, _, replies = yield from _ask(Option.SET_META_CONTEXT, data)
    for kind, content in replies:
        if not error and kind == OptionReply.META_CONTEXT and content[4:] == query:
            return int.from_bytes(content[:4], "big")
    return None


def _go(name: str) -> Generator[int | bytes | Encrypt, bytes, Served | None]:
    """Choose the export; None if the server does not know this option."""
    data = _with_length(name.encode()) + struct.pack(">HH", 1, Info.BLOCK_SIZE)
    error, message, replies = yield from _ask(Option.GO, data)
    if error == OptionReply.ERR_UNSUP:
        return None
    if error:
        raise _refused(name, error, message)
    size = flags = None
    least, preferred, most = 1, 4096, MAX_TRANSFER
    for kind, content in replies:
        if kind != OptionReply.INFO or len(content) < 2:
            continue
        what, detail = int.from_bytes(content[:2], "big"), content[2:]
        if what == Info.EXPORT and len(detail) == EXPORT.size:
            size, flags = EXPORT.unpack(detail)
        elif what == Info.BLOCK_SIZE and len(detail) == _BLOCK_SIZE.size:
            least, preferred, most = _BLOCK_SIZE.unpack(detail)
    if size is None or flags is None:
        raise FormatError(f"the NBD server does not say how large export {name!r} is [N60]")
    if not (_is_power(least) and least <= 1 << 16 and most >= least):
        raise FormatError(f"the NBD server asks for blocks of {least} to {most} bytes [N62]")
    most = min(most - most % least, MAX_TRANSFER)
    return Served(size, flags, least, preferred if _is_power(preferred) else 4096, most)


def _export_name(name: str, *, has_zeros: bool) -> Generator[int | bytes | Encrypt, bytes, Served]:
    encoded = name.encode()
    yield OPTION.pack(OPTION_MAGIC, Option.EXPORT_NAME, len(encoded)) + encoded
    size, flags = EXPORT.unpack((yield EXPORT.size))
    if has_zeros:
        yield _ZEROS
    return Served(size, flags)


def _refused(name: str, error: int, message: str) -> DeviceError:
    known: dict[int, str] = {
        OptionReply.ERR_UNKNOWN: "it has no such export",
        OptionReply.ERR_TLS_REQD: "it demands encryption",
        OptionReply.ERR_POLICY: "it does not permit that",
        OptionReply.ERR_BLOCK_SIZE_REQD: "it demands block sizes that cannot be kept",
    }
    why = known.get(error, f"error {error:#x}")
    hint = "name the place with nbds://" if error == OptionReply.ERR_TLS_REQD else None
    said = f": {message}" if message else ""
    return DeviceError(f"the NBD server refuses export {name!r}: {why}{said} [N60]", hint=hint)


def _with_length(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def _is_power(number: int) -> bool:
    return number > 0 and not number & (number - 1)
