"""What an EEPROM holds behind its formatted part: the tail, and fill bytes (E2)."""

from __future__ import annotations

from typing import Final

from formats.errors import FieldError

#: What erased EEPROMs and flash memories hold.
BLANK: Final = 0xFF


def split_rest(rest: bytes, blank: int = BLANK) -> tuple[bytes, int]:
    """Return the tail and the fill byte that make up what is behind the formatted part.

    Args:
        rest: All of it.
        blank: The fill byte of nothing.
    """
    if not rest:
        return b"", blank
    fill = rest[-1]
    return rest.rstrip(bytes((fill,))), fill


def fill_up(content: bytes, size: int | None, *, tail: bytes = b"", fill: int = BLANK) -> bytes:
    """Return ``size`` bytes: the formatted part, the tail, and fill bytes.

    Args:
        content: The formatted part.
        size: Bytes of the EEPROM; None for what there is, without fill bytes.
        tail: What `split_rest` returned.
        fill: Likewise.

    Raises:
        FieldError: It does not fit, or the tail ends with the fill byte.
    """
    if tail and tail[-1] == fill:
        raise FieldError("tail", "ends with the fill byte, which follows it by itself")
    needed = len(content) + len(tail)
    if size is None:
        return content + tail
    if needed > size:
        raise FieldError("", f"{needed} bytes are needed, and the EEPROM has {size}")
    return (content + tail).ljust(size, bytes((fill,)))
