"""Cipher strings as dm-crypt writes them: what they say, and which there are.

``aes-xts-plain64`` is cipher, mode and IV generator; ``aes-cbc-essiv:sha256``
has an option to the generator; ``aes-ecb`` has no IV. LUKS1 stores the cipher
and the rest in two fields. The kernel's own notation, ``capi:xts(aes)-plain64``,
is recognised and not taken apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from luks.crypto.blockcipher import block_size, key_sizes
from luks.crypto.hashes import is_known
from luks.errors import UnsupportedError

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer, WritableBuffer

#: What cryptsetup and QEMU use by default.
DEFAULT_CIPHER: Final = "aes-xts-plain64"
#: Bytes of an LRW key that are not the block cipher's.
LRW_TWEAK_KEY_SIZE: Final = 16

_MODES: Final = frozenset({"cbc", "ctr", "ecb", "lrw", "xts"})
_IVS: Final = frozenset({"benbi", "eboiv", "essiv", "null", "plain", "plain64", "plain64be"})
#: Bytes of the block that XTS and LRW are defined for.
_WIDE_BLOCK: Final = 16


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
        raise unsupported(spec, "is unknown")
    if spec.iv not in _IVS and (spec.mode, spec.iv) != ("ecb", ""):
        raise unsupported(spec, "has an unknown IV generator")
    if spec.iv == "essiv" and not is_known(spec.iv_option):
        raise unsupported(spec, "has an unknown hash for its IVs")
    if key_size not in sizes:
        raise unsupported(spec, f"takes no key of {key_size} bytes")


def _key_sizes(spec: CipherSpec) -> tuple[int, ...]:
    sizes = key_sizes(spec.cipher)
    if sizes and spec.mode in {"lrw", "xts"}:
        if block_size(spec.cipher) != _WIDE_BLOCK:
            return ()
        if spec.mode == "xts":
            return tuple(2 * size for size in sizes)
        return tuple(size + LRW_TWEAK_KEY_SIZE for size in sizes)
    return sizes


def takes_key(text: str, key_size: int) -> bool:
    """Say whether a cipher takes keys of so many bytes; a null cipher takes any."""
    spec = parse(text)
    return spec.is_null or key_size in _key_sizes(spec)


def unsupported(spec: CipherSpec, why: str) -> UnsupportedError:
    """Return the error for a cipher: ``why`` completes "cipher ..."."""
    return UnsupportedError(f"cipher {spec.text!r} {why}", feature=f"cipher {spec.text}")
