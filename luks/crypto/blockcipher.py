"""Block ciphers, and which library serves each: `cryptography` first, then libgcrypt.

Only whole blocks one by one (ECB), and CBC encryption, which is serial: all else
that LUKS needs is made of these in `luks.crypto.modes`.
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
    """A key in use, for one thread; each call goes on where the last one ended."""

    def update(self, data: bytes, /) -> bytes:
        """Process whole blocks."""


class BlockCipher(Protocol):
    """A cipher with its key; safe in several threads.

    It refers to the key's memory: wiping that ends the use of what is made
    from then on.

    Attributes:
        block_size: Bytes.
    """

    block_size: int

    def encryptor(self) -> Stream:
        """Start encrypting blocks, each by itself."""

    def decryptor(self) -> Stream:
        """Start decrypting blocks, each by itself."""

    def cbc_encryptor(self) -> Stream:
        """Start encrypting blocks chained as in CBC, with an IV of zero."""


class _Facts(NamedTuple):
    """What a cipher is, wherever it comes from.

    Attributes:
        block_size: Bytes.
        key_sizes: Bytes of the keys that LUKS volumes use with it.
        class_name: What `cryptography` calls it, or "".
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
    """Return the bytes of the keys that a cipher takes; none if it is unknown."""
    return _FACTS[cipher].key_sizes if cipher in _FACTS else ()


def block_size(cipher: str) -> int:
    """Return the bytes of a known cipher's block."""
    return _FACTS[cipher].block_size


def is_in_cryptography(cipher: str, key_size: int) -> bool:
    """Say whether `CryptographyCipher` has a cipher with such keys."""
    return _from_cryptography(cipher, key_size) is not None


def check_available(cipher: str, key_size: int) -> None:
    """Check that `block_cipher` will serve a cipher.

    Raises:
        UnsupportedError: It is not available here; the hint says what would help.
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
        key: It is referred to, not copied.

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
            raise ValueError(f"there is no {cipher} with a key of {len(key)} bytes")
        self.block_size = block_size(cipher)
        self._algorithm = kind(memoryview(key))
        self._ecb = _ecb(self._algorithm)  # it reads the key when it makes a context

    def encryptor(self) -> CipherContext:
        return self._ecb.encryptor()

    def decryptor(self) -> CipherContext:
        return self._ecb.decryptor()

    def cbc_encryptor(self) -> CipherContext:
        from cryptography.hazmat.primitives.ciphers import Cipher, modes  # noqa: PLC0415

        return Cipher(self._algorithm, modes.CBC(bytes(self.block_size))).encryptor()

    def cbc_decryptor(self) -> CipherContext:
        """Start decrypting blocks chained as in CBC, with an IV of zero."""
        from cryptography.hazmat.primitives.ciphers import Cipher, modes  # noqa: PLC0415

        return Cipher(self._algorithm, modes.CBC(bytes(self.block_size))).decryptor()


def _ecb(algorithm: BlockCipherAlgorithm) -> Cipher[ECB]:
    from cryptography.hazmat.primitives.ciphers import Cipher, modes  # noqa: PLC0415

    return Cipher(algorithm, modes.ECB())  # noqa: S305  what modes are made of


@cache
def _from_cryptography(
    cipher: str, key_size: int
) -> Callable[[ReadableBuffer], BlockCipherAlgorithm] | None:
    """Return the class for a cipher, if this `cryptography` and its OpenSSL serve it."""
    name = _FACTS[cipher].class_name if cipher in _FACTS else ""
    if not name:
        return None
    from cryptography.hazmat.primitives.ciphers import algorithms  # noqa: PLC0415

    if name == "AES":
        return algorithms.AES
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.decrepit.ciphers import algorithms as decrepit  # noqa: PLC0415

    # What moves to `decrepit` warns at its old place, so that is asked last.
    for module in (decrepit, algorithms):
        kind = getattr(module, name, None)
        if kind is None:
            continue
        try:
            _ecb(kind(bytes(range(key_size)))).encryptor()
        except UnsupportedAlgorithm:
            continue  # its OpenSSL was built or set up without
        return cast("Callable[[ReadableBuffer], BlockCipherAlgorithm]", kind)
    return None
