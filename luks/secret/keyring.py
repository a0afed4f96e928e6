"""Keys in the kernel's keyrings, through libkeyutils.

Source: the manual pages keyctl_read(3), request_key(2) and keyrings(7). Why
libkeyutils: spec/decisions/0011.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import Final

from luks.errors import SecretRequiredError, UnsupportedError
from luks.secret.secret_sources import MAX_KEY_FILE_SIZE, resized, wipe

_LIBRARY: Final = "libkeyutils.so.1"
#: A serial number is positive; negative ones stand for keyrings.
_MAX_SERIAL: Final = (1 << 31) - 1
_FIRST_SIZE: Final = 4096


def find_key(description: str, kind: str = "user") -> int:
    """Return the serial number of a key that this process may search for.

    Args:
        description: The description of the key.
        kind: Type of the key; cryptsetup's tokens name keys of type ``user``.

    Raises:
        SecretRequiredError: None is found.
        UnsupportedError: The kernel has no keyrings, or libkeyutils is missing.
    """
    serial = _library().request_key(kind.encode(), description.encode(), None, 0)
    if serial < 0:
        raise _error(f"key {description!r}")
    return int(serial)


def read_key(serial: int) -> bytearray:
    """Return the complete content of a key.

    Args:
        serial: Number of the key, as ``keyctl show`` prints it.

    Raises:
        SecretRequiredError: The key does not exist, or must not be read.
        UnsupportedError: The kernel has no keyrings, or libkeyutils is missing.
        ValueError: ``serial`` is not the number of a key.
    """
    if not 0 < serial <= _MAX_SERIAL:
        raise ValueError(f"{serial} is not the serial number of a key")
    library = _library()
    buffer = bytearray(_FIRST_SIZE)
    while True:
        # Keep the view until after the call: it pins the buffer.
        place = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        size = library.keyctl_read(serial, place, len(buffer))
        del place
        if 0 <= size <= len(buffer):
            return resized(buffer, size)
        wipe(buffer)  # older kernels fill it even if it is too small
        if size < 0:
            raise _error(f"key {serial}")
        if size > MAX_KEY_FILE_SIZE:
            raise SecretRequiredError(f"key {serial} has {size} bytes, too many for a passphrase")
        buffer = bytearray(size)  # the key may change meanwhile: try again


def _error(what: str) -> SecretRequiredError | UnsupportedError:
    code = ctypes.get_errno()
    reason = os.strerror(code)
    if code == errno.ENOSYS:
        return UnsupportedError("this kernel has no keyrings", feature="the kernel keyring")
    hint = None
    if code in {errno.EACCES, errno.EPERM}:
        hint = "only a possessor can read a key, and a container may forbid it to all"
    return SecretRequiredError(f"cannot read {what} of the kernel keyring: {reason}", hint=hint)


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(_LIBRARY, use_errno=True)
    except OSError:
        raise UnsupportedError(
            "reading the kernel keyring needs libkeyutils, which is not installed",
            feature="the kernel keyring",
            hint="install keyutils (Debian and Ubuntu: libkeyutils1); it exists for Linux only",
        ) from None
    library.keyctl_read.argtypes = [ctypes.c_int32, ctypes.c_void_p, ctypes.c_size_t]
    library.keyctl_read.restype = ctypes.c_long
    library.request_key.argtypes = [
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_int32,
    ]
    library.request_key.restype = ctypes.c_int32
    return library
