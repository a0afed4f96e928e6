"""Arrays of numbers of 1 to 64 bits, such as refcount blocks."""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Bytes examined at a time for numbers of less than a byte.
_WINDOW: Final = 4096


class Counts:
    """The counts of one refcount block, stored as its bytes on disk.

    Attributes:
        raw: The bytes; big-endian numbers, and the first one of several in a byte
            in its low bits.
        bits: Bits of a number: 1, 2, 4, 8, 16, 32 or 64.
    """

    def __init__(self, raw: bytearray, bits: int) -> None:
        self.raw = raw
        self.bits = bits
        self._width = bits // 8

    def __len__(self) -> int:
        return len(self.raw) * 8 // self.bits

    def __getitem__(self, index: int) -> int:
        width = self._width
        if width:
            return int.from_bytes(self.raw[index * width : (index + 1) * width])
        bit = index * self.bits
        return self.raw[bit // 8] >> bit % 8 & (1 << self.bits) - 1

    def __setitem__(self, index: int, value: int) -> None:
        width = self._width
        if width:
            self.raw[index * width : (index + 1) * width] = value.to_bytes(width)
            return
        bit = index * self.bits
        mask = (1 << self.bits) - 1 << bit % 8
        self.raw[bit // 8] = self.raw[bit // 8] & ~mask | value << bit % 8

    def used(self) -> Iterator[tuple[int, int]]:
        """Yield index and value of all numbers that are not zero."""
        code = {1: "B", 2: "H", 4: "I", 8: "Q"}.get(self._width)
        if code is None:
            for at, byte in enumerate(self.raw):
                for index in range(at * 8 // self.bits, (at + 1) * 8 // self.bits) if byte else ():
                    if self[index]:
                        yield index, self[index]
            return
        numbers = array(code, bytes(self.raw))
        if sys.byteorder == "little":
            numbers.byteswap()
        for index, value in enumerate(numbers):
            if value:
                yield index, value

    def fill(self, first: int, count: int) -> None:
        """Set ``count`` numbers, starting with ``first``, to 1."""
        width = self._width
        if width:
            self.raw[first * width : (first + count) * width] = (1).to_bytes(width) * count
            return
        for index in range(first, first + count):
            self[index] = 1

    def find_free(self, start: int) -> int | None:
        """Return the index of the first zero at or after ``start``, or None."""
        if not self._width:
            return self._find_bits(start)
        width, zero = self._width, bytes(self._width)
        at = self.raw.find(zero, start * width)
        while at >= 0:
            if at % width == 0:
                return at // width
            # The zeros span two numbers; continue where the next number begins.
            at = self.raw.find(zero, at + width - at % width)
        return None

    def free_run(self, start: int, most: int) -> int:
        """Return how many consecutive numbers from ``start`` are zero, at most ``most``."""
        most = min(most, len(self) - start)
        width = self._width
        if width:
            view = self.raw[start * width : (start + most) * width]
            return (len(view) - len(view.lstrip(b"\0"))) // width
        count = 0
        while count < most and not self[start + count]:
            count += 1
        return count

    def _find_bits(self, start: int) -> int | None:
        per_byte = 8 // self.bits
        end = len(self)
        while start % per_byte and start < end:
            if not self[start]:
                return start
            start += 1
        table = _HAS_ZERO[self.bits]
        for at in range(start // per_byte, len(self.raw), _WINDOW):
            found = self.raw[at : at + _WINDOW].translate(table).find(1)
            if found >= 0:
                first = (at + found) * per_byte
                return next(index for index in range(first, first + per_byte) if not self[index])
        return None


@dataclass
class RefcountBlock:
    """A refcount block in memory.

    Attributes:
        counts: The counts in it.
        offset: Byte offset in the image; 0 until it has a place.
        first: First byte that differs from the block on disk.
        last: Byte after the last one that differs.
    """

    counts: Counts
    offset: int
    first: int = field(default=0)
    last: int = field(default=0)

    @property
    def dirty(self) -> bool:
        """Whether it must be written."""
        return self.first < self.last

    def touch(self, first: int, last: int) -> None:
        """Note that the counts ``first`` to ``last`` - 1 changed."""
        bits = self.counts.bits
        start, end = first * bits // 8, (last * bits + 7) // 8
        if self.dirty:
            start, end = min(start, self.first), max(end, self.last)
        self.first, self.last = start, end


def _has_zero(byte: int, bits: int) -> bool:
    mask = (1 << bits) - 1
    return any(not byte >> shift & mask for shift in range(0, 8, bits))


#: For each width below a byte: byte to 1 if one of its numbers is zero.
_HAS_ZERO: Final = {bits: bytes(_has_zero(byte, bits) for byte in range(256)) for bits in (1, 2, 4)}
