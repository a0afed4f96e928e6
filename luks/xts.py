"""AES-XTS over sectors, with the tweaks that are nothing but the sector number.

`cryptography` has no XTS over many sectors, so each of a few sectors takes a
context of its own; what this module is about is that it takes little else. Many
sectors go the way of `luks.xts_bulk`. The rest of XTS, other ciphers and AES-192
among it, is in `luks.modes`.

Source: IEEE 1619-2018; the tweaks are those of dm-crypt's IV generators.
"""

from __future__ import annotations

from functools import cache, partial
from struct import Struct
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from luks.bulk import AES_XTS, bulk_path
from luks.ciphers import CipherSpec
from luks.model import SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.ciphers import CipherContext

    from formats.device import ReadableBuffer, WritableBuffer


class _Fast(NamedTuple):
    """How a generator makes an IV of a sector number.

    Attributes:
        layout: Packs the number into 16 bytes.
        mask: What remains of the number.
        key_sizes: Bytes of the keys, both halves, that `cryptography` takes.
    """

    layout: Struct
    mask: int
    key_sizes: tuple[int, ...] = (32, 64)


#: Ciphers and IV generators that `AesXts` serves.
FAST: Final = {
    ("aes", "plain"): _Fast(Struct("<I12x"), 2**32 - 1),
    ("aes", "plain64"): _Fast(Struct("<Q8x"), 2**64 - 1),
    ("aes", "plain64be"): _Fast(Struct(">8xQ"), 2**64 - 1),
}


class AesXts:
    """A `luks.ciphers.SectorCipher`."""

    def __init__(self, key: ReadableBuffer, sector_size: int, iv: str = "plain64") -> None:
        """Use ``key`` of 32 or 64 bytes, halves that differ; it is referred to, not copied."""
        self._algorithm = algorithms.AES(memoryview(key))
        self._sector_size = sector_size
        self._iv = FAST["aes", iv]
        # Each thread takes one: a tweak, and a `Cipher` that reads it, and the key,
        # when it makes a context.
        self._spare: list[tuple[bytearray, Cipher[modes.XTS]]] = []
        spec = CipherSpec(f"aes-xts-{iv}", "aes", "xts", iv, "")
        self._bulk = bulk_path(spec, memoryview(key), sector_size, AES_XTS)

    def encrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        if not (self._bulk and self._bulk.encrypt(first_sector, data, out)):
            self._run("encryptor", first_sector, data, out)

    def decrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        if not (self._bulk and self._bulk.decrypt(first_sector, data, out)):
            self._run("decryptor", first_sector, data, out)

    def _run(self, direction: str, number: int, data: ReadableBuffer, out: WritableBuffer) -> None:
        # Every line costs; see the module's docstring.
        try:
            tweak, cipher = self._spare.pop()
        except IndexError:
            tweak = bytearray(16)
            cipher = Cipher(self._algorithm, modes.XTS(tweak))
        new_context: Callable[[], CipherContext] = (
            getattr(cipher, direction)
            if _tweak_is_read_late()
            else partial(_context, self._algorithm, tweak, direction)
        )
        size = self._sector_size
        pack_number, mask = self._iv.layout.pack_into, self._iv.mask
        if len(data) == size:
            pack_number(tweak, 0, number & mask)
            new_context().update_into(data, out)
        else:
            step = size // SECTOR_SIZE
            source, target = memoryview(data), memoryview(out)
            for start in range(0, len(source), size):
                end = start + size
                pack_number(tweak, 0, number & mask)
                new_context().update_into(source[start:end], target[start:end])
                number += step
        self._spare.append((tweak, cipher))


def _context(algorithm: algorithms.AES, tweak: bytearray, direction: str) -> CipherContext:
    context: CipherContext = getattr(Cipher(algorithm, modes.XTS(bytes(tweak))), direction)()
    return context


@cache
def _tweak_is_read_late() -> bool:
    """Say whether one `Cipher` follows its mutable tweak from context to context.

    `cryptography` 50 reads the tweak when a context is made, so that a `Cipher`
    can be used again after its tweak was changed, which saves 40 % of the time
    per sector. It does not promise that, hence this check.
    """
    key, block, numbers = bytes(range(32)), bytes(16), (1, 2)
    tweak = bytearray(16)
    shared = Cipher(algorithms.AES(key), modes.XTS(tweak))
    for number in numbers:
        tweak[0] = number
        fresh = Cipher(algorithms.AES(key), modes.XTS(bytes(tweak)))
        if shared.encryptor().update(block) != fresh.encryptor().update(block):
            return False
    return True
