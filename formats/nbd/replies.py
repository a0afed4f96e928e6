"""What requests are answered with, as bytes (N17, N18)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from formats.nbd.numbers import (
    ALLOCATION_ID,
    MAX_NAME_SIZE,
    SIMPLE_REPLY_MAGIC,
    STATE_ZERO,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
)
from formats.nbd.structures import (
    CHUNK,
    EXTENT,
    FAILURE,
    OFFSET,
    SIMPLE_REPLY,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from formats.nbd.model import Extent
    from formats.nbd.numbers import Errno

_DONE: Final = 1


class Replies:
    """Encodes replies of one connection, structured or simple as the handshake agreed."""

    def __init__(self, *, structured: bool) -> None:
        """Encode structured replies, or simple ones."""
        self._structured = structured

    def done(self, cookie: int) -> bytes:
        """Return the reply to a request that succeeded and has nothing to tell."""
        if self._structured:
            return _chunk(Chunk.NONE, cookie, 0)
        return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie)

    def failed(self, cookie: int, error: Errno, message: str) -> bytes:
        """Return the reply to a request that failed; only structured ones have the message."""
        if not self._structured:
            return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie)
        text = message_bytes(message)
        size = FAILURE.size + len(text)
        return _chunk(Chunk.ERROR, cookie, size) + FAILURE.pack(error, len(text)) + text

    def read(self, cookie: int, offset: int, length: int) -> bytes:
        """Return what is sent before the ``length`` bytes that were read from ``offset`` on."""
        if not self._structured:
            return SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie)
        if not length:  # a chunk of data has some
            return _chunk(Chunk.NONE, cookie, 0)
        return _chunk(Chunk.OFFSET_DATA, cookie, OFFSET.size + length) + OFFSET.pack(offset)

    def block_status(self, cookie: int, extents: Iterable[Extent]) -> bytes:
        """Return the reply to BLOCK_STATUS, which there is with structured replies only."""
        body = ALLOCATION_ID.to_bytes(4, "big")
        for extent in extents:
            body += EXTENT.pack(extent.length, STATE_ZERO if extent.is_zero else 0)
        return _chunk(Chunk.BLOCK_STATUS, cookie, len(body)) + body


def message_bytes(text: str) -> bytes:
    """Return a message for people as it is sent: UTF-8, of bounded length."""
    # Cut in the middle of a character, it would not be UTF-8.
    return text.encode(errors="replace")[:MAX_NAME_SIZE].decode(errors="ignore").encode()


def _chunk(kind: Chunk, cookie: int, size: int) -> bytes:
    return CHUNK.pack(STRUCTURED_REPLY_MAGIC, _DONE, kind, cookie, size)
