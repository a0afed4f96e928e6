"""The cost of a new key derivation: given or measured, and never below the minimum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.errors import ArgumentError
from formats.frozen import replace
from luks.crypto.hashes import canonical, lookup
from luks.crypto.kdf import MIN_ARGON2_MEMORY_KIB, MIN_ARGON2_TIME, MIN_ITERATIONS
from luks.header import luks1
from luks.keys.benchmark import DIGEST_TIME, benchmark_kdf, benchmark_pbkdf2
from luks.model import Argon2, Pbkdf2

if TYPE_CHECKING:
    from luks.model import KdfCost


def check_kdf(kdf: KdfCost | str | None, version: int, hash_name: str) -> str:
    """Check a requested key derivation before any work, and return its kind.

    Args:
        kdf: Cost, or its kind, or None for the default of the format.
        version: 1 or 2.
        hash_name: Hash of the header, in LUKS spelling.

    Raises:
        ValueError: It must not be created, or is not possible in this format.
        UnsupportedError: A hash is not available.
    """
    lookup(hash_name)
    if kdf is None:
        return "pbkdf2" if version == luks1.VERSION else "argon2id"
    kind = kdf if isinstance(kdf, str) else "pbkdf2" if isinstance(kdf, Pbkdf2) else kdf.variant
    if version == luks1.VERSION and kind != "pbkdf2":
        raise ArgumentError("LUKS1 supports only PBKDF2 as key derivation")
    if isinstance(kdf, Pbkdf2):
        if kdf.iterations < MIN_ITERATIONS:
            raise ArgumentError(f"PBKDF2 needs at least {MIN_ITERATIONS} iterations")
        if version == luks1.VERSION and canonical(kdf.hash_name) != canonical(hash_name):
            raise ArgumentError("LUKS1 uses one hash for everything: PBKDF2 cannot have another")
        lookup(kdf.hash_name)
    elif isinstance(kdf, Argon2) and (
        kdf.time < MIN_ARGON2_TIME
        or kdf.memory_kib < max(MIN_ARGON2_MEMORY_KIB, 8 * kdf.lanes)
        or kdf.lanes < 1
    ):
        raise ArgumentError(
            f"Argon2 needs at least {MIN_ARGON2_TIME} passes, {MIN_ARGON2_MEMORY_KIB} KiB of"
            f" memory and 8 KiB per lane, not {kdf}"
        )
    return kind


def keyslot_cost(
    kdf: KdfCost | str | None, *, version: int, hash_name: str, key_size: int, iter_time: int
) -> KdfCost:
    """Return the cost of a new keyslot, measured unless it is given.

    Args:
        kdf: As in `check_kdf`.
        version: 1 or 2.
        hash_name: Hash of PBKDF2.
        key_size: Bytes of the key to derive.
        iter_time: Milliseconds that a measured derivation should take.

    Raises:
        ValueError, UnsupportedError: As `check_kdf`.
    """
    kind = check_kdf(kdf, version, hash_name)
    if isinstance(kdf, Pbkdf2):  # in LUKS1 the hash is that of the header, as it spells it
        name = hash_name if version == luks1.VERSION else canonical(kdf.hash_name)
        return replace(kdf, hash_name=name)
    if isinstance(kdf, Argon2):
        return kdf
    return benchmark_kdf(kind, iter_time=iter_time, key_size=key_size, hash_name=hash_name)


def digest_cost(kdf: KdfCost | str | None, hash_name: str) -> Pbkdf2:
    """Return the cost of a new digest (L7): the minimum, if the keyslot's cost is given."""
    if kdf is not None and not isinstance(kdf, str):
        return Pbkdf2(hash_name, MIN_ITERATIONS)
    size = lookup(hash_name).digest_size
    return benchmark_pbkdf2(hash_name, iter_time=DIGEST_TIME, key_size=size)
