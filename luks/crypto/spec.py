"""Cipher strings as dm-crypt writes them: their parts, and the valid ones.

``aes-xts-plain64`` is cipher, mode and IV generator; ``aes-cbc-essiv:sha256``
has an option to the generator; ``aes-ecb`` has no IV. LUKS1 stores the cipher
and the rest in two fields. The kernel's own notation, ``capi:xts(aes)-plain64``,
is recognised but not parsed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from luks.crypto.blockcipher import block_size, key_sizes
from luks.crypto.hashes import is_known
from luks.errors import UnsupportedError

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer, WritableBuffer

#: The default of cryptsetup and QEMU.
DEFAULT_CIPHER: Final = "aes-xts-plain64"
#: Bytes of an LRW key that do not belong to the block cipher.
LRW_TWEAK_KEY_SIZE: Final = 16

_MODES: Final = frozenset({"cbc", "ctr", "ecb", "lrw", "xts"})
_IVS: Final = frozenset({"benbi", "eboiv", "essiv", "null", "plain", "plain64", "plain64be"})
#: Block size for which XTS and LRW are defined, in bytes.
_WIDE_BLOCK: Final = 16


class SectorCipher(Protocol):
    """Encrypts and decrypts whole sectors of one size; safe in several threads.

    Sectors are numbered in units of 512 bytes, regardless of their size, and
    ``first_sector`` is the number of the first one: with sectors of 4096 bytes
    the numbers of neighbours differ by 8. Numbers wrap at 2**64.
    """

    def encrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        """Encrypt ``data`` to ``out``, which is as long and may be the same memory."""

    def decrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        """Decrypt ``data`` to ``out``, which is as long and may be the same memory."""


class CipherSpec(NamedTuple):
    """A parsed cipher string.

    Attributes:
        text: The string itself.
        cipher: Such as ``"aes"``; ``"capi"`` for the kernel's notation.
        mode: Such as ``"xts"``, or "".
        iv: IV generator such as ``"plain64"``, or "".
        iv_option: The part after its colon, such as a hash name, or "".
    """

    text: str
    cipher: str
    mode: str
    iv: str
    iv_option: str

    @property
    def is_null(self) -> bool:
        """Whether it encrypts nothing, so that any key seems right."""
        return "cipher_null" in self.text

    @property
    def is_adiantum(self) -> bool:
        """Whether it is Adiantum, in dm-crypt's notation or the kernel's."""
        return self.mode == "adiantum" or self.text.startswith("capi:adiantum(")


def parse(text: str) -> CipherSpec:
    """Parse a cipher string; every string has a `CipherSpec`."""
    if text.startswith("capi:"):
        _, _, tail = text.rpartition("-")
        iv, _, option = tail.partition(":")
        return CipherSpec(text, "capi", "", iv, option)
    cipher, _, rest = text.partition("-")
    mode, _, tail = rest.partition("-")
    iv, _, option = tail.partition(":")
    return CipherSpec(text, cipher, mode, iv, option)


def check_spec(spec: CipherSpec, key_size: int) -> None:
    """Check that a cipher exists and takes such keys, whether or not it is available here.

    Raises:
        UnsupportedError: LUKS volumes do not use it, or it does not take a key of
            ``key_size`` bytes.
    """
    if spec.is_null:
        return
    if spec.is_adiantum:
        raise UnsupportedError(
            f"cipher {spec.text!r} is Adiantum, which no cryptographic library here has [L142]",
            feature="Adiantum",
            hint="cryptsetup opens it; 'cryptsetup reencrypt --cipher aes-xts-plain64' there makes"
            " it a volume that opens here as well",
        )
    sizes = _key_sizes(spec)
    if not sizes or spec.mode not in _MODES:
        raise unsupported(spec, "is unknown")
    if spec.iv not in _IVS and (spec.mode, spec.iv) != ("ecb", ""):
        raise unsupported(spec, "has an unknown IV generator")
    if spec.iv == "essiv" and not is_known(spec.iv_option):
        raise unsupported(spec, "has an unknown hash for its IVs")
    if key_size not in sizes:
        raise unsupported(spec, f"does not take a key of {key_size} bytes")


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
    """Say whether a cipher takes keys of ``key_size`` bytes; a null cipher takes any."""
    spec = parse(text)
    return spec.is_null or key_size in _key_sizes(spec)


def refuses_key(text: str, key_size: int) -> bool:
    """Say whether a cipher is known not to take keys of ``key_size`` bytes."""
    spec = parse(text)
    sizes = _key_sizes(spec)
    return bool(sizes) and not spec.is_null and key_size not in sizes


def unsupported(spec: CipherSpec, why: str) -> UnsupportedError:
    """Return the error for a cipher: ``why`` completes "cipher ..."."""
    return UnsupportedError(f"cipher {spec.text!r} {why}", feature=f"cipher {spec.text}")
