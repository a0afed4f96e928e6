"""XTS over many sectors with a few calls.

For each chunk of sectors, all tweaks are made (`luks.crypto.fast.xts_tweaks`) and XORed
onto the data while it is copied to a work area; one call of the cipher processes that,
and the tweaks are XORed again while the result is copied to the caller. So the caller's
memory is read once and written once, and no large memory is allocated: work areas are kept.

`luks.crypto.fast.wide_aes` describes how AES processes the chunk. If that XORs block i with
t0·x^i, then block j of the chunk's sector s, for which XTS requires T·x^j, needs
only the difference::

    T·x^j ^ t0·x^(n·s + j)  =  x^j·(T ^ t0·x^(n·s))        n blocks per sector

This has the form of tweaks: only the sector's first one changes, to which a constant
is added.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from luks.crypto.blockcipher import CryptographyCipher
from luks.crypto.fast.bulk_ivs import BulkIvs, IvRoom
from luks.crypto.fast.wide_aes import KEY_SIZES, WideAes, is_whitened, whitening
from luks.crypto.fast.xts_tweaks import BLOCK, TweakRoom, TweakStrings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers import CipherContext
    from numpy.typing import NDArray

    from formats.devices.device import ReadableBuffer, WritableBuffer

#: Bytes per call of the cipher, which fit into the processor's cache with their tweaks.
_CHUNK: Final = 256 << 10
#: Bytes of data for which strings are made at a time; large sectors have short strings.
_BATCH: Final = {512: 1 << 20, 1024: 1 << 20, 2048: 2 << 20, 4096: 2 << 20}


class BulkXts:
    """XTS with a key; sectors may have any numbers. Safe in several threads."""

    def __init__(self, cipher: str, key: memoryview, sector_size: int, ivs: BulkIvs) -> None:
        """Refer to ``key``, both halves, without copying it.

        Args:
            cipher: One with 128-bit blocks that `cryptography` has.
            key: Both halves.
            sector_size: 512, 1024, 2048 or 4096.
            ivs: Makes the sectors' IVs.
        """
        half = len(key) // 2
        self._tweak_cipher = CryptographyCipher(cipher, key[half:])
        wide = cipher == "aes" and half in KEY_SIZES and is_whitened()
        self._blocks = WideAes(key[:half]) if wide else CryptographyCipher(cipher, key[:half])
        self._wide_key_size = half if wide else 0
        self.way = "XTS" if wide else "ECB"
        self._ivs = ivs
        self._sector_size = sector_size

    def encrypt(self, first: int, step: int, data: ReadableBuffer, out: WritableBuffer) -> None:
        """Encrypt sectors ``first``, ``first + step``, ... of ``data`` to ``out``.

        ``out`` is as long, and may be the same memory; numbers wrap at 2**64.
        """
        self._run(self._blocks.encryptor(), first, step, data, out)

    def decrypt(self, first: int, step: int, data: ReadableBuffer, out: WritableBuffer) -> None:
        """Decrypt; as `encrypt`."""
        self._run(self._blocks.decryptor(), first, step, data, out)

    def _run(
        self,
        context: CipherContext,
        first: int,
        step: int,
        data: ReadableBuffer,
        out: WritableBuffer,
    ) -> None:
        # Bytes, because a caller's memory may have any alignment.
        source, target = np.frombuffer(data, np.uint8), np.frombuffer(out, np.uint8)
        tweaks = self._tweak_cipher.encryptor()
        size = self._sector_size
        most = _BATCH[size] // size
        done, sectors = 0, len(source) // size
        while done < sectors:
            count = min(most, sectors - done)
            area = _take_area(size, count, self._wide_key_size)
            try:
                area.make_tweaks(self._ivs, tweaks, first + done * step, step)
                start, end = done * size, (done + count) * size
                area.crypt(context, source[start:end], target[start:end])
            finally:
                area.wipe()
                _give_back(area)
            done += count


class _WorkArea:
    """Memory for up to ``count`` sectors, a power of two; for one thread at a time."""

    def __init__(self, sector_size: int, count: int, wide_key_size: int) -> None:
        self.kind = (sector_size, count, wide_key_size)
        self._sector_size, self._count = sector_size, count
        self._per_chunk = min(count, _CHUNK // sector_size)
        self._ivs = IvRoom(count)
        self._strings = TweakStrings(sector_size, count)
        self._tweaks = TweakRoom(sector_size, self._per_chunk)
        # The cipher works in place; `update_into` requires 15 bytes more than the data.
        chunk = self._per_chunk * sector_size
        self._room = memoryview(bytearray(chunk + BLOCK))
        self._data = np.frombuffer(self._room, np.uint8, chunk)
        self._whitening = None
        if wide_key_size:
            masks = whitening(wide_key_size, sector_size // BLOCK, self._per_chunk)
            self._whitening = np.frombuffer(masks * (count // self._per_chunk), np.uint64)

    def make_tweaks(self, ivs: BulkIvs, cipher: CipherContext, first: int, step: int) -> None:
        """Make the tweaks of as many sectors as there is room for."""
        strings = self._strings
        cipher.update_into(ivs.put(self._ivs, self._count, first, step), strings.bases)
        if self._whitening is not None:
            np.bitwise_xor(strings.base_lanes, self._whitening, strings.base_lanes)
        strings.extend()

    def crypt(
        self, context: CipherContext, source: NDArray[np.uint8], target: NDArray[np.uint8]
    ) -> None:
        """Encrypt or decrypt the first of the sectors whose tweaks were made."""
        size, chunk = self._sector_size, len(self._data)
        tweaks, data, room = self._tweaks.flat, self._data, self._room
        for start in range(0, len(source), chunk):
            part, whither = source[start : start + chunk], target[start : start + chunk]
            length = len(part)
            self._strings.copy_blocks(start // size, length // size, self._tweaks)
            if length < chunk:
                tweaks, data, room = tweaks[:length], data[:length], room[: length + BLOCK]
            np.bitwise_xor(part, tweaks, data)
            context.update_into(data.data, room)
            np.bitwise_xor(data, tweaks, whither)

    def wipe(self) -> None:
        """Wipe the bytes that, with the tweaks, would reveal the last decrypted data.

        It may belong to a keyslot, and work areas live as long as the process.
        """
        self._data.fill(0)


#: Work areas not in use. Each thread takes one.
_free: dict[tuple[int, int, int], list[_WorkArea]] = {}


def _take_area(sector_size: int, count: int, wide_key_size: int) -> _WorkArea:
    kind = (sector_size, 1 << (count - 1).bit_length(), wide_key_size)
    try:
        return _free[kind].pop()
    except (KeyError, IndexError):
        return _WorkArea(*kind)


def _give_back(area: _WorkArea) -> None:
    _free.setdefault(area.kind, []).append(area)
