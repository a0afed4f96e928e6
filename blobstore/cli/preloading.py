"""Importing and loading everything while it can still be read (V94, V106).

Modules are imported when they are used first, also by the standard library. A process
that gives up root's rights may not be able to read them any longer: a virtual
environment below ``/root`` is enough.
"""

from __future__ import annotations

import ctypes
import importlib
import pkgutil
from contextlib import suppress
from typing import Final

#: The last one is what glibc ends threads with.
_LIBRARIES: Final = (
    "libtpms.so.0",
    "libgcrypt.so.20",
    "libnettle.so.8",
    "libkeyutils.so.1",
    "libgcc_s.so.1",
)
_PACKAGES: Final = ("formats", "luks", "blobstore")
#: What is imported in functions only, here and in the libraries that are used.
_LATE: Final = (
    "concurrent.futures",
    "concurrent.futures.thread",
    "cryptography.exceptions",
    "cryptography.hazmat.decrepit.ciphers",
    "cryptography.hazmat.decrepit.ciphers.algorithms",
    "cryptography.hazmat.primitives.ciphers.algorithms",
    "cryptography.hazmat.primitives.hashes",
    "cryptography.hazmat.primitives.kdf.pbkdf2",
    "difflib",
    "encodings.idna",
    "fcntl",
    "grp",
    "hashlib",
    "json",
    "logging",
    "pwd",
    "select",
    "socket",
    "subprocess",
    "termios",
    "tracemalloc",
    "traceback",
    "uuid",
)


def import_everything() -> None:
    """Import every module of the project and what they import later, in about a second."""
    for name in _LATE:
        _import(name)
    for package in _PACKAGES:
        path = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(path, f"{package}."):
            if not module.name.endswith(".__main__"):
                _import(module.name)


def load_libraries() -> None:
    """Load the libraries that are loaded when they are first used.

    A process that has one finds it by its name, also where there is no file of that name.
    """
    for name in _LIBRARIES:
        with suppress(OSError):  # what is not installed is missed when it is used
            ctypes.CDLL(name)


def _import(name: str) -> None:
    with suppress(ImportError):  # what is optional, or of another system
        importlib.import_module(name)
