"""Flashes of which a section holds only the part with variables (F60).

The rest of the flash is the same byte everywhere. The section's type says which, and how
large the flash is: ``ovmf-vars:67108864``, or ``ovmf-vars:67108864:ff``.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_TYPE: Final = re.compile(r"ovmf-vars:([1-9][0-9]{0,8})(:ff)?")
_FLASH_BLOCK: Final = 4096
#: Four times the largest flash of QEMU's machines (F24).
MAX_FLASH_SIZE: Final = 256 << 20


class Padding(NamedTuple):
    """What a flash is after the part that is stored.

    Attributes:
        size: Bytes of the whole flash.
        filler: The one byte that the rest consists of.
    """

    size: int
    filler: bytes

    def type(self) -> str:
        """Return the type of a section that holds the beginning of such a flash."""
        return f"ovmf-vars:{self.size}" + (":ff" if self.filler == b"\xff" else "")

    def pad(self, beginning: bytes) -> bytes:
        """Return the whole flash that begins with these bytes."""
        return beginning.ljust(self.size, self.filler)


def plain_type(type_: str) -> str:
    """Return the type of a section without what it says of padding."""
    return "ovmf-vars" if _TYPE.fullmatch(type_) else type_


def padding_of(type_: str, max_size: int) -> Padding | None:
    """Return how a window of this type and worst case continues; None if it does not."""
    found = _TYPE.fullmatch(type_)
    if found is None:
        return None
    size = int(found[1])
    if size % _FLASH_BLOCK or not max_size <= size <= MAX_FLASH_SIZE:
        return None
    return Padding(size, b"\xff" if found[2] else b"\0")
