"""Bytes on devices and bytes in formats: devices, image files, the DER container.

No module here knows cryptography or the command line. Import the modules by name
(`formats.devices.device`, `formats.devices.file`, `formats.container.model`, ...).

`public_names` is here, and not in a module of its own, because every start of a program
pays for it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

#: Identifies this `formats` as the one of `blobstore` and `luks` (spec/decisions/0001).
DISTRIBUTION = "device-blobstore"


def public_names(
    package: str, file: str
) -> tuple[list[str], Callable[[str], object], Callable[[], list[str]]]:
    """Return the ``__all__``, ``__getattr__`` and ``__dir__`` of a package (PEP 562).

    The public names of a package are those that its ``__init__`` imports for type
    checkers, one on a line, with an alias: ``from luks.model import Area as Area``. The
    source is what is read, so that no name has to be said twice; a module is
    imported when the first of its names is used (spec/decisions/0031).

    Args:
        package: Name of the package.
        file: Its ``__file__``. The source has to be there, as it is in a wheel.
    """
    homes: dict[str, tuple[str, str]] = {}
    loader: Any = sys.modules[package].__loader__  # that of an archive reads from there
    for line in loader.get_data(file).decode().splitlines():
        words = line.split()
        if line.startswith("    from ") and words[4:5] == ["as"]:
            homes[words[5]] = words[1], words[3]

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, attribute = homes[name]
        value = getattr(import_module(home), attribute)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return sorted(homes), get, names
