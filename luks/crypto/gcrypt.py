"""libgcrypt, for the ciphers and hashes that `cryptography` and `hashlib` lack.

The shared library is loaded when the first of these is needed: Serpent and Twofish,
Whirlpool, Streebog and short BLAKE2, and algorithms that OpenSSL was built without,
such as CAST5 and RIPEMD-160. This is the only module that knows the library.

Source: the Libgcrypt Reference Manual, chapters 2, 5, 7 and 8.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Final

from luks.errors import UnsupportedError

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer

#: What a user can do if it is missing.
REMEDY: Final = "install libgcrypt (Debian and Ubuntu: libgcrypt20)"

# Its ABI has not changed since 2013; the first name that can be loaded is used.
_NAMES: Final = ("libgcrypt.so.20", "libgcrypt.20.dylib", "libgcrypt-20.dll")

_DISABLE_SECMEM, _INITIALIZATION_FINISHED, _INITIALIZATION_FINISHED_P = 37, 38, 39
_TEST_ALGO: Final = 8
_ECB, _CBC = 1, 3
_PBKDF2: Final = 34

# Cipher and key size to its number.
_CIPHERS: Final = {
    ("des3_ede", 24): 2,
    ("cast5", 16): 3,
    ("twofish", 32): 10,
    ("twofish", 16): 303,  # it does not support Twofish keys of 24 bytes
    ("serpent", 16): 304,
    ("serpent", 24): 305,
    ("serpent", 32): 306,
    ("camellia", 16): 310,
    ("camellia", 24): 311,
    ("camellia", 32): 312,
    ("sm4", 16): 318,
}

# Hash, in LUKS spelling, to its number and the bytes of its digest.
_HASHES: Final = {
    "ripemd160": (3, 20),
    "md4": (301, 16),
    "whirlpool": (305, 64),
    "stribog256": (309, 32),
    "stribog512": (310, 64),
    "blake2b-384": (319, 48),
    "blake2b-256": (320, 32),
    "blake2b-160": (321, 20),
    "blake2s-224": (323, 28),
    "blake2s-160": (324, 20),
    "blake2s-128": (325, 16),
}


def has_cipher(cipher: str, key_size: int) -> bool:
    """Say whether a cipher is available with keys of this size."""
    number = _CIPHERS.get((cipher, key_size))
    library = _library()
    return (
        number is not None
        and library is not None
        and library.gcry_cipher_algo_info(number, _TEST_ALGO, None, None) == 0
    )


def could_have_cipher(cipher: str, key_size: int) -> bool:
    """Say whether installing libgcrypt would provide it."""
    return (cipher, key_size) in _CIPHERS


class GcryptCipher:
    """A `luks.crypto.blockcipher.BlockCipher` that sets its key again for each stream."""

    def __init__(self, cipher: str, key: ReadableBuffer, block_size: int) -> None:
        """Refer to ``key`` without copying it; `has_cipher` must be true."""
        self.block_size = block_size
        self._number = _CIPHERS[cipher, len(key)]
        self._key = key

    def encryptor(self) -> _Stream:
        return _Stream(self._number, _ECB, self._key, decrypts=False)

    def decryptor(self) -> _Stream:
        return _Stream(self._number, _ECB, self._key, decrypts=True)

    def cbc_encryptor(self) -> _Stream:
        return _Stream(self._number, _CBC, self._key, decrypts=False)


class _Stream:
    """One handle, for one thread; libgcrypt wipes its key schedule when it is closed."""

    def __init__(self, number: int, mode: int, key: ReadableBuffer, *, decrypts: bool) -> None:
        self._handle = ctypes.c_void_p()
        library = _loaded()
        self._close = library.gcry_cipher_close
        _check(library.gcry_cipher_open(ctypes.byref(self._handle), number, mode, 0))
        _check(library.gcry_cipher_setkey(self._handle, _pointer(key), len(key)))
        self._run = library.gcry_cipher_decrypt if decrypts else library.gcry_cipher_encrypt

    def update(self, data: bytes, /) -> bytes:
        out = ctypes.create_string_buffer(len(data))
        _check(self._run(self._handle, out, len(data), data, len(data)))
        return out.raw

    def __del__(self) -> None:
        if self._handle.value is not None:
            self._close(self._handle)


def hash_size(name: str) -> int | None:
    """Return the size of a hash's digest in bytes, or None if libgcrypt lacks it here."""
    number, size = _HASHES.get(name, (0, 0))
    library = _library() if size else None
    if library is None or library.gcry_md_algo_info(number, _TEST_ALGO, None, None) != 0:
        return None
    return size


def could_have_hash(name: str) -> bool:
    """Say whether installing libgcrypt would provide it."""
    return name in _HASHES


class GcryptHash:
    """A hash in computation, with the interface of `hashlib`."""

    def __init__(self, name: str, data: ReadableBuffer = b"") -> None:
        """Start with ``data``; `hash_size` must have a result for ``name``."""
        self._number, self.digest_size = _HASHES[name]
        self._data = bytes(data)

    def update(self, data: ReadableBuffer, /) -> None:
        self._data += data

    def digest(self) -> bytes:
        out = ctypes.create_string_buffer(self.digest_size)
        _loaded().gcry_md_hash_buffer(self._number, out, self._data, len(self._data))
        return out.raw


def pbkdf2(name: str, secret: ReadableBuffer, salt: bytes, iterations: int, key: bytearray) -> None:
    """Fill ``key`` by PBKDF2 with HMAC; `hash_size` must have a result for ``name``.

    Raises:
        UnsupportedError: libgcrypt refuses, for example in FIPS mode.
    """
    number, _ = _HASHES[name]
    _check(
        _loaded().gcry_kdf_derive(
            _pointer(secret),
            len(secret),
            _PBKDF2,
            number,
            salt,
            len(salt),
            iterations,
            len(key),
            _pointer(key),
        )
    )


@cache
def _library() -> ctypes.CDLL | None:
    """Load and initialise the library; return None if it is missing."""
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        size, pointer, number = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
        data = ctypes.c_char_p
        library.gcry_check_version.restype = ctypes.c_char_p
        library.gcry_strerror.restype = ctypes.c_char_p
        library.gcry_strerror.argtypes = [ctypes.c_uint]
        library.gcry_cipher_algo_info.argtypes = [number, number, pointer, pointer]
        library.gcry_cipher_open.argtypes = [pointer, number, number, ctypes.c_uint]
        library.gcry_cipher_setkey.argtypes = [pointer, pointer, size]
        library.gcry_cipher_encrypt.argtypes = [pointer, pointer, size, data, size]
        library.gcry_cipher_decrypt.argtypes = [pointer, pointer, size, data, size]
        library.gcry_cipher_close.argtypes = [pointer]
        library.gcry_cipher_close.restype = None
        library.gcry_md_algo_info.argtypes = [number, number, pointer, pointer]
        library.gcry_md_hash_buffer.argtypes = [number, pointer, data, size]
        library.gcry_md_hash_buffer.restype = None
        library.gcry_kdf_derive.argtypes = [
            *(pointer, size, number, number, data, size, ctypes.c_ulong, size, pointer)
        ]
        # The first call initialises the library; another user of it in this process may
        # have completed that already.
        library.gcry_check_version(None)
        if not library.gcry_control(_INITIALIZATION_FINISHED_P):
            library.gcry_control(_DISABLE_SECMEM)
            library.gcry_control(_INITIALIZATION_FINISHED)
        return library
    return None


def _loaded() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise UnsupportedError("libgcrypt is not installed", feature="libgcrypt", hint=REMEDY)
    return library


def _pointer(data: ReadableBuffer) -> ctypes.Array[ctypes.c_char] | bytes:
    """Return an object that ctypes passes by address, without copying writable memory."""
    view = memoryview(data)
    if view.readonly or not view:
        return bytes(view)
    return (ctypes.c_char * len(view)).from_buffer(view)


def _check(code: int) -> None:
    if code:
        message: bytes = _loaded().gcry_strerror(code)
        raise UnsupportedError(
            f"libgcrypt refuses: {message.decode(errors='replace')}", feature="libgcrypt"
        )
