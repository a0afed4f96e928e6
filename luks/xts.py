"""AES-XTS over sectors, with 64-bit little-endian sector numbers (plain64).

`cryptography` has no XTS over many sectors, so each sector takes a context of
its own; what this module is about is that it takes little else.

Source: IEEE 1619-2018; the tweak is dm-crypt's IV generator plain64.
"""

from __future__ import annotations

from functools import cache
from hmac import compare_digest
from struct import Struct
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from luks.errors import UnsupportedError
from luks.model import SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.ciphers import CipherContext

    from formats.device import ReadableBuffer, WritableBuffer

_MASK: Final = 2**64 - 1
_NUMBER: Final = Struct("<Q")


class AesXts:
    """A `luks.ciphers.SectorCipher`; it keeps no state between calls."""

    def __init__(self, key: ReadableBuffer, sector_size: int) -> None:
        """Use ``key``, both halves, of 32 or 64 bytes; it is referred to, not copied.

        Raises:
            UnsupportedError: The halves are equal, which OpenSSL refuses.
        """
        self._algorithm = algorithms.AES(memoryview(key))
        self._sector_size = sector_size
        half = len(key) // 2
        if compare_digest(key[:half], key[half:]):
            raise UnsupportedError(
                "an XTS key with two equal halves is not supported", feature="XTS with equal keys"
            )

    def encrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        tweak = bytearray(16)
        self._run(_contexts(self._algorithm, tweak, "encryptor"), tweak, first_sector, data, out)

    def decrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        tweak = bytearray(16)
        self._run(_contexts(self._algorithm, tweak, "decryptor"), tweak, first_sector, data, out)

    def _run(
        self,
        new_context: Callable[[], CipherContext],
        tweak: bytearray,
        number: int,
        data: ReadableBuffer,
        out: WritableBuffer,
    ) -> None:
        # Every line of the loop costs; see the module's docstring.
        size = self._sector_size
        step = size // SECTOR_SIZE
        source, target = memoryview(data), memoryview(out)
        pack_number = _NUMBER.pack_into
        for start in range(0, len(source), size):
            end = start + size
            pack_number(tweak, 0, number & _MASK)
            new_context().update_into(source[start:end], target[start:end])
            number += step


def _contexts(
    algorithm: algorithms.AES, tweak: bytearray, direction: str
) -> Callable[[], CipherContext]:
    """Return what makes a context for the number that ``tweak`` holds at that time."""
    if _tweak_is_read_late():
        shared: Callable[[], CipherContext] = getattr(
            Cipher(algorithm, modes.XTS(tweak)), direction
        )
        return shared

    def new_context() -> CipherContext:
        context: CipherContext = getattr(Cipher(algorithm, modes.XTS(bytes(tweak))), direction)()
        return context

    return new_context


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
        _NUMBER.pack_into(tweak, 0, number)
        fresh = Cipher(algorithms.AES(key), modes.XTS(bytes(tweak)))
        if shared.encryptor().update(block) != fresh.encryptor().update(block):
            return False
    return True
