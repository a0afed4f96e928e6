"""libtpms's own interface: where it is found, its structures, what can be asked without a TPM.

Source: libtpms's manual pages, ``TPMLIB_*(3)``, and its ``tpm_library.h``.
"""

from __future__ import annotations

import ctypes
from enum import IntFlag
from functools import cache
from typing import Final

from formats.errors import UnsupportedError
from formats.state.swtpm import TpmVersion

#: What a user can do where it is missing.
REMEDY: Final = "install libtpms (Debian and Ubuntu: libtpms0)"

# The first name that loads is taken.
_NAMES: Final = ("libtpms.so.0", "libtpms.0.dylib", "libtpms.so", "libtpms.dylib")

#: The oldest release with `TPMLIB_SetState` and TPM 2.0.
_LEAST_VERSION: Final = (0, 6, 0)

#: The oldest release with profiles.
_PROFILES_VERSION: Final = (0, 10, 0)

#: libtpms's numbers of the kinds of TPM.
VERSIONS: Final = {TpmVersion.TPM_12: 0, TpmVersion.TPM_2: 1}


class Info(IntFlag):
    """Of `TPMLIB_GetInfo`."""

    SPECIFICATION = 1
    ATTRIBUTES = 2
    FEATURES = 4
    ALGORITHMS = 8
    COMMANDS = 16
    ACTIVE_PROFILE = 32
    PROFILES = 64


class Callbacks(ctypes.Structure):
    """``struct libtpms_callbacks``."""


Bytes = ctypes.POINTER(ctypes.c_ubyte)
U32 = ctypes.POINTER(ctypes.c_uint32)

Plain = ctypes.CFUNCTYPE(ctypes.c_uint32)
Load = ctypes.CFUNCTYPE(
    ctypes.c_uint32, ctypes.POINTER(ctypes.c_void_p), U32, ctypes.c_uint32, ctypes.c_char_p
)
Store = ctypes.CFUNCTYPE(
    ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p
)
Delete = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_ubyte)
Locality = ctypes.CFUNCTYPE(ctypes.c_uint32, U32, ctypes.c_uint32)
Presence = ctypes.CFUNCTYPE(ctypes.c_uint32, Bytes, ctypes.c_uint32)

Callbacks._fields_ = [
    ("size", ctypes.c_int),
    ("nvram_init", Plain),
    ("load", Load),
    ("store", Store),
    ("delete", Delete),
    ("io_init", Plain),
    ("locality", Locality),
    ("presence", Presence),
]


def supported_versions() -> tuple[TpmVersion, ...]:
    """Return which TPMs this libtpms has. Only while this process has no TPM.

    Raises:
        UnsupportedError: As `loaded`.
    """
    library = loaded()
    return tuple(v for v, n in VERSIONS.items() if not library.TPMLIB_ChooseTPMVersion(n))


def describe(version: TpmVersion, flags: Info) -> bytes:
    """Return what libtpms says of a kind of TPM, as JSON. Only while this process has no TPM."""
    library = loaded()
    library.TPMLIB_ChooseTPMVersion(VERSIONS[version])
    text = library.TPMLIB_GetInfo(int(flags))
    try:
        return ctypes.string_at(text) if text else b"{}"
    finally:
        libc().free(text)


def log_libtpms(descriptor: int, level: int, prefix: str = "") -> None:
    """Let libtpms write its own messages.

    Args:
        descriptor: Where they go; it stays the caller's.
        level: How many; 0 is none of them.
        prefix: Before each line.

    Raises:
        UnsupportedError: libtpms is not installed, or too old.
    """
    library = loaded()
    library.TPMLIB_SetDebugFD(descriptor)
    library.TPMLIB_SetDebugLevel(level)
    if prefix:
        library.TPMLIB_SetDebugPrefix(prefix.encode())


def has_profiles(library: ctypes.CDLL) -> bool:
    """Say whether this libtpms has profiles of a TPM 2.0: since 0.10."""
    return _version_of(library) >= _PROFILES_VERSION


def with_profiles(library: ctypes.CDLL) -> ctypes.CDLL:
    """Return a libtpms that has profiles.

    Raises:
        UnsupportedError: This one has none (V101).
    """
    if not has_profiles(library):
        found = ".".join(map(str, _version_of(library)))
        raise UnsupportedError(
            f"libtpms {found} has no profiles of a TPM [V101]",
            feature="a profile of a TPM",
            hint="install libtpms 0.10 or newer",
        )
    library.TPMLIB_SetProfile.restype = ctypes.c_uint32
    library.TPMLIB_SetProfile.argtypes = (ctypes.c_char_p,)
    return library


def _version_of(library: ctypes.CDLL) -> tuple[int, int, int]:
    version = int(library.TPMLIB_GetVersion())
    return version >> 16, version >> 8 & 0xFF, version & 0xFF


def loaded() -> ctypes.CDLL:
    """Return libtpms.

    Raises:
        UnsupportedError: It is not installed, or too old.
    """
    library = _find()
    if library is None:
        raise UnsupportedError("libtpms is not installed", feature="a TPM", hint=REMEDY)
    if _version_of(library) < _LEAST_VERSION:
        found = ".".join(map(str, _version_of(library)))
        raise UnsupportedError(f"libtpms {found} is too old", feature="a TPM", hint=REMEDY)
    return library


@cache
def _find() -> ctypes.CDLL | None:
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.TPMLIB_GetInfo.restype = ctypes.c_void_p
        for function in ("TPMLIB_Process", "TPMLIB_SetState", "TPM_IO_Hash_Data"):
            getattr(library, function).restype = ctypes.c_uint32
        library.TPMLIB_SetBufferSize.restype = ctypes.c_uint32
        library.TPMLIB_GetVersion.restype = ctypes.c_uint32
        return library
    return None


@cache
def libc() -> ctypes.CDLL:
    """Return the C library, whose allocator libtpms uses."""
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    library.free.restype, library.free.argtypes = None, (ctypes.c_void_p,)
    return library
