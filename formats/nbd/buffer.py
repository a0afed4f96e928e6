"""Bytes that arrived, until what they belong to is whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer


class Buffer:
    """Takes bytes in pieces of any size, and gives them out in the sizes of messages."""

    __slots__ = ("_bytes",)

    def __init__(self, content: ReadableBuffer = b"") -> None:
        """Begin with ``content``."""
        self._bytes = bytearray(content)

    def __len__(self) -> int:
        return len(self._bytes)

    def append(self, data: ReadableBuffer) -> None:
        """Take what arrived."""
        self._bytes += data

    def peek(self, size: int) -> memoryview | None:
        """Return the next bytes without taking them, or None while they are not all there.

        The view must be released before the buffer changes.
        """
        return memoryview(self._bytes)[:size] if len(self._bytes) >= size else None

    def take(self, size: int, *, skip: int = 0) -> bytes:
        """Return the next bytes, which are there, without the first ``skip`` of them."""
        with memoryview(self._bytes) as view:
            taken = bytes(view[skip:size])
        del self._bytes[:size]
        return taken

    def clear(self) -> None:
        """Forget what is there."""
        self._bytes.clear()
