"""Hash names as LUKS spells them, and the libraries that compute them.

`hashlib` serves anti-forensic splitting and header checksums; PBKDF2 runs in
`cryptography`, which is faster, except for hashes that only `hashlib` has. Hashes
that neither has come from libgcrypt, if that is installed.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from luks.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.devices.device import ReadableBuffer


class _Digest(Protocol):
    @property
    def digest_size(self) -> int: ...
    def update(self, data: ReadableBuffer, /) -> None: ...
    def digest(self) -> bytes: ...


# LUKS spelling to hashlib's, where they differ.
_HASHLIB_NAMES: Final = {
    "sha3-224": "sha3_224",
    "sha3-256": "sha3_256",
    "sha3-384": "sha3_384",
    "sha3-512": "sha3_512",
    "blake2b-512": "blake2b",
    "blake2s-256": "blake2s",
}

# Hashes that LUKS volumes are known to use and hashlib may lack: a header that
# names one is sound, even if it cannot be opened here.
_KNOWN: Final = frozenset(
    {"md5", "sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160", "sm3", "whirlpool"}
    | {"stribog256", "stribog512", *_HASHLIB_NAMES}
    | {f"blake2b-{bits}" for bits in (160, 256, 384)}
    | {f"blake2s-{bits}" for bits in (128, 160, 224)}
)


class Hash(NamedTuple):
    """One hash function.

    Attributes:
        name: LUKS spelling.
        hashlib_name: Its name in `hashlib`, or None if libgcrypt provides it.
        digest_size: Bytes of its digest.
        new: Starts a computation with the given bytes.
    """

    name: str
    hashlib_name: str | None
    digest_size: int
    new: Callable[[ReadableBuffer], _Digest]


def is_known(name: str) -> bool:
    """Say whether LUKS volumes use this hash, whether or not it is available here."""
    return name in _KNOWN


def lookup(name: str) -> Hash:
    """Return the hash that LUKS calls ``name``.

    Raises:
        UnsupportedError: It is unknown, or no library here has it; if a missing one
            would help, the hint names it.
    """
    # The OpenSSL spellings of hashlib ("sha3_256") are not LUKS names.
    hashlib_name = _HASHLIB_NAMES.get(name, name)
    known = name in _KNOWN or name in hashlib.algorithms_available - {*_HASHLIB_NAMES.values()}
    if known:
        new = getattr(hashlib, hashlib_name, None) or partial(hashlib.new, hashlib_name)
        try:
            digest_size = new(b"").digest_size
        except ValueError:
            digest_size = 0  # OpenSSL lists some hashes that its configuration forbids
        if digest_size:
            return Hash(name, hashlib_name, digest_size, new)
    from luks.crypto import gcrypt  # noqa: PLC0415  most volumes do not need it

    digest_size = gcrypt.hash_size(name)
    if digest_size:
        return Hash(name, None, digest_size, partial(gcrypt.GcryptHash, name))
    raise UnsupportedError(
        f"hash {name!r} is not available here",
        feature=f"hash {name}",
        hint=gcrypt.REMEDY if gcrypt.could_have_hash(name) else None,
    )
