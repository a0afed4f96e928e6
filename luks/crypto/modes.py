"""The modes that LUKS uses: ECB, CBC, CTR, XTS and LRW over sectors.

One call of the block cipher processes many sectors wherever their blocks do not
depend on each other; the masks of all blocks are XORed as one large number.

Each mode takes ``ivs``, the concatenated IVs of all sectors, `iv_size` bytes
each, and ``data``, whole sectors of ``sector_size`` bytes, and returns as many bytes.

Source: NIST SP 800-38A; IEEE 1619-2018 (XTS); IEEE 1619 draft of 2004 (LRW).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from formats.devices.device import ReadableBuffer
    from luks.crypto.blockcipher import BlockCipher

_XTS_BLOCK: Final = 16
_LRW_MASK: Final = 2**128 - 1


class Mode(Protocol):
    """A mode with its key; safe in several threads.

    Attributes:
        iv_size: Bytes of a sector's IV.
    """

    iv_size: int

    def encrypt(self, ivs: bytes, data: bytes, sector_size: int) -> bytes:
        """Encrypt whole sectors."""

    def decrypt(self, ivs: bytes, data: bytes, sector_size: int) -> bytes:
        """Decrypt whole sectors."""


class Ecb:
    """Every block separately, without an IV."""

    iv_size = 0

    def __init__(self, blocks: BlockCipher) -> None:
        self._blocks = blocks

    def encrypt(self, _ivs: bytes, data: bytes, _sector_size: int) -> bytes:
        return self._blocks.encryptor().update(data)

    def decrypt(self, _ivs: bytes, data: bytes, _sector_size: int) -> bytes:
        return self._blocks.decryptor().update(data)


class Cbc:
    """Each block is XORed with the ciphertext before it, the first with the IV."""

    def __init__(self, blocks: BlockCipher) -> None:
        self._blocks = blocks
        self.iv_size: int = blocks.block_size

    def encrypt(self, ivs: bytes, data: bytes, sector_size: int) -> bytes:
        # One chain runs through all sectors; at the start of each, the influence of
        # the sector before is removed again. That is cheaper than starting a new
        # chain.
        size = self.iv_size
        stream = self._blocks.cbc_encryptor()
        chain = bytes(size)
        out = []
        for index, start in enumerate(range(0, len(data), sector_size)):
            first = _xor3(data[start : start + size], ivs[index * size :][:size], chain)
            sector = stream.update(first + data[start + size : start + sector_size])
            chain = sector[-size:]
            out.append(sector)
        return b"".join(out)

    def decrypt(self, ivs: bytes, data: bytes, sector_size: int) -> bytes:
        size = self.iv_size
        before = []
        for index, start in enumerate(range(0, len(data), sector_size)):
            before.append(ivs[index * size :][:size])
            before.append(data[start : start + sector_size - size])
        return _xor(self._blocks.decryptor().update(data), b"".join(before))


class Ctr:
    """Data XORed with encrypted counter blocks; the big-endian counter starts at the IV."""

    def __init__(self, blocks: BlockCipher) -> None:
        self._blocks = blocks
        self.iv_size: int = blocks.block_size

    def encrypt(self, ivs: bytes, data: bytes, sector_size: int) -> bytes:
        size = self.iv_size
        wrap = 1 << 8 * size
        counters = []
        for index in range(len(data) // sector_size):
            start = int.from_bytes(ivs[index * size :][:size])
            counters += [
                (count % wrap).to_bytes(size) for count in range(start, start + sector_size // size)
            ]
        return _xor(self._blocks.encryptor().update(b"".join(counters)), data)

    decrypt = encrypt


class _Masked(ABC):
    """A mode that XORs each block with a tweak before and after the cipher."""

    _blocks: BlockCipher

    def encrypt(self, ivs: bytes, data: bytes, sector_size: int) -> bytes:
        return _with_mask(self._blocks.encryptor().update, self._mask(ivs, sector_size), data)

    def decrypt(self, ivs: bytes, data: bytes, sector_size: int) -> bytes:
        return _with_mask(self._blocks.decryptor().update, self._mask(ivs, sector_size), data)

    @abstractmethod
    def _mask(self, ivs: bytes, sector_size: int) -> int:
        """Return all tweaks, as one little-endian number."""


class Xts(_Masked):
    """XTS: each block is XORed with a tweak before and after the cipher.

    The IV, encrypted with a key of its own, is the tweak of a sector's first
    block; it is multiplied by x in GF(2^128) from block to block.
    """

    iv_size = _XTS_BLOCK

    def __init__(self, blocks: BlockCipher, tweak_blocks: BlockCipher) -> None:
        self._blocks = blocks
        self._tweak_blocks = tweak_blocks

    def _mask(self, ivs: bytes, sector_size: int) -> int:
        firsts = self._tweak_blocks.encryptor().update(ivs)
        tweaks = []
        for start in range(0, len(firsts), _XTS_BLOCK):
            tweak = int.from_bytes(firsts[start : start + _XTS_BLOCK], "little")
            for _ in range(sector_size // _XTS_BLOCK):
                tweaks.append(tweak.to_bytes(_XTS_BLOCK, "little"))
                tweak <<= 1
                if tweak >> 128:
                    tweak ^= (1 << 128) | 0x87
        return int.from_bytes(b"".join(tweaks), "little")


class Lrw(_Masked):
    """LRW, which XTS replaced: the tweak is the block's number times a second key.

    The IV is the number of a sector's first block, big-endian. Numbers and the
    key are polynomials over GF(2) with the highest power first.
    """

    iv_size = 16

    def __init__(self, blocks: BlockCipher, tweak_key: ReadableBuffer) -> None:
        """Use ``tweak_key`` of 16 bytes; it is referred to, not copied."""
        self._blocks = blocks
        self._tweak_key = tweak_key

    def _mask(self, ivs: bytes, sector_size: int) -> int:
        powers = _powers(int.from_bytes(self._tweak_key))
        # From one number to the next the lowest bits change, k ones and a zero:
        # the tweak changes by the sum of their powers.
        steps = [0]
        for power in powers:
            steps.append(steps[-1] ^ power)
        tweaks = []
        for start in range(0, len(ivs), self.iv_size):
            number = int.from_bytes(ivs[start : start + self.iv_size])
            tweak = 0
            for place, power in enumerate(powers):
                if number >> place & 1:
                    tweak ^= power
            for _ in range(sector_size // self.iv_size):
                tweaks.append(tweak.to_bytes(self.iv_size))
                tweak ^= steps[((number ^ (number + 1)) & _LRW_MASK).bit_length()]
                number += 1
        return int.from_bytes(b"".join(tweaks), "little")


def _powers(key: int) -> list[int]:
    """Return a polynomial times 1, x, x^2, ... x^127, modulo x^128 + x^7 + x^2 + x + 1."""

    def generate() -> Iterator[int]:
        power = key
        for _ in range(128):
            yield power
            power <<= 1
            if power >> 128:
                power ^= (1 << 128) | 0x87

    return list(generate())


def _with_mask(crypt: Callable[[bytes], bytes], mask: int, data: bytes) -> bytes:
    size = len(data)
    masked = (int.from_bytes(data, "little") ^ mask).to_bytes(size, "little")
    return (int.from_bytes(crypt(masked), "little") ^ mask).to_bytes(size, "little")


def _xor(first: bytes, second: bytes) -> bytes:
    number = int.from_bytes(first, "little") ^ int.from_bytes(second, "little")
    return number.to_bytes(len(first), "little")


def _xor3(first: bytes, second: bytes, third: bytes) -> bytes:
    return _xor(_xor(first, second), third)
