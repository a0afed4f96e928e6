"""Cipher strings as dm-crypt writes them, and the ciphers behind them.

``aes-xts-plain64`` is cipher, mode and IV generator; ``aes-cbc-essiv:sha256``
has an option to the generator; ``aes-ecb`` has no IV. LUKS1 stores the cipher
and the rest in two fields. The kernel's own notation, ``capi:xts(aes)-plain64``,
is recognised and not taken apart.

This is where a string becomes a `SectorCipher`; each construction has a module
of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from luks.errors import PolicyError, UnsupportedError
from luks.hashes import is_known

if TYPE_CHECKING:
    from formats.device import ReadableBuffer, WritableBuffer

#: What cryptsetup and QEMU use by default.
DEFAULT_CIPHER: Final = "aes-xts-plain64"

# Bytes of key that each cipher takes; XTS and LRW take more, see `_key_sizes`.
_CIPHER_KEY_SIZES: Final = {
    "aes": (16, 24, 32),
    "camellia": (16, 24, 32),
    "cast5": (16,),
    "cast6": (16, 24, 32),
    "des3_ede": (24,),
    "serpent": (16, 24, 32),
    "sm4": (16,),
    "twofish": (16, 24, 32),
}
_MODES: Final = frozenset({"cbc", "ctr", "ecb", "lrw", "xts"})
_IVS: Final = frozenset({"benbi", "essiv", "null", "plain", "plain64", "plain64be"})


class SectorCipher(Protocol):
    """Encrypts and decrypts whole sectors of one size; safe in several threads.

    Sectors are numbered in units of 512 bytes whatever their size, and
    ``first_sector`` is the number of the first one: with sectors of 4096 bytes
    the numbers of neighbours differ by 8. Numbers wrap at 2**64.
    """

    def encrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        """Encrypt ``data`` to ``out``, which is as long and may be the same memory."""

    def decrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        """Decrypt ``data`` to ``out``, which is as long and may be the same memory."""


class CipherSpec(NamedTuple):
    """A cipher string, taken apart.

    Attributes:
        text: The string itself.
        cipher: Such as ``"aes"``; ``"capi"`` for the kernel's notation.
        mode: Such as ``"xts"``, or "".
        iv: IV generator such as ``"plain64"``, or "".
        iv_option: What follows its colon, such as a hash name, or "".
    """

    text: str
    cipher: str
    mode: str
    iv: str
    iv_option: str

    @property
    def is_null(self) -> bool:
        """Whether this encrypts nothing, so that any key seems to fit."""
        return "cipher_null" in self.text


def parse(text: str) -> CipherSpec:
    """Take a cipher string apart; any string has a `CipherSpec`."""
    if text.startswith("capi:"):
        _, _, tail = text.rpartition("-")
        iv, _, option = tail.partition(":")
        return CipherSpec(text, "capi", "", iv, option)
    cipher, _, rest = text.partition("-")
    mode, _, tail = rest.partition("-")
    iv, _, option = tail.partition(":")
    return CipherSpec(text, cipher, mode, iv, option)


def check_spec(spec: CipherSpec, key_size: int) -> None:
    """Check that a cipher exists and takes such keys, whether or not it is here.

    Raises:
        UnsupportedError: It is none that LUKS volumes use, or takes no key of
            ``key_size`` bytes.
    """
    if spec.is_null:
        return
    sizes = _key_sizes(spec)
    if not sizes or spec.mode not in _MODES:
        raise _unsupported(spec, "is unknown")
    if spec.iv not in _IVS and (spec.mode, spec.iv) != ("ecb", ""):
        raise _unsupported(spec, "has an unknown IV generator")
    if spec.iv == "essiv" and not is_known(spec.iv_option):
        raise _unsupported(spec, "has an unknown hash for its IVs")
    if key_size not in sizes:
        raise _unsupported(spec, f"takes no key of {key_size} bytes")


def _key_sizes(spec: CipherSpec) -> tuple[int, ...]:
    sizes = _CIPHER_KEY_SIZES.get(spec.cipher, ())
    if spec.mode == "xts":
        return tuple(2 * size for size in sizes)
    if spec.mode == "lrw":
        return tuple(16 + size for size in sizes)
    return sizes


def check_usable(text: str, key_size: int) -> None:
    """Check that `sector_cipher` will serve such a cipher; errors as there."""
    spec = parse(text)
    if spec.is_null:
        raise PolicyError(
            f"cipher {text!r} encrypts nothing, and any passphrase would seem right [L62]"
        )
    # Other ciphers are recognised, for `check_spec`, but not served yet.
    if text != DEFAULT_CIPHER or key_size not in {32, 64}:
        raise _unsupported(spec, f"with a key of {key_size} bytes is not implemented")


def sector_cipher(text: str, key: ReadableBuffer, sector_size: int) -> SectorCipher:
    """Make the cipher that a cipher string names.

    Args:
        text: dm-crypt's cipher string.
        key: Its key. The result refers to this memory: wiping it ends its use.
        sector_size: Bytes per sector.

    Raises:
        PolicyError: It is a null cipher.
        UnsupportedError: It is not implemented, or not with such a key.
    """
    check_usable(text, len(key))
    from luks.xts import AesXts  # noqa: PLC0415  needs cryptography

    return AesXts(key, sector_size)


def _unsupported(spec: CipherSpec, why: str) -> UnsupportedError:
    return UnsupportedError(f"cipher {spec.text!r} {why}", feature=f"cipher {spec.text}")
