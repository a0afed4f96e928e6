"""CBC over many sectors with a few calls.

**Decrypting**: one chain runs through all sectors of a chunk; that needs no
IVs. Then only the first block of each sector is wrong: it was XORed with the
ciphertext before it, of another sector, instead of the sector's IV. Both are
XORed onto it afterwards.

**Encrypting** is serial within a sector, block by block, but not between
sectors: one call encrypts the first blocks of all, the next call the second blocks,
and so on. For that, the blocks are copied from sector-major to block-major order in a
work area, and back.

Source: NIST SP 800-38A.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import numpy as np

from luks.crypto.fast.bulk_ivs import BulkIvs, IvRoom

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from formats.devices.device import ReadableBuffer, WritableBuffer
    from luks.crypto.blockcipher import CryptographyCipher

_BLOCK: Final = 16
#: Bytes decrypted at a time, and encrypted at a time, where a call takes a block per sector.
_CHUNK: Final = 256 << 10
_BATCH: Final = 1 << 20


class BulkCbc:
    """CBC of a cipher with 128-bit blocks. Safe in several threads."""

    way = "ECB"

    def __init__(self, blocks: CryptographyCipher, sector_size: int, ivs: BulkIvs) -> None:
        self._blocks = blocks
        self._ivs = ivs
        self._sector_size = sector_size

    def encrypt(self, first: int, step: int, data: ReadableBuffer, out: WritableBuffer) -> None:
        """Encrypt; as `luks.crypto.fast.bulk.Bulk`."""
        size = self._sector_size
        context = self._blocks.encryptor()
        source, target = _blocks_of(data, size), _blocks_of(out, size)
        most = min(len(source), _BATCH // size)
        ivs = IvRoom(most)
        with _borrow(most * size) as memory:
            for start in range(0, len(source), most):
                count = min(most, len(source) - start)
                length = count * _BLOCK  # of one block from each of these sectors
                by_block = memory[: count * size].view("V16").reshape(size // _BLOCK, count)
                np.copyto(by_block, source[start : start + count].T)
                before = self._put_ivs(ivs, count, first + start * step, step)
                for at in range(0, count * size, length):
                    row = memory[at : at + length]
                    np.bitwise_xor(row, before, out=row)
                    context.update_into(row.data, memory[at : at + length + _BLOCK].data)
                    before = row
                np.copyto(target[start : start + count], by_block.T)

    def decrypt(self, first: int, step: int, data: ReadableBuffer, out: WritableBuffer) -> None:
        """Decrypt; as `luks.crypto.fast.bulk.Bulk`."""
        size = self._sector_size
        context = self._blocks.cbc_decryptor()
        source, target = np.frombuffer(data, np.uint8), np.frombuffer(out, np.uint8)
        # For each sector, the block that the chain adds to its first one; at the start, zero.
        last_blocks = _blocks_of(data, size)[:, -1]
        most = min(len(last_blocks), _CHUNK // size)
        ivs, brought = IvRoom(most), np.zeros((most + 1) * _BLOCK, np.uint8)
        brought_blocks = brought.view("V16")
        with _borrow(most * size) as memory:
            for start in range(0, len(last_blocks), most):
                count = min(most, len(last_blocks) - start)
                span = slice(start * size, (start + count) * size)
                # Copy it now, because ``out`` may be the same memory.
                brought_blocks[1 : count + 1] = last_blocks[start : start + count]
                plain = memory[: count * size]
                context.update_into(source[span].data, memory[: count * size + _BLOCK].data)
                fix = brought[: count * _BLOCK]
                np.bitwise_xor(fix, self._put_ivs(ivs, count, first + start * step, step), out=fix)
                firsts = plain.view(np.uint64).reshape(count, -1)[:, :2]
                np.bitwise_xor(firsts, fix.view(np.uint64).reshape(count, 2), out=firsts)
                np.copyto(target[span], plain)
                brought_blocks[0] = brought_blocks[count]

    def _put_ivs(self, room: IvRoom, count: int, first: int, step: int) -> NDArray[np.uint8]:
        return np.frombuffer(self._ivs.put(room, count, first, step), np.uint8)


def _blocks_of(data: ReadableBuffer, sector_size: int) -> NDArray[np.void]:
    """Return a view of the blocks of each sector, on the caller's memory of any alignment."""
    return np.frombuffer(data, "V16").reshape(-1, sector_size // _BLOCK)


#: Work areas not in use, by the power of two of their bytes.
_free: dict[int, list[NDArray[np.uint8]]] = {}


@contextmanager
def _borrow(size: int) -> Iterator[NDArray[np.uint8]]:
    """Lend memory of at least ``size`` bytes, and 16 more for `update_into`, to one thread.

    It is wiped afterwards, because it may hold decrypted bytes of a keyslot.
    """
    power = (size - 1).bit_length()
    spare = _free.setdefault(power, [])
    try:
        memory = spare.pop()
    except IndexError:
        memory = np.zeros((1 << power) + _BLOCK, np.uint8)
    try:
        yield memory
    finally:
        memory[:size].fill(0)
        spare.append(memory)
