"""The tweaks of many XTS sectors at a time, mostly copied instead of computed.

XTS whitens block j of a sector, before and after the cipher, with the tweak
T·x^j: T is the sector's encrypted number, a polynomial over GF(2) modulo
x^128 + x^7 + x^2 + x + 1, of which the lowest bit of byte 0 has the power x^0.
Computing them one after the other takes longer than AES itself. Instead:

**Eight phases.** With j = 8m + p, the tweak is (T·x^p)·x^(8m). For each phase p
below 8, the rest is repeated multiplication by x^8.

**Windows.** Multiplication by x^8 moves every byte up by one. The byte c that leaves at
the top returns at the bottom as c·(x^7 + x^2 + x + 1), which has 15 bits::

    L(c) = low 8 bits of c ^ c<<1 ^ c<<2 ^ c<<7      to byte 0
    H(c) = the bits above them                       to byte 1

So a byte enters at byte 0 as L(c), absorbs H(c') of the next leaving byte when it
reaches byte 1, and then only moves up. Write down the bytes as they are after byte 1,
the newest first, followed by T·x^p: in this string the tweaks of m = 0, 1, 2 ... are
16-byte windows, each one byte further down than the one before, except for their byte
0, which is L of the byte directly above the window before. Two strided copies turn a
string into tweaks: one of all windows, one of all bytes 0.

**A sector's string**, for T with the bytes b0 to b15, in 64-bit lanes::

    [ C_q ... C_2  C_1 | b1 ... b8 | b9 ... b15 v ]

v is the byte that would have left directly before: L(v) = b0, so that b0 needs no
special rule. The polynomial 1 + x + x^2 + x^7 has the inverse
1 + x + x^3 + x^4 + x^6 modulo x^8, which gives v. Eight bytes leave before the
first of them returns, so a lane C is computed at once, from the lane two above and
the overflow, 7 bits, of the lane one above::

    a ^ a<<1 ^ a<<2 ^ a<<7  ^  b>>63 ^ b>>62 ^ b>>57

Sectors of 512 bytes have four windows, which only read the upper half of C_1;
there the overflow, which goes to the lowest byte, is omitted.

**The string of the next phases** is this one, shifted: bit by bit it obeys one
linear recurrence, from which the tweak times x is read one bit further down. v
shifts as well, because L and the shift are both multiplications modulo x^8. Three
doublings give 2, 4 and 8 phases. All strings are shifted as one long number; the
bits that move from one string into the next end in the lowest bits of C_q, which
windows read only as a byte 0.

Source: IEEE 1619-2018. The lanes are little-endian, and the machine must be too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.lib.stride_tricks import as_strided

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK: Final = 16
_PHASES: Final = 8
_LANE: Final = 8

# Shifts of lanes, and factors for bytes: NumPy multiplies bytes eight times as fast
# as it shifts them. It also takes arrays of dimension 0, and its third argument by
# position, in half the time of scalars and ``out=``: in small requests the calls
# dominate.
_SHIFTS: Final = [np.array(count, np.uint64) for count in range(65)]
_TIMES: Final = [np.array(1 << count, np.uint8) for count in range(8)]


class TweakStrings:
    """Room for the strings of up to ``count`` sectors; for one thread at a time.

    Attributes:
        bases: Place of the tweaks T before `extend`, with 15 spare bytes that
            `update_into` requires.
        base_lanes: The same, as two 64-bit lanes per sector.
    """

    def __init__(self, sector_size: int, count: int) -> None:
        """Take sectors of ``sector_size`` bytes, at least 512."""
        windows = sector_size // (_PHASES * BLOCK)
        carried = -(-windows // _LANE)  # number of lanes C
        lanes = carried + 2
        length = lanes * _LANE
        self._carried = carried
        self._is_short = 2 * windows <= _LANE
        self.bases = bytearray(BLOCK * count + BLOCK - 1)
        self.base_lanes = np.frombuffer(self.bases, np.uint64, 2 * count)
        self._base_blocks = np.frombuffer(self.bases, "V16", count)
        self._base_bytes0 = np.frombuffer(self.bases, np.uint8, BLOCK * count)[::BLOCK]

        strings = np.zeros((_PHASES, count, lanes), np.uint64)
        as_bytes = strings.reshape(-1).view(np.uint8)
        # b0 is put where the top of C_1 will be; the rest of T is then in place.
        self._first_window = _blocks_at(as_bytes, carried * _LANE - 1, (count,), (length,))
        self._top = as_bytes[length - 1 : count * length : length]
        # Two lanes C at a time, as one item, if there are two. The overflow of a lane
        # comes from its upper bits, and the overflow into it goes to its lower bits:
        # the second may take it from the first before the first has received its own.
        width = min(2, carried)
        self._carries = [
            [
                _items_at(as_bytes, at * _LANE, width, count, length)
                for at in (low, low + 1, low + 2)
            ]
            for low in reversed(range(0, carried, width))
        ]
        self._lane_room = [np.empty(width * count, np.uint64) for _ in range(3)]
        self._lane_items = [room.view(f"V{width * _LANE}") for room in self._lane_room[:2]]
        self._byte_room = [np.empty(count, np.uint8) for _ in range(3)]
        self._doublings = _doublings(strings)

        # Byte 0 of window m needs the byte m below the top: it is in the lanes above
        # the lowest two or, for 512-byte sectors, in the upper half of one.
        phase_stride = count * length
        if self._is_short:
            self._leaving: NDArray[Any] = strings.view(np.uint32)[:, :, 2 * lanes - 1]
        else:
            self._leaving = strings[:, :, 2:]
        self._left, self._bytes0 = (
            np.empty(self._leaving.shape, self._leaving.dtype) for _ in range(2)
        )
        self._left8 = self._left.reshape(-1).view(np.uint8)
        self._bytes0_8 = self._bytes0.reshape(-1).view(np.uint8)
        width = self._left8.size // (_PHASES * count)  # bytes per string
        # Both are ordered by sector, window and phase, as the blocks are.
        shape = (count, windows, _PHASES)
        self._entering = as_strided(self._bytes0_8[width - 1 :], shape, (width, -1, count * width))
        self._all_windows = _blocks_at(
            as_bytes, carried * _LANE - 1, shape, (length, -1, phase_stride)
        )

    def extend(self) -> None:
        """Make the strings of the tweaks in `bases`."""
        self._first_window[...] = self._base_blocks
        self._put_v()
        self._put_carried_lanes()
        for lower, upper, upper_next, carry, carry_before, count, rest in self._doublings:
            np.right_shift(lower, rest, carry)
            np.left_shift(lower, count, upper)
            np.bitwise_or(upper_next, carry_before, upper_next)
        # L of all leaving bytes. (((a<<5 ^ a)<<1 ^ a)<<1 ^ a) is a<<7 ^ a<<2 ^ a<<1 ^ a.
        self._left[...] = self._leaving
        left, low = self._left8, self._bytes0_8
        np.multiply(left, _TIMES[5], low)
        np.bitwise_xor(low, left, low)
        np.add(low, low, low)
        np.bitwise_xor(low, left, low)
        np.add(low, low, low)
        np.bitwise_xor(low, left, low)

    def copy_blocks(self, first: int, count: int, room: TweakRoom) -> None:
        """Write the tweaks of all blocks of ``count`` sectors to ``room``."""
        room.blocks[:count] = self._all_windows[first : first + count]
        room.bytes0[:count] = self._entering[first : first + count]

    def _put_v(self) -> None:
        """Put L^-1(b0) at the top of each string: b0 ^ b0<<1 ^ b0<<3 ^ b0<<4 ^ b0<<6."""
        byte0, total, term = self._byte_room
        byte0[...] = self._base_bytes0
        np.add(byte0, byte0, total)
        np.bitwise_xor(total, byte0, total)
        np.multiply(total, _TIMES[3], term)
        np.bitwise_xor(total, term, total)
        np.multiply(byte0, _TIMES[6], term)
        np.bitwise_xor(total, term, self._top)

    def _put_carried_lanes(self) -> None:
        above, total, term = self._lane_room
        above_items, total_items = self._lane_items
        for made, one_above, two_above in self._carries:
            above_items[...] = two_above
            np.left_shift(above, _SHIFTS[5], total)  # as in `extend`
            np.bitwise_xor(total, above, total)
            np.left_shift(total, _SHIFTS[1], total)
            np.bitwise_xor(total, above, total)
            np.left_shift(total, _SHIFTS[1], total)
            np.bitwise_xor(total, above, total)
            made[...] = total_items
            if not self._is_short:
                # The overflow ((a>>1 ^ a)>>5 ^ a)>>57 is a>>63 ^ a>>62 ^ a>>57.
                above_items[...] = one_above
                np.right_shift(above, _SHIFTS[1], term)
                np.bitwise_xor(term, above, term)
                np.right_shift(term, _SHIFTS[5], term)
                np.bitwise_xor(term, above, term)
                np.right_shift(term, _SHIFTS[57], term)
                np.bitwise_xor(total, term, total)
                made[...] = total_items


class TweakRoom:
    """Room for the tweaks of all blocks of up to ``count`` sectors.

    Attributes:
        blocks: By sector, window and phase.
        bytes0: Byte 0 of each.
        flat: All bytes.
    """

    def __init__(self, sector_size: int, count: int) -> None:
        shape = (count, sector_size // (_PHASES * BLOCK), _PHASES)
        self.blocks: NDArray[np.void] = np.empty(shape, "V16")
        self.flat = self.blocks.reshape(-1).view(np.uint8)
        self.bytes0 = self.flat[::BLOCK].reshape(shape)


def _blocks_at(
    data: NDArray[np.uint8], start: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> NDArray[np.void]:
    """Return a view of 16-byte items, which may overlap, starting at byte ``start``."""
    return as_strided(np.frombuffer(data.data, "V16", 1, start), shape, strides)


def _items_at(
    data: NDArray[np.uint8], start: int, lanes: int, count: int, stride: int
) -> NDArray[np.void]:
    """Return a view of ``count`` items of some lanes, one per string, at byte ``start``."""
    return as_strided(np.frombuffer(data.data, f"V{lanes * _LANE}", 1, start), (count,), (stride,))


def _doublings(strings: NDArray[np.uint64]) -> list[tuple[Any, ...]]:
    """Return the views that `extend` needs to make 2, 4 and 8 phases.

    Each item has the lanes of the present phases, those of the new ones, the latter
    without their first, room for the bits that are shifted out, the same without its
    last, and both shift distances.
    """
    per_phase = strings[0].size
    by_phase = strings.reshape(_PHASES, per_phase)
    room = np.empty(_PHASES // 2 * per_phase, np.uint64)
    steps = []
    for count in (1, 2, 4):
        lower, upper = by_phase[:count].reshape(-1), by_phase[count : 2 * count].reshape(-1)
        carry = room[: count * per_phase]
        steps.append(
            (lower, upper, upper[1:], carry, carry[:-1], _SHIFTS[count], _SHIFTS[64 - count])
        )
    return steps
