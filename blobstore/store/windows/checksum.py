"""The crc32 of a window, from that of the blocks that changed (C10).

A crc is linear: where a block changes, the crc of the whole changes by the crc of the
difference, moved past the bytes after the block. To move it is a multiplication of polynomials over
GF(2), modulo that of crc32. So a commit of one block in half a megabyte need not read all of
it. (It does for the mac, where nothing can be left out: the mac begins with what changes.)
"""

from __future__ import annotations

import zlib
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from formats.container.model import HEAD_SIZE

if TYPE_CHECKING:
    from collections.abc import Collection

#: The polynomial of crc32, bits reflected: the highest bit is that of x^0.
_POLYNOMIAL: Final = 0xEDB88320
_ONE: Final = 1 << 31
_ONE_BYTE: Final = 1 << 23

#: As long as a block of its own takes beyond reading it, so many bytes are read (measured).
_BYTES_PER_BLOCK: Final = 12 << 10


class _Known(NamedTuple):
    """The crc32 of the whole content, and of each block of the record that it is in."""

    whole: int
    blocks: dict[int, int]


class BlockwiseCrc:
    """Computes the crc32 of a content again and again, as parts of it change."""

    def __init__(self, size: int, block_size: int) -> None:
        """Know nothing yet.

        Args:
            size: Of the content, in bytes.
            block_size: Of the record, whose head stands before the content.
        """
        self._size = size
        self._block_size = block_size
        self._moved: dict[int, array[int]] = {}
        self._known: _Known | None = None

    def of(self, content: bytearray, changed: Collection[int]) -> int:
        """Return the crc32 of the content.

        Args:
            content: All of it.
            changed: Blocks of the record, among them all that changed since the last call.
        """
        known = self._known
        with memoryview(content) as view:
            if len(changed) * (_BYTES_PER_BLOCK + self._block_size) > self._size:
                self._known = None
                return zlib.crc32(view)
            if known is None:
                count = -(-(HEAD_SIZE + self._size) // self._block_size)
                blocks = {block: self._crc(view, block) for block in range(count)}
                known = _Known(zlib.crc32(view), blocks)
            elif changed:
                found = {block: self._crc(view, block) for block in changed}
                whole = known.whole
                for block, crc in found.items():
                    whole ^= self._move(block, crc ^ known.blocks[block])
                known = _Known(whole, {**known.blocks, **found})
        self._known = known  # at once: an interrupt leaves what fits together
        return known.whole

    def _crc(self, content: memoryview, block: int) -> int:
        start = block * self._block_size - HEAD_SIZE
        return zlib.crc32(content[max(start, 0) : start + self._block_size])

    def _move(self, block: int, crc: int) -> int:
        """Return a crc of this block moved past the bytes after it."""
        moved = self._moved.get(block)
        if moved is None:
            after = self._size - ((block + 1) * self._block_size - HEAD_SIZE)
            moved = self._moved[block] = _table(_power(_ONE_BYTE, max(after, 0)))
        # Eight times four bits: spelt out, this takes an eighth of the time of a loop over bits.
        return (
            moved[crc & 15]
            ^ moved[16 | crc >> 4 & 15]
            ^ moved[32 | crc >> 8 & 15]
            ^ moved[48 | crc >> 12 & 15]
            ^ moved[64 | crc >> 16 & 15]
            ^ moved[80 | crc >> 20 & 15]
            ^ moved[96 | crc >> 24 & 15]
            ^ moved[112 | crc >> 28]
        )


def _multiples(factor: int) -> list[int]:
    """Return the products of a factor with each single bit, the lowest bit first."""
    found = []
    for _ in range(32):
        found.append(factor)
        factor = (factor >> 1) ^ _POLYNOMIAL if factor & 1 else factor >> 1
    return found[::-1]


def _table(factor: int) -> array[int]:
    """Return the products of a factor with each value of each four bits, the lowest first."""
    bits = _multiples(factor)
    table = array("I")
    for start in range(0, 32, 4):
        products = [0]
        for bit in bits[start : start + 4]:
            products += [bit ^ product for product in products]
        table.extend(products)
    return table


def _multiply(one: int, other: int) -> int:
    """Return the product of two polynomials."""
    product = 0
    for bit, multiple in enumerate(_multiples(other)):
        if one >> bit & 1:
            product ^= multiple
    return product


def _power(base: int, exponent: int) -> int:
    result = _ONE
    while exponent:
        if exponent & 1:
            result = _multiply(result, base)
        base = _multiply(base, base)
        exponent >>= 1
    return result
