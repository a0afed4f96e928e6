"""Importing everything while it can still be read (V94).

Modules are imported when they are used first, also by the standard library. A process
that gives up root's rights may not be able to read them any longer: a virtual
environment below ``/root`` is enough.
"""

from __future__ import annotations

import importlib
import pkgutil
from contextlib import suppress
from typing import Final

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


def _import(name: str) -> None:
    with suppress(ImportError):  # what is optional, or of another system
        importlib.import_module(name)
