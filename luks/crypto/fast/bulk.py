"""Whether the sectors of a request are encrypted one by one, or all at once with NumPy.

A few sectors are faster one by one. NumPy takes about 50 ms to import, which a process
that reads one blob must not pay for. So it is imported when the requests so far would
have been faster by as much: a process never takes more than twice the best time,
whatever it does next (spec/decisions/0013).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from luks.crypto.blockcipher import CryptographyCipher, block_size, is_in_cryptography
from luks.model import SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from formats.devices.device import ReadableBuffer, WritableBuffer
    from luks.crypto.spec import CipherSpec

#: Microseconds that importing NumPy takes.
_IMPORT_COST: Final = 50_000
_BLOCK: Final = 16


class Bulk(Protocol):
    """A `luks.crypto.spec.SectorCipher` for many sectors, and for any step between numbers.

    Attributes:
        way: The mode of OpenSSL that processes the data, for display: ``"XTS"`` or ``"ECB"``.
    """

    way: str

    def encrypt(self, first: int, step: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        """Encrypt sectors ``first``, ``first + step``, ... of ``data`` to ``out``."""

    def decrypt(self, first: int, step: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        """Decrypt; as `encrypt`."""


class Crossover(NamedTuple):
    """The request size above which bulk is faster, with `cryptography` 50 on a Zen 5.

    For a sector size that is missing it never is. ``python -m tests.bench
    --crossover`` measures all values.

    Attributes:
        encrypt: Number of sectors in a request, by sector size, for encryption.
        decrypt: The same for decryption.
        saved: Approximate microseconds that each sector of a larger request saves, by
            sector size.
    """

    encrypt: Mapping[int, int]
    decrypt: Mapping[int, int]
    saved: Mapping[int, float]


#: XTS compared with `luks.crypto.fast.xts.AesXts`, which is faster for large sectors; with
#: the same if one context cannot serve many sectors; and with `luks.crypto.modes`.
AES_XTS: Final = Crossover(
    encrypt={512: 44, 1024: 56, 2048: 108},
    decrypt={512: 44, 1024: 58, 2048: 108},
    saved={512: 0.35, 1024: 0.25, 2048: 0.15},
)
AES_XTS_BY_CONTEXTS: Final = Crossover(
    encrypt={512: 7, 1024: 8, 2048: 9, 4096: 13},
    decrypt={512: 8, 1024: 10, 2048: 10, 4096: 14},
    saved={512: 1.9, 1024: 1.8, 2048: 1.7, 4096: 1.5},
)
OTHER_XTS: Final = Crossover(
    encrypt={512: 3, 1024: 2, 2048: 1, 4096: 1},
    decrypt={512: 3, 1024: 2, 2048: 1, 4096: 1},
    saved={512: 5.4, 1024: 10.0, 2048: 20.0, 4096: 38.0},
)
#: CBC compared with `luks.crypto.modes`. Encrypting a large sector takes NumPy 256 steps.
CBC: Final = Crossover(
    encrypt={512: 23, 1024: 34, 2048: 42, 4096: 58},
    decrypt={512: 12, 1024: 7, 2048: 4, 4096: 2},
    saved={512: 1.3, 1024: 1.8, 2048: 2.9, 4096: 4.5},
)


class BulkPath:
    """The bulk implementation of one cipher, made when it is first worth it."""

    def __init__(self, make: Callable[[], Bulk], sector_size: int, crossover: Crossover) -> None:
        """Serve the requests that are faster in bulk according to ``crossover``.

        Args:
            make: Makes the implementation; it may import NumPy.
            sector_size: Bytes.
            crossover: The measurements for that implementation.
        """
        self._make = make
        self._bulk: Bulk | None = None
        self._sector_size = sector_size
        self._step = sector_size // SECTOR_SIZE
        self._saved = crossover.saved[sector_size]
        self._least_to_encrypt = crossover.encrypt[sector_size] * sector_size
        self._least_to_decrypt = crossover.decrypt[sector_size] * sector_size

    def encrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer) -> bool:
        """Encrypt as a `SectorCipher` does and return True, or do nothing and return False."""
        bulk = self._for_size(len(data), self._least_to_encrypt)
        if bulk is None:
            return False
        bulk.encrypt(first_sector, self._step, data, out)
        return True

    def decrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer) -> bool:
        """Decrypt; as `encrypt`."""
        bulk = self._for_size(len(data), self._least_to_decrypt)
        if bulk is None:
            return False
        bulk.decrypt(first_sector, self._step, data, out)
        return True

    def way(self) -> str:
        """Import NumPy, and return the `Bulk.way` of larger requests."""
        if self._bulk is None:
            self._bulk = self._make()
        return self._bulk.way

    def _for_size(self, size: int, least: int) -> Bulk | None:
        if size < least:
            return None
        if self._bulk is None and _import_account.is_due(size // self._sector_size * self._saved):
            self._bulk = self._make()
        return self._bulk


def bulk_path(
    spec: CipherSpec, key: memoryview, sector_size: int, xts: Crossover
) -> BulkPath | None:
    """Return the bulk implementation of a usable cipher, if it has one.

    CBC and XTS have one, for ciphers of `cryptography` with 128-bit blocks, and for
    sector sizes for which it is worth it.

    Args:
        spec: The cipher.
        key: Its key, to which the result refers.
        sector_size: Bytes.
        xts: The crossover of XTS with the implementation for small requests.
    """
    size = len(key) // 2 if spec.mode == "xts" else len(key)
    if not is_in_cryptography(spec.cipher, size) or block_size(spec.cipher) != _BLOCK:
        return None
    if spec.mode not in {"cbc", "xts"} or sys.byteorder != "little":
        return None  # the NumPy code needs a little-endian machine
    crossover = xts if spec.mode == "xts" else CBC
    if sector_size not in crossover.encrypt:
        return None

    def make() -> Bulk:
        from luks.crypto.fast.bulk_ivs import bulk_ivs  # noqa: PLC0415  imports NumPy

        ivs = bulk_ivs(spec, key, sector_size)
        if spec.mode == "xts":
            from luks.crypto.fast.xts_bulk import BulkXts  # noqa: PLC0415  imports NumPy

            return BulkXts(spec.cipher, key, sector_size, ivs)
        from luks.crypto.fast.cbc_bulk import BulkCbc  # noqa: PLC0415  imports NumPy

        return BulkCbc(CryptographyCipher(spec.cipher, key), sector_size, ivs)

    return BulkPath(make, sector_size, crossover)


def expect_much() -> None:
    """Import NumPy at the first request that it speeds up, because many more will follow."""
    _import_account.is_due(_IMPORT_COST)


class _ImportAccount:
    """The time that NumPy would have saved so far in this process."""

    def __init__(self) -> None:
        self._lost = 0.0

    def is_due(self, saved: float) -> bool:
        """Say whether NumPy is loaded, or worth loading because it would save ``saved`` µs now."""
        # Concurrent threads may lose some of the sum, which does not matter.
        self._lost += saved
        return self._lost >= _IMPORT_COST or "numpy" in sys.modules


_import_account: Final = _ImportAccount()
