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
    "sha512-224": "sha512_224",
    "sha512-256": "sha512_256",
    "blake2b-512": "blake2b",
    "blake2s-256": "blake2s",
}

# Other names that OpenSSL, libgcrypt or the kernel have for them, and that cryptsetup, which
# asks those, therefore stores. All take capitals for small letters.
_ALIASES: Final = {
    "sha-1": "sha1",
    **{f"sha-{bits}": f"sha{bits}" for bits in (224, 256, 384, 512)},
    **{f"sha2-{bits}": f"sha{bits}" for bits in (224, 256, 384, 512)},
    **{f"{sha}512/{bits}": f"sha512-{bits}" for sha in ("sha-", "sha2-") for bits in (224, 256)},
    **{f"sha512_{bits}": f"sha512-{bits}" for bits in (224, 256)},
    **dict.fromkeys(("ripemd", "ripemd-160", "rmd160"), "ripemd160"),
    **{f"blake2b{sep}512": "blake2b-512" for sep in ("", "_")},
    **{f"blake2s{sep}256": "blake2s-256" for sep in ("", "_")},
    **{f"blake2b_{bits}": f"blake2b-{bits}" for bits in (160, 256, 384)},
    **{f"blake2s_{bits}": f"blake2s-{bits}" for bits in (128, 160, 224)},
    **{f"streebog{bits}": f"stribog{bits}" for bits in (256, 512)},
    "wp512": "whirlpool",
    "1.3.14.3.2.26": "sha1",
    "2.16.840.1.101.3.4.2.1": "sha256",
    "2.16.840.1.101.3.4.2.2": "sha384",
    "2.16.840.1.101.3.4.2.3": "sha512",
    "2.16.840.1.101.3.4.2.4": "sha224",
    "2.16.840.1.101.3.4.2.5": "sha512-224",
    "2.16.840.1.101.3.4.2.6": "sha512-256",
    "2.16.840.1.101.3.4.2.7": "sha3-224",
    "2.16.840.1.101.3.4.2.8": "sha3-256",
    "2.16.840.1.101.3.4.2.9": "sha3-384",
    "2.16.840.1.101.3.4.2.10": "sha3-512",
}

# The kernel's names for the first bytes of Whirlpool's digest, and their number.
_TRUNCATED: Final = {"wp256": ("whirlpool", 32), "wp384": ("whirlpool", 48)}

# Hashes that LUKS volumes are known to use and hashlib may lack: a header that
# names one is sound, even if it cannot be opened here.
_KNOWN: Final = frozenset(
    {"md4", "md5", "md5-sha1", "sha1", "sha224", "sha256", "sha384", "sha512"}
    | {"ripemd160", "sm3", "whirlpool", "stribog256", "stribog512", *_HASHLIB_NAMES, *_TRUNCATED}
    | {f"blake2b-{bits}" for bits in (160, 256, 384)}
    | {f"blake2s-{bits}" for bits in (128, 160, 224)}
)


class Hash(NamedTuple):
    """One hash function.

    Attributes:
        name: LUKS spelling, see `canonical`.
        hashlib_name: Its name in `hashlib`, or None if libgcrypt provides it.
        digest_size: Bytes of its digest.
        new: Starts a computation with the given bytes.
        is_truncated: Whether it is the beginning of another hash's digest.
    """

    name: str
    hashlib_name: str | None
    digest_size: int
    new: Callable[[ReadableBuffer], _Digest]
    is_truncated: bool = False


class _Truncated:
    """The first bytes of another hash."""

    def __init__(self, whole: Hash, size: int, data: ReadableBuffer) -> None:
        self._digest = whole.new(data)
        self.digest_size = size

    def update(self, data: ReadableBuffer, /) -> None:
        self._digest.update(data)

    def digest(self) -> bytes:
        return self._digest.digest()[: self.digest_size]


def canonical(name: str) -> str:
    """Return how LUKS spells a hash that cryptsetup stores in another way as well (L75).

    ``SHA-256`` and ``sha2-256`` are ``sha256``. A name that is not known stays as it is, in
    small letters.
    """
    lower = name.lower()
    return _ALIASES.get(lower, lower)


def is_known(name: str) -> bool:
    """Say whether LUKS volumes use this hash, whether or not it is available here."""
    return canonical(name) in _KNOWN


def lookup(name: str) -> Hash:
    """Return the hash that LUKS calls ``name``, in any of its spellings.

    Raises:
        UnsupportedError: It is unknown, or no library here has it; if a missing one
            would help, the hint names it.
    """
    name = canonical(name)
    if name in _TRUNCATED:
        whole, size = _TRUNCATED[name]
        return Hash(name, None, size, partial(_Truncated, lookup(whole), size), is_truncated=True)
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
