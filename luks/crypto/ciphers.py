"""The ciphers for cipher strings (`luks.crypto.spec`).

This module turns a string into a `SectorCipher`; each construction has its own
module.
"""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING, Final

from luks.crypto.blockcipher import block_cipher, block_size, check_available, key_sizes
from luks.crypto.fast.bulk import OTHER_XTS, bulk_path
from luks.crypto.hashes import lookup
from luks.crypto.spec import (
    LRW_TWEAK_KEY_SIZE,
    CipherSpec,
    SectorCipher,
    check_spec,
    parse,
    unsupported,
)
from luks.errors import PolicyError, UnsupportedError
from luks.model import SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.devices.device import ReadableBuffer, WritableBuffer
    from luks.crypto.fast.bulk import BulkPath
    from luks.crypto.ivs import IvGenerator
    from luks.crypto.modes import Mode


#: Largest number of bytes passed to a mode at a time, because it works on copies.
_CHUNK: Final = 64 << 10
#: What to do about a volume that is not encrypted (L62).
UNENCRYPTED: Final = (
    "if that is intended, permit it in Python with luks.Policy(allow_unencrypted=True);"
    " the command line does not open it, cryptsetup does"
)


def check_usable(text: str, key_size: int, *, permit_null: bool = False) -> None:
    """Check that `sector_cipher` provides a cipher; errors as there."""
    spec = parse(text)
    if spec.is_null:
        if permit_null:
            return
        raise PolicyError(
            f"cipher {text!r} encrypts nothing, and any passphrase would seem right [L62]",
            hint=UNENCRYPTED,
        )
    check_spec(spec, key_size)
    if (spec.mode, spec.iv) == ("ctr", "benbi"):
        # The generator numbers blocks. In CTR, dm-crypt takes a byte for a block, but
        # cryptsetup, which encrypts keyslots without dm-crypt, the cipher's block.
        raise unsupported(spec, "is ambiguous: programs number its blocks differently")
    if spec.iv == "eboiv" and spec.mode not in {"cbc", "ecb"}:
        raise unsupported(spec, "has IVs that only CBC uses")
    try:
        check_available(spec.cipher, _block_key_size(spec, key_size))
        if spec.iv == "essiv" and spec.mode != "ecb":
            digest_size = lookup(spec.iv_option).digest_size
            if digest_size not in key_sizes(spec.cipher):
                raise unsupported(spec, f"cannot use a hash of {digest_size} bytes for its IVs")
            check_available(spec.cipher, digest_size)
    except UnsupportedError as error:
        if error.feature == f"cipher {text}":
            raise
        raise UnsupportedError(
            f"cipher {text!r} cannot be used: {error}", feature=f"cipher {text}", hint=error.hint
        ) from error


def sector_cipher(
    text: str, key: ReadableBuffer, sector_size: int, *, permit_null: bool = False
) -> SectorCipher:
    """Make the cipher that a cipher string names.

    Args:
        text: dm-crypt's cipher string.
        key: Its key. The result refers to this memory, so wiping it ends its use.
        sector_size: Bytes per sector.
        permit_null: Provide null ciphers too, which encrypt nothing.

    Raises:
        PolicyError: It is a null cipher, which is not permitted.
        UnsupportedError: It is not implemented, or not with such a key; if a
            missing library would help, the hint names it.
    """
    check_usable(text, len(key), permit_null=permit_null)
    spec = parse(text)
    if spec.is_null:
        return NullCipher()
    if spec.mode == "xts":
        from luks.crypto.fast.xts import FAST, AesXts  # noqa: PLC0415  needs cryptography

        fast = FAST.get((spec.cipher, spec.iv))
        if fast and len(key) in fast.key_sizes and not has_equal_halves(key):
            return AesXts(key, sector_size, spec.iv)
    mode = _mode(spec, memoryview(key))
    ivs = _iv_generator(spec, memoryview(key), mode.iv_size, sector_size)
    bulk = bulk_path(spec, memoryview(key), sector_size, OTHER_XTS)
    return _ModeCipher(mode, ivs, sector_size, bulk)


def has_equal_halves(key: ReadableBuffer) -> bool:
    """Say whether the halves of a key are equal, which weakens XTS.

    OpenSSL refuses such keys. The kernel does not, so such volumes may exist; they are
    read and written in the slower way.
    """
    half = len(key) // 2
    return compare_digest(key[:half], key[half:])


def _block_key_size(spec: CipherSpec, key_size: int) -> int:
    """Return how many bytes of the key belong to the block cipher."""
    if spec.mode == "xts":
        return key_size // 2
    return key_size - LRW_TWEAK_KEY_SIZE if spec.mode == "lrw" else key_size


def _mode(spec: CipherSpec, key: memoryview) -> Mode:
    from luks.crypto import modes  # noqa: PLC0415  not for the default cipher

    size = _block_key_size(spec, len(key))
    blocks = block_cipher(spec.cipher, key[:size])
    match spec.mode:
        case "xts":
            return modes.Xts(blocks, block_cipher(spec.cipher, key[size:]))
        case "lrw":
            return modes.Lrw(blocks, key[size:])
        case "cbc":
            return modes.Cbc(blocks)
        case "ctr":
            return modes.Ctr(blocks)
        case _:
            return modes.Ecb(blocks)


def _iv_generator(spec: CipherSpec, key: memoryview, iv_size: int, sector_size: int) -> IvGenerator:
    from luks.crypto import ivs  # noqa: PLC0415  not for the default cipher

    if not iv_size:
        return ivs.null(0)  # ECB has none, regardless of the string
    match spec.iv:
        case "essiv":
            return ivs.essiv(
                iv_size, key, spec.iv_option, lambda salt: block_cipher(spec.cipher, salt)
            )
        case "benbi":
            return ivs.benbi(iv_size, block_size(spec.cipher))
        case "eboiv":
            return ivs.eboiv(iv_size, sector_size, block_cipher(spec.cipher, key))
        case "plain":
            return ivs.plain(iv_size)
        case "plain64":
            return ivs.plain64(iv_size)
        case "plain64be":
            return ivs.plain64be(iv_size)
        case _:
            return ivs.null(iv_size)


class NullCipher:
    """A `SectorCipher` that encrypts nothing."""

    def encrypt(self, _first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        out[:] = data

    def decrypt(self, _first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        out[:] = data


class _ModeCipher:
    """A `SectorCipher` made of a mode and an IV generator."""

    def __init__(
        self, mode: Mode, ivs: IvGenerator, sector_size: int, bulk: BulkPath | None = None
    ) -> None:
        """Use ``bulk`` for the requests that it serves."""
        self._bulk = bulk
        self._mode = mode
        self._ivs = ivs
        self._sector_size = sector_size

    def encrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        if self._bulk and self._bulk.encrypt(first_sector, data, out):
            return
        self._run(self._mode.encrypt, first_sector, data, out)

    def decrypt(self, first_sector: int, data: ReadableBuffer, out: WritableBuffer, /) -> None:
        if self._bulk and self._bulk.decrypt(first_sector, data, out):
            return
        self._run(self._mode.decrypt, first_sector, data, out)

    def _run(
        self,
        crypt: Callable[[bytes, bytes, int], bytes],
        first_sector: int,
        data: ReadableBuffer,
        out: WritableBuffer,
    ) -> None:
        source, target = memoryview(data), memoryview(out)
        size = self._sector_size
        for start in range(0, len(source), _CHUNK):
            chunk = bytes(source[start : start + _CHUNK])
            first = first_sector + start // SECTOR_SIZE
            numbers = range(first, first + len(chunk) // SECTOR_SIZE, size // SECTOR_SIZE)
            target[start : start + len(chunk)] = crypt(self._ivs(numbers), chunk, size)
