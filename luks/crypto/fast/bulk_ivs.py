"""The IVs of many sectors at a time: dm-crypt's generators with NumPy.

All of them follow one formula: a number that grows from sector to sector, in either
byte order, and encrypted or not. `luks.crypto.ivs` describes each generator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from luks.crypto.blockcipher import CryptographyCipher
from luks.crypto.hashes import lookup
from luks.model import SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from luks.crypto.spec import CipherSpec

_BLOCK: Final = 16
_MASK32: Final = 2**32 - 1
_MASK64: Final = 2**64 - 1
_COUNT: Final = np.arange(4096, dtype=np.uint64)


class IvRoom:
    """Room for the IVs of up to ``count`` sectors, 16 bytes each.

    Attributes:
        data: Their memory, with 15 spare bytes that `update_into` requires.
        lanes: The same, as 64-bit numbers.
    """

    def __init__(self, count: int) -> None:
        self.data = memoryview(bytearray(_BLOCK * count + _BLOCK - 1))
        self.lanes = np.frombuffer(self.data, np.uint64, 2 * count)
        self._multiples: tuple[int, NDArray[np.uint64]] = (0, np.zeros(count, np.uint64))

    def multiples_of(self, step: int) -> NDArray[np.uint64]:
        """Return 0, step, 2·step, ..., which is cached between requests."""
        known, multiples = self._multiples
        if known != step:
            multiples = np.multiply(_COUNT[: len(multiples)], np.uint64(step))
            self._multiples = (step, multiples)
        return multiples


class BulkIvs(NamedTuple):
    """A generator of IVs of 16 bytes.

    Attributes:
        factor: Sector numbers are multiplied by it, modulo 2**64.
        addend: It is added to the product.
        mask: Bits of the sum that are kept.
        big_endian: Whether the result is at the end of the IV, highest byte first;
            otherwise it is at the beginning, lowest byte first.
        cipher: Makes the cipher of the IV, if the IV is encrypted.
    """

    factor: int = 1
    addend: int = 0
    mask: int = _MASK64
    big_endian: bool = False
    cipher: Callable[[], CryptographyCipher] | None = None

    def put(self, room: IvRoom, count: int, first: int, step: int) -> memoryview:
        """Write IVs of sectors ``first``, ``first + step``, ...; return their bytes.

        ``count`` is 4096 at most, the numbers are taken modulo 2**64.
        """
        lanes = room.lanes[: 2 * count]
        numbers, zeros = lanes[::2], lanes[1::2]
        if self.big_endian:
            numbers, zeros = zeros, numbers
        zeros.fill(0)
        multiples = room.multiples_of(step * self.factor & _MASK64)[:count]
        np.add(multiples, np.uint64(first * self.factor + self.addend & _MASK64), out=numbers)
        if self.mask != _MASK64:
            np.bitwise_and(numbers, np.uint64(self.mask), out=numbers)
        if self.big_endian:
            numbers.byteswap(inplace=True)
        ivs = room.data[: _BLOCK * count]
        if self.cipher is not None:
            self.cipher().encryptor().update_into(ivs, room.data[: len(ivs) + _BLOCK - 1])
        return ivs


def bulk_ivs(spec: CipherSpec, key: memoryview, sector_size: int) -> BulkIvs:
    """Return the generator of a usable cipher; `luks.crypto.ivs` describes them.

    Args:
        spec: The cipher.
        key: Its whole key, which is not copied.
        sector_size: Bytes.
    """
    match spec.iv:
        case "plain":
            return BulkIvs(mask=_MASK32)
        case "plain64":
            return BulkIvs()
        case "plain64be":
            return BulkIvs(big_endian=True)
        case "benbi":
            return BulkIvs(factor=SECTOR_SIZE // _BLOCK, addend=1, big_endian=True)
        case "essiv":
            hash_ = lookup(spec.iv_option)
            # The digest is not kept, so that wiping the key ends the use of all made from it.
            return BulkIvs(cipher=lambda: CryptographyCipher(spec.cipher, hash_.new(key).digest()))
        case "eboiv":
            return BulkIvs(factor=sector_size, cipher=lambda: CryptographyCipher(spec.cipher, key))
        case _:
            return BulkIvs(factor=0)
