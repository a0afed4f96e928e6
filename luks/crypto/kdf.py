"""Key derivation: PBKDF2 and Argon2, and limits for the costs in headers."""

from __future__ import annotations

import hashlib
from hmac import compare_digest
from typing import TYPE_CHECKING, Final, cast

from formats.frozen import Frozen
from luks.crypto.hashes import lookup
from luks.errors import LuksHeaderError, PolicyError, UnlockError, UnsupportedError
from luks.model import Argon2, Digest, KdfCost, Pbkdf2
from luks.secret.secrets import Secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

    from formats.devices.device import ReadableBuffer
    from luks.crypto.hashes import Hash

#: Smallest number of PBKDF2 iterations that is created here; headers may have fewer.
MIN_ITERATIONS: Final = 1000
#: Smallest number of Argon2 passes that is created here.
MIN_ARGON2_TIME: Final = 4
#: Smallest memory of Argon2 that is created here, in KiB.
MIN_ARGON2_MEMORY_KIB: Final = 32

# Limits of the libraries' own counters, regardless of the caller's limits.
_MAX_INT32, _MAX_UINT32 = 2**31 - 1, 2**32 - 1
_MIN_ARGON2_SALT, _MIN_ARGON2_LENGTH = 8, 4
_HMAC_BLOCK: Final = 64  # bytes, of Whirlpool


class KdfLimits(Frozen):
    """Limits for the cost that a header may demand for unlocking one keyslot.

    A header is not authentic: without limits, a manipulated one could take all
    memory or run for days. The defaults permit the costs that cryptsetup chooses on
    any machine, and take up to about a minute (L61). Pass larger ones, such as
    ``KdfLimits().scaled(4)``, to open volumes that were deliberately made more expensive.

    Attributes:
        iterations: Largest number of PBKDF2 iterations, in a keyslot or a digest.
        memory_kib: Largest memory of Argon2, in KiB.
        time: Largest number of Argon2 passes.
        work_kib: Largest product of memory and passes of Argon2, in KiB.
        lanes: Largest number of Argon2 lanes.
        total: How many times this cost all keyslots together may demand, when one
            secret is tried on several; the digest is included each time.
    """

    iterations: int = 1 << 27
    memory_kib: int = 1 << 20
    time: int = 1 << 16
    work_kib: int = 1 << 26
    lanes: int = 16
    total: int = 4

    def check(self, cost: KdfCost) -> None:
        """Raise unless ``cost`` is within the limits.

        Raises:
            PolicyError: It is not. Nothing was computed or allocated.
        """
        if isinstance(cost, Pbkdf2):
            asked = {"iterations": cost.iterations}
        else:
            asked = {
                "memory_kib": cost.memory_kib,
                "time": cost.time,
                "work_kib": cost.memory_kib * cost.time,
                "lanes": cost.lanes,
            }
        for name, value in asked.items():
            limit: int = getattr(self, name)
            if value > limit:
                raise PolicyError(
                    f"the header demands a key derivation with {name}={value},"
                    f" more than the permitted {limit} [L61]",
                    hint="if this is intended, permit it with --allow-slow-keys FACTOR,"
                    " or larger luks.KdfLimits in Python",
                )

    def scaled(self, factor: int) -> KdfLimits:
        """Return limits that permit one keyslot ``factor`` times as much of everything."""
        return KdfLimits(
            iterations=self.iterations * factor,
            memory_kib=self.memory_kib * factor,
            time=self.time * factor,
            work_kib=self.work_kib * factor,
            lanes=self.lanes * factor,
            total=self.total,
        )

    def share(self, cost: KdfCost) -> float:
        """Return a cost as a fraction of the limit for one keyslot."""
        if isinstance(cost, Pbkdf2):
            return cost.iterations / max(self.iterations, 1)
        return cost.memory_kib * cost.time / max(self.work_kib, 1)


DEFAULT_LIMITS: Final = KdfLimits()


def derive(cost: KdfCost, secret: ReadableBuffer, salt: bytes, length: int) -> Secret:
    """Derive a key from a secret.

    Args:
        cost: The function and its cost.
        secret: Passphrase or key; not modified.
        salt: Salt, at least 8 bytes for Argon2.
        length: Bytes of the key.

    Raises:
        LuksHeaderError: The parameters are invalid.
        UnsupportedError: The hash is not available, or the cost exceeds what can be
            computed here.
        UnlockError: Not enough memory is free.

    Source: PKCS #5 v2.1 (RFC 8018), section 5.2; Argon2 (RFC 9106).
    """
    key = bytearray(length)
    if isinstance(cost, Pbkdf2):
        _pbkdf2(cost, secret, salt, key)
    else:
        _argon2(cost, secret, salt, key)
    return Secret.adopt(key)


def confirms(digest: Digest, candidate_key: ReadableBuffer, limits: KdfLimits) -> bool:
    """Say whether ``digest`` was made of ``candidate_key``, in constant time.

    Raises:
        LuksHeaderError, UnsupportedError: As `derive`.
        PolicyError: The digest demands more than ``limits`` permit.
    """
    if digest.kdf is None:
        return False
    limits.check(digest.kdf)
    with derive(digest.kdf, candidate_key, digest.salt, len(digest.value)) as value:
        return compare_digest(value.view(), digest.value)


def _pbkdf2(cost: Pbkdf2, secret: ReadableBuffer, salt: bytes, key: bytearray) -> None:
    hash_ = lookup(cost.hash_name)
    if cost.iterations < 1:
        raise LuksHeaderError("PBKDF2 has no iterations", rule="L24")
    if cost.iterations > _MAX_INT32:
        # OpenSSL's counter is an int, and its Rust caller panics beyond that.
        raise UnsupportedError(
            f"PBKDF2 cannot run {cost.iterations} iterations here", feature="PBKDF2 iterations"
        )
    from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC  # noqa: PLC0415  not for Argon2

    if hash_.is_truncated:
        _pbkdf2_of_truncated(hash_, bytes(secret), salt, cost.iterations, key)
        return
    if hash_.hashlib_name is None:
        from luks.crypto import gcrypt  # noqa: PLC0415  most volumes do not need it

        gcrypt.pbkdf2(hash_.name, secret, salt, cost.iterations, key)
        return
    algorithm = _for_cryptography(hash_.hashlib_name, hash_.digest_size)
    if algorithm is not None:
        PBKDF2HMAC(algorithm, len(key), salt, cost.iterations).derive_into(secret, key)
        return
    try:
        key[:] = hashlib.pbkdf2_hmac(hash_.hashlib_name, secret, salt, cost.iterations, len(key))
    except ValueError as error:
        raise UnsupportedError(
            f"PBKDF2 with {hash_.name} is not available here", feature=f"PBKDF2 with {hash_.name}"
        ) from error


def _pbkdf2_of_truncated(
    hash_: Hash, secret: bytes, salt: bytes, iterations: int, key: bytearray
) -> None:
    """Do what no library does: HMAC has to use a hash that is cut short, inside as well."""
    padded = (hash_.new(secret).digest() if len(secret) > _HMAC_BLOCK else secret).ljust(
        _HMAC_BLOCK, b"\0"
    )
    inner, outer = (bytes(byte ^ pad for byte in padded) for pad in (0x36, 0x5C))
    size, done = hash_.digest_size, 0
    while done < len(key):
        block = salt + (done // size + 1).to_bytes(4)
        total = 0
        for _ in range(iterations):
            block = hash_.new(outer + hash_.new(inner + block).digest()).digest()
            total ^= int.from_bytes(block)
        piece = total.to_bytes(size)[: len(key) - done]
        key[done : done + len(piece)] = piece
        done += len(piece)


def _for_cryptography(hashlib_name: str, digest_size: int) -> HashAlgorithm | None:
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415  not for looking at headers

    if hashlib_name == "blake2b":
        return hashes.BLAKE2b(digest_size)
    if hashlib_name == "blake2s":
        return hashes.BLAKE2s(digest_size)
    algorithm: type[HashAlgorithm] | None = getattr(hashes, hashlib_name.upper(), None)
    return None if algorithm is None else algorithm()


def _argon2(cost: Argon2, secret: ReadableBuffer, salt: bytes, key: bytearray) -> None:
    if cost.time < 1 or cost.lanes < 1 or cost.memory_kib < 8 * cost.lanes:
        raise LuksHeaderError(f"Argon2 cannot run with {cost}", rule="L24")
    if len(salt) < _MIN_ARGON2_SALT or len(key) < _MIN_ARGON2_LENGTH:
        raise LuksHeaderError(
            f"Argon2 cannot run with a salt of {len(salt)} and a key of {len(key)} bytes",
            rule="L24",
        )
    if max(cost.time, cost.memory_kib) > _MAX_UINT32 or cost.lanes >= 1 << 24:
        raise UnsupportedError(f"Argon2 cannot run with {cost}", feature="Argon2 cost")
    from cryptography.hazmat.primitives.kdf import argon2  # noqa: PLC0415  not for PBKDF2

    function = argon2.Argon2id if cost.variant == "argon2id" else argon2.Argon2i
    try:
        function(
            salt=salt,
            length=len(key),
            iterations=cost.time,
            lanes=cost.lanes,
            memory_cost=cost.memory_kib,
        ).derive_into(cast("bytes", secret), key)  # any buffer works, and bytes would be a copy
    except MemoryError as error:
        raise UnlockError(
            f"unlocking the keyslot needs {cost.memory_kib} KiB of memory, which is not available"
        ) from error
