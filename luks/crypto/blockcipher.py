"""Block ciphers, and which library provides each: `cryptography` first, then libgcrypt.

They encrypt whole blocks one by one (ECB), and in CBC, which is serial:
`luks.crypto.modes` builds everything else that LUKS needs from these.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, cast

from luks.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.ciphers import (
        BlockCipherAlgorithm,
        Cipher,
        CipherContext,
    )
    from cryptography.hazmat.primitives.ciphers.modes import ECB

    from formats.devices.device import ReadableBuffer


class Stream(Protocol):
    """A key in use, for one thread; each call continues where the last one ended."""

    def update(self, data: bytes, /) -> bytes:
        """Process whole blocks."""


class BlockCipher(Protocol):
    """A cipher with its key; safe in several threads.

    It refers to the key's memory: streams that are made after wiping it have no key.

    Attributes:
        block_size: Bytes.
    """

    block_size: int

    def encryptor(self) -> Stream:
        """Start encrypting blocks, each separately."""

    def decryptor(self) -> Stream:
        """Start decrypting blocks, each separately."""

    def cbc_encryptor(self) -> Stream:
        """Start encrypting blocks chained as in CBC, with an IV of zero."""


class _Facts(NamedTuple):
    """Properties of a cipher, independent of the library.

    Attributes:
        block_size: Bytes.
        key_sizes: Bytes of the keys that LUKS volumes use with it.
        class_name: Its name in `cryptography`, or "".
    """

    block_size: int
    key_sizes: tuple[int, ...]
    class_name: str = ""


_FACTS: Final = {
    "aes": _Facts(16, (16, 24, 32), "AES"),
    "camellia": _Facts(16, (16, 24, 32), "Camellia"),
    "cast5": _Facts(8, (16,), "CAST5"),
    "cast6": _Facts(16, (16, 24, 32)),
    "des3_ede": _Facts(8, (24,), "TripleDES"),
    "serpent": _Facts(16, (16, 24, 32)),
    "sm4": _Facts(16, (16,), "SM4"),
    "twofish": _Facts(16, (16, 24, 32)),
}


def key_sizes(cipher: str) -> tuple[int, ...]:
    """Return the sizes in bytes of a cipher's keys; none if it is unknown."""
    return _FACTS[cipher].key_sizes if cipher in _FACTS else ()


def block_size(cipher: str) -> int:
    """Return the block size of a known cipher in bytes."""
    return _FACTS[cipher].block_size


def is_in_cryptography(cipher: str, key_size: int) -> bool:
    """Say whether `CryptographyCipher` has a cipher with keys of this size."""
    return _from_cryptography(cipher, key_size) is not None


def check_available(cipher: str, key_size: int) -> None:
    """Check that `block_cipher` provides a cipher.

    Raises:
        UnsupportedError: It is not available here; the hint says what to install.
    """
    if _from_cryptography(cipher, key_size) is not None:
        return
    from luks.crypto import gcrypt, nettle  # noqa: PLC0415  most volumes need neither

    if gcrypt.has_cipher(cipher, key_size) or nettle.has_cipher(cipher, key_size):
        return
    hint = None
    for library in (gcrypt, nettle):
        if library.could_have_cipher(cipher, key_size):
            hint = library.REMEDY
    raise UnsupportedError(
        f"cipher {cipher!r} with a key of {key_size} bytes is not available here",
        feature=f"cipher {cipher}",
        hint=hint,
    )


def block_cipher(cipher: str, key: ReadableBuffer) -> BlockCipher:
    """Make a block cipher.

    Args:
        cipher: dm-crypt's name for it.
        key: The result refers to it and does not copy it.

    Raises:
        UnsupportedError: As `check_available`.
    """
    check_available(cipher, len(key))
    if _from_cryptography(cipher, len(key)) is not None:
        return CryptographyCipher(cipher, key)
    from luks.crypto import gcrypt, nettle  # noqa: PLC0415  most volumes need neither

    kind = gcrypt.GcryptCipher if gcrypt.has_cipher(cipher, len(key)) else nettle.NettleCipher
    return kind(cipher, key, block_size(cipher))


class CryptographyCipher:
    """A `BlockCipher` of `cryptography`; its streams have ``update_into``, too."""

    def __init__(self, cipher: str, key: ReadableBuffer) -> None:
        kind = _from_cryptography(cipher, len(key))
        if kind is None:
            raise ValueError(f"{cipher} cannot have a key of {len(key)} bytes")
        self.block_size: int = block_size(cipher)
        self._algorithm = kind(memoryview(key))
        self._ecb = _ecb(self._algorithm)  # the key is read when a context is made

    def encryptor(self) -> CipherContext:
        return self._ecb.encryptor()

    def decryptor(self) -> CipherContext:
        return self._ecb.decryptor()

    def cbc_encryptor(self) -> CipherContext:
        from cryptography.hazmat.primitives.ciphers import Cipher, modes  # noqa: PLC0415  see `_ecb`

        return Cipher(self._algorithm, modes.CBC(bytes(self.block_size))).encryptor()

    def cbc_decryptor(self) -> CipherContext:
        """Start decrypting blocks chained as in CBC, with an IV of zero."""
        from cryptography.hazmat.primitives.ciphers import Cipher, modes  # noqa: PLC0415  see `_ecb`

        return Cipher(self._algorithm, modes.CBC(bytes(self.block_size))).decryptor()


def _ecb(algorithm: BlockCipherAlgorithm) -> Cipher[ECB]:
    # Looking at a header needs no cipher, and importing this takes about 20 ms.
    from cryptography.hazmat.primitives.ciphers import Cipher, modes  # noqa: PLC0415

    return Cipher(algorithm, modes.ECB())  # noqa: S305  the modes are built from it


@cache
def _from_cryptography(
    cipher: str, key_size: int
) -> Callable[[ReadableBuffer], BlockCipherAlgorithm] | None:
    """Return the class for a cipher, if this `cryptography` and its OpenSSL provide it."""
    name = _FACTS[cipher].class_name if cipher in _FACTS else ""
    if not name:
        return None
    from cryptography.hazmat.primitives.ciphers import algorithms  # noqa: PLC0415  see `_ecb`

    if name == "AES":
        return algorithms.AES
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  see `_ecb`
    from cryptography.hazmat.decrepit.ciphers import algorithms as decrepit  # noqa: PLC0415  see `_ecb`

    # A cipher that moved to `decrepit` warns in its old place, so that place is tried last.
    for module in (decrepit, algorithms):
        kind = getattr(module, name, None)
        if kind is None:
            continue
        try:
            _ecb(kind(bytes(range(key_size)))).encryptor()
        except UnsupportedAlgorithm:
            continue  # its OpenSSL was built or configured without the cipher
        return cast("Callable[[ReadableBuffer], BlockCipherAlgorithm]", kind)
    return None
