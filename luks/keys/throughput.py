"""The speed of key derivation and encryption here, as `cryptsetup benchmark` shows it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from luks.crypto.ciphers import sector_cipher
from luks.crypto.fast.bulk import OTHER_XTS, bulk_path
from luks.crypto.fast.xts import AesXts, crossover
from luks.crypto.spec import parse
from luks.keys.benchmark import benchmark_argon2, benchmark_pbkdf2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from luks.model import KdfCost

#: Bytes of the measured requests: as many as a volume makes at a time.
REQUEST_SIZE: Final = 1 << 20
#: Hashes for PBKDF2, and ciphers with their key sizes in bytes, that users choose from.
HASHES: Final = ("sha1", "sha256", "sha512", "blake2b-512")
CIPHERS: Final = (
    ("aes-xts-plain64", 32),
    ("aes-xts-plain64", 64),
    ("aes-cbc-essiv:sha256", 16),
    ("aes-cbc-essiv:sha256", 32),
)
SECTOR_SIZES: Final = (512, 4096)

# The best of a few counts: other load on the machine can only make it slower.
_ROUNDS: Final = 5


@dataclass(frozen=True)
class CipherSpeed:
    """The speed of a cipher in one thread.

    Attributes:
        cipher: dm-crypt's cipher string.
        key_size: Bytes.
        sector_size: Bytes.
        encrypt: Bytes per second.
        decrypt: Bytes per second.
        way: ``"bulk, XTS"`` and ``"bulk, ECB"`` process many sectors at once, with the
            named mode of OpenSSL; ``"sectors"`` processes them one by one.
    """

    cipher: str
    key_size: int
    sector_size: int
    encrypt: float
    decrypt: float
    way: str


def benchmark_kdfs(*, iter_time: int = 2000) -> Iterator[KdfCost]:
    """Yield costs of key derivations for keys of 32 bytes.

    Args:
        iter_time: Milliseconds that each takes with Argon2. PBKDF2's costs are always
            iterations per second.
    """
    for name in HASHES:
        yield benchmark_pbkdf2(name, iter_time=1000, key_size=32)
    yield benchmark_argon2("argon2i", iter_time=iter_time, key_size=32)
    yield benchmark_argon2("argon2id", iter_time=iter_time, key_size=32)


def benchmark_ciphers(*, seconds: float = 0.1) -> Iterator[CipherSpeed]:
    """Yield how fast the usual ciphers are, in sectors of 512 and 4096 bytes.

    They are measured in one thread, in requests of 1 MiB in memory.

    Args:
        seconds: For each cipher, size of sectors and direction, at least.
    """
    for cipher, key_size in CIPHERS:
        for sector_size in SECTOR_SIZES:
            yield measure_cipher(cipher, key_size, sector_size, seconds=seconds)


def measure_cipher(
    text: str, key_size: int, sector_size: int, *, seconds: float = 0.1
) -> CipherSpeed:
    """Measure a cipher in requests of 1 MiB.

    Args:
        text: dm-crypt's cipher string.
        key_size: Bytes.
        sector_size: 512, 1024, 2048 or 4096.
        seconds: Minimum duration for each direction.

    Raises:
        PolicyError, UnsupportedError: As for a volume that names it.
    """
    key = os.urandom(key_size)
    cipher = sector_cipher(text, key, sector_size)
    xts = crossover() if isinstance(cipher, AesXts) else OTHER_XTS
    bulk = bulk_path(parse(text), memoryview(key), sector_size, xts)
    data = bytearray(os.urandom(REQUEST_SIZE))
    # Once NumPy is loaded, `cipher` takes the same way.
    way = f"bulk, {bulk.way()}" if bulk else "sectors"
    encrypt = _bytes_per_second(lambda: cipher.encrypt(0, data, data), seconds)
    decrypt = _bytes_per_second(lambda: cipher.decrypt(0, data, data), seconds)
    return CipherSpeed(text, key_size, sector_size, encrypt, decrypt, way)


def _bytes_per_second(request: Callable[[], object], seconds: float) -> float:
    """Return the best of a few rounds after a warm-up."""
    request()
    best = 0.0
    for _ in range(_ROUNDS):
        count, start, elapsed = 0, time.perf_counter(), 0.0
        while elapsed < seconds / _ROUNDS:
            request()
            count += 1
            elapsed = time.perf_counter() - start
        best = max(best, count * REQUEST_SIZE / elapsed)
    return best
