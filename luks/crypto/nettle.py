"""libnettle, for Twofish with keys of 24 bytes, which QEMU uses and libgcrypt lacks.

Source: Nettle's header ``nettle-meta.h``, which declares the description of a cipher.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.devices.device import ReadableBuffer

#: What a user can do if it is missing.
REMEDY: Final = "install nettle (Debian and Ubuntu: libnettle8)"

_NAMES: Final = ("libnettle.so.8", "libnettle.8.dylib", "libnettle-8.dll")
_CIPHERS: Final = {("twofish", 24): "nettle_twofish192"}

_SetKey = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)
_Crypt = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p)


class _Description(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("context_size", ctypes.c_uint),
        ("block_size", ctypes.c_uint),
        ("key_size", ctypes.c_uint),
        ("set_encrypt_key", _SetKey),
        ("set_decrypt_key", _SetKey),
        ("encrypt", _Crypt),
        ("decrypt", _Crypt),
    )


def has_cipher(cipher: str, key_size: int) -> bool:
    """Say whether a cipher is available with keys of this size."""
    return _description(cipher, key_size) is not None


def could_have_cipher(cipher: str, key_size: int) -> bool:
    """Say whether installing nettle would provide it."""
    return (cipher, key_size) in _CIPHERS


class NettleCipher:
    """A `luks.crypto.blockcipher.BlockCipher` that sets its key again for each stream."""

    def __init__(self, cipher: str, key: ReadableBuffer, block_size: int) -> None:
        """Refer to ``key`` without copying it; `has_cipher` must be true."""
        description = _description(cipher, len(key))
        if description is None:
            raise ValueError(f"{cipher} cannot have a key of {len(key)} bytes")
        self.block_size = block_size
        self._description = description
        self._key = key

    def encryptor(self) -> _Stream:
        of = self._description
        return _Stream(of, self._key, of.set_encrypt_key, of.encrypt)

    def decryptor(self) -> _Stream:
        of = self._description
        return _Stream(of, self._key, of.set_decrypt_key, of.decrypt)

    def cbc_encryptor(self) -> _CbcStream:
        return _CbcStream(self.encryptor(), self.block_size)


class _Stream:
    """A key schedule, wiped when it is freed."""

    def __init__(
        self,
        description: _Description,
        key: ReadableBuffer,
        set_key: Callable[[object, bytes], None],
        crypt: Callable[[object, int, object, bytes], None],
    ) -> None:
        self._context = ctypes.create_string_buffer(description.context_size)
        self._crypt = crypt
        set_key(self._context, bytes(key))

    def update(self, data: bytes, /) -> bytes:
        out = ctypes.create_string_buffer(len(data))
        self._crypt(self._context, len(data), out, data)
        return out.raw

    def __del__(self) -> None:
        ctypes.memset(self._context, 0, len(self._context))


class _CbcStream:
    """CBC with a first chaining value of zero, block by block."""

    def __init__(self, blocks: _Stream, block_size: int) -> None:
        self._blocks = blocks
        self._chain = bytes(block_size)

    def update(self, data: bytes, /) -> bytes:
        size = len(self._chain)
        out = []
        for start in range(0, len(data), size):
            block = int.from_bytes(data[start : start + size]) ^ int.from_bytes(self._chain)
            self._chain = self._blocks.update(block.to_bytes(size))
            out.append(self._chain)
        return b"".join(out)


@cache
def _description(cipher: str, key_size: int) -> _Description | None:
    symbol = _CIPHERS.get((cipher, key_size))
    library = _library() if symbol else None
    if symbol is None or library is None:
        return None
    try:
        return _Description.in_dll(library, symbol)
    except ValueError:
        return None  # this build lacks it


@cache
def _library() -> ctypes.CDLL | None:
    for name in _NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
