"""Where in an EEPROM environments of U-Boot are, whose places and sizes are not stored (E-ENV4)."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.eeprom.framework.limits import ByteOrder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.eeprom.framework.codec import Findings

#: Environments begin at multiples of this, in bytes; sizes are first looked for in it, too.
STEP: Final = 64
CRC_SIZE: Final = 4

#: For messages about environments in places where this module does not look.
HOW_IT_IS_FOUND: Final = (
    "an environment is found at multiples of 64 bytes if the name of its first variable has"
    " at most 64 letters, digits and _.+-, and its size is a multiple of 64 or at most 65536"
)

#: Sizes that are not a multiple of `STEP` are looked for up to this one.
_LARGEST_ODD_SIZE: Final = 64 << 10
#: How many places that look like an environment are tried, so that time stays proportional.
_MOST_PLACES: Final = 16
_VARIABLE: Final = re.compile(rb"[A-Za-z0-9_.+-]{1,64}=")


@dataclass(frozen=True, slots=True)
class Place:
    """An environment whose CRC is right.

    Attributes:
        offset: Of its CRC.
        size: Bytes of its area, the CRC included.
        has_flags: It is of the redundant kind.
        byte_order: Of the CRC.
    """

    offset: int
    size: int
    has_flags: bool
    byte_order: ByteOrder


def find_at(content: bytes, offset: int, *, step: int = STEP) -> Place | None:
    """Return the largest environment that begins at an offset, of the kind without flags first.

    Args:
        content: Everything the EEPROM holds.
        offset: Of the CRC.
        step: Sizes are multiples of it, or go up to the end of the EEPROM.
    """
    for has_flags in (False, True):
        areas = list(_crcs(content, offset, CRC_SIZE + has_flags, step))
        for order in ByteOrder:
            stored = int.from_bytes(content[offset : offset + CRC_SIZE], order.value)
            sizes = [size for size, crc in areas if crc == stored]
            if sizes:
                return Place(offset, sizes[-1], has_flags, order)
    return None


def find_all(content: bytes) -> list[Place]:
    """Return the environments in an EEPROM, in the order of their offsets.

    Those whose size is a multiple of `STEP` are looked for first, and others only if there
    is none.
    """
    likely = [offset for offset, _ in looks_like_variables(content)]
    return _find(content, likely, STEP) or _find(content, likely[:2], 1)


def looks_like_variables(content: bytes) -> Iterator[tuple[int, bool]]:
    """Yield where environments may begin, and whether flags would precede the variables."""
    found = 0
    for offset in range(0, len(content), STEP):
        for has_flags in (False, True):
            if _VARIABLE.match(content, offset + CRC_SIZE + has_flags):
                yield offset, has_flags
                found += 1
                break
        if found == _MOST_PLACES:
            return


def compare_crc(content: bytes, place: Place, rule: str, report: Findings) -> None:
    """Check the CRC of an environment."""
    start, end = place.offset, place.offset + place.size
    crc = zlib.crc32(content[start + CRC_SIZE + place.has_flags : end])
    report.compare(
        start,
        rule,
        f"the CRC of an environment of {place.size} bytes",
        content[start : start + CRC_SIZE],
        crc.to_bytes(CRC_SIZE, place.byte_order.value),
    )


def _find(content: bytes, offsets: list[int], step: int) -> list[Place]:
    found: list[Place] = []
    for offset in offsets:
        if found and offset < found[-1].offset + found[-1].size:
            continue
        place = find_at(content, offset, step=step)
        if place is not None:
            found.append(place)
    return found


def _crcs(content: bytes, offset: int, head: int, step: int) -> Iterator[tuple[int, int]]:
    """Yield each possible size of an area with its CRC; all of the rest comes last."""
    end = len(content)
    start = offset + head
    last = end if step == STEP else min(end, offset + _LARGEST_ODD_SIZE)
    crc = 0
    for stop in [*range(offset + step, last, step), end]:
        crc = zlib.crc32(content[start:stop], crc)
        if stop > start:
            yield stop - offset, crc
        start = max(start, stop)
