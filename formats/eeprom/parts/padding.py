"""The bytes after the formatted part of an EEPROM: the tail, and fill bytes (E2)."""

from __future__ import annotations

from typing import Final

from formats.errors import FieldError

#: The byte in erased EEPROMs and flash memories.
BLANK: Final = 0xFF


def split_rest(rest: bytes, blank: int = BLANK) -> tuple[bytes, int]:
    """Return the tail and the fill byte that make up the bytes after the formatted part.

    Args:
        rest: All bytes after the formatted part.
        blank: The fill byte to return if there are none.
    """
    if not rest:
        return b"", blank
    fill = rest[-1]
    return rest.rstrip(bytes((fill,))), fill


def fill_up(content: bytes, size: int | None, *, tail: bytes = b"", fill: int = BLANK) -> bytes:
    """Return ``size`` bytes: the formatted part, the tail, and fill bytes.

    Args:
        content: The formatted part.
        size: Bytes of the EEPROM; None for as many as needed, without fill bytes.
        tail: The tail that `split_rest` returned.
        fill: Likewise.

    Raises:
        FieldError: It does not fit, or the tail ends with the fill byte.
    """
    if tail and tail[-1] == fill:
        raise FieldError("tail", "ends with the fill byte, which is added after it: leave it out")
    needed = len(content) + len(tail)
    if size is None:
        return content + tail
    if needed > size:
        raise FieldError("", f"{needed} bytes are needed, but the EEPROM has {size}")
    return (content + tail).ljust(size, bytes((fill,)))
