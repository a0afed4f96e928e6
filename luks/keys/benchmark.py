"""Choosing the cost of a key derivation so that it takes a given time on this machine.

The rules are cryptsetup's (L7): for Argon2 first the memory is increased, up to a
limit, and then the passes; PBKDF2 has only iterations.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

from formats.errors import ArgumentError
from luks.crypto.kdf import (
    MIN_ARGON2_MEMORY_KIB,
    MIN_ARGON2_TIME,
    MIN_ITERATIONS,
    derive,
)
from luks.model import ARGON2_VARIANTS, Argon2, Pbkdf2

if TYPE_CHECKING:
    from luks.model import Argon2Variant, KdfCost

#: Milliseconds for the digest of a volume key, which is random and needs few iterations.
DIGEST_TIME: Final = 125
#: Largest memory that is chosen for Argon2, in KiB, and largest number of lanes.
MAX_MEMORY_KIB: Final = 1 << 20
MAX_LANES: Final = 4

# A measurement counts if it took at least this long; shorter ones measure the start-up.
_LONG_ENOUGH: Final = 0.1
_SALT: Final = bytes(32)
_FIRST_MEMORY_KIB: Final = 64 << 10
_MAX_ITERATIONS: Final = 2**31 - 1


def benchmark_kdf(
    kind: str = "argon2id",
    *,
    iter_time: int = 2000,
    key_size: int = 64,
    hash_name: str = "sha256",
) -> KdfCost:
    """Choose the cost of a key derivation by measuring this machine.

    The measurement takes about a tenth of ``iter_time``, at least a few tenths of a second.

    Args:
        kind: ``"argon2id"``, ``"argon2i"`` or ``"pbkdf2"``.
        iter_time: Milliseconds that the derivation should take.
        key_size: Bytes of the key to derive.
        hash_name: Hash for PBKDF2, in LUKS spelling.

    Raises:
        ValueError: ``kind`` is unknown, or ``iter_time`` is below 1.
        UnsupportedError: The hash is not available.
    """
    if kind == "pbkdf2":
        return benchmark_pbkdf2(hash_name, iter_time=iter_time, key_size=key_size)
    for variant in ARGON2_VARIANTS:
        if kind == variant:
            return benchmark_argon2(variant, iter_time=iter_time, key_size=key_size)
    raise ArgumentError(f"kind must be 'argon2id', 'argon2i' or 'pbkdf2', not {kind!r}")


def benchmark_pbkdf2(hash_name: str, *, iter_time: int, key_size: int) -> Pbkdf2:
    """Choose iterations of PBKDF2; as `benchmark_kdf`."""
    seconds = _seconds(iter_time)
    iterations = MIN_ITERATIONS
    elapsed = 0.0
    while elapsed < _LONG_ENOUGH:
        iterations *= 4
        elapsed = _measure(Pbkdf2(hash_name, iterations), key_size)
    chosen = int(iterations * seconds / elapsed)
    return Pbkdf2(hash_name, max(MIN_ITERATIONS, min(chosen, _MAX_ITERATIONS)))


def benchmark_argon2(variant: Argon2Variant, *, iter_time: int, key_size: int) -> Argon2:
    """Choose passes, memory and lanes of Argon2; as `benchmark_kdf`."""
    seconds = _seconds(iter_time)
    lanes = min(MAX_LANES, _cpus())
    most = max(MIN_ARGON2_MEMORY_KIB, min(MAX_MEMORY_KIB, _physical_memory_kib() // 2))
    passes, memory = MIN_ARGON2_TIME, min(most, _FIRST_MEMORY_KIB)
    while (elapsed := _measure(Argon2(variant, passes, memory, lanes), key_size)) < _LONG_ENOUGH:
        if memory < most:
            memory = min(most, 2 * memory)
        else:
            passes *= 2
    work = passes * memory * seconds / elapsed
    # As much memory as the smallest number of passes leaves time for, and then more passes.
    memory = max(MIN_ARGON2_MEMORY_KIB, min(most, int(work / MIN_ARGON2_TIME)))
    return Argon2(variant, max(MIN_ARGON2_TIME, round(work / memory)), memory, lanes)


def _seconds(iter_time: int) -> float:
    if iter_time < 1:
        raise ArgumentError(f"iter_time must be at least 1 millisecond, not {iter_time}")
    return iter_time / 1000


def _measure(cost: KdfCost, key_size: int) -> float:
    """Return the seconds that one derivation takes."""
    start = time.perf_counter()
    derive(cost, b"benchmark", _SALT, key_size)
    return time.perf_counter() - start


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _physical_memory_kib() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1024
    except (AttributeError, ValueError, OSError):
        return 2 * _FIRST_MEMORY_KIB  # Windows; enough for any machine today
