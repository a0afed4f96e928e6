"""Pieces at offsets of their own in an EEPROM, and the bytes between and after them (E2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from formats.errors import FieldError


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """Bytes outside of the pieces, as they are stored.

    Attributes:
        offset: Of the first byte that is not a fill byte.
        data: Up to the last byte that is not a fill byte.
    """

    offset: Annotated[int, Meta(ge=0)]
    data: Annotated[bytes, Meta(min_length=1)]


def read_gaps(content: bytes, taken: list[tuple[int, int]], fill: int) -> tuple[Other, ...]:
    """Return the bytes outside of pieces, without fill bytes.

    Args:
        content: Everything the EEPROM holds.
        taken: The beginning and the end of each piece, in their order.
        fill: The byte that stands for nothing.
    """
    blank = bytes((fill,))
    others = []
    ends = [0, *(end for _, end in taken)]
    begins = [*(begin for begin, _ in taken), len(content)]
    for end, begin in zip(ends, begins, strict=True):
        gap = content[end:begin].rstrip(blank)
        data = gap.lstrip(blank)
        if data:
            others.append(Other(offset=end + len(gap) - len(data), data=data))
    return tuple(others)


def check_gaps(others: tuple[Other, ...], taken: list[tuple[int, int]], fill: int) -> None:
    """Check that `read_gaps` would return these bytes.

    Raises:
        FieldError: It would not.
    """
    last = -1
    for number, other in enumerate(others):
        if fill in (other.data[0], other.data[-1]):
            raise FieldError(f"other[{number}].data", "begins or ends with the fill byte")
        gap = max([end for _, end in taken if end <= other.offset], default=0)
        if gap <= last:
            raise FieldError(
                f"other[{number}]",
                "is in the same gap as the one before, or not in order: give them as one",
            )
        last = gap


def lay_out(pieces: list[tuple[int, bytes, str]], size: int | None, fill: int) -> bytes:
    """Return an EEPROM with pieces at their offsets, and fill bytes between them.

    Args:
        pieces: Offset, bytes and path of the field, in any order.
        size: Bytes of the EEPROM; None for as many as needed.
        fill: The byte for all others.

    Raises:
        FieldError: They overlap, or do not fit.
    """
    end = max(offset + len(piece) for offset, piece, _ in pieces)
    if size is not None and end > size:
        raise FieldError("", f"{end} bytes are needed, but the EEPROM has {size}")
    image = bytearray(bytes((fill,)) * (end if size is None else size))
    taken = 0
    for offset, piece, path in sorted(pieces):
        if offset < taken:
            raise FieldError(path, f"begins at {offset}, but the bytes before it end at {taken}")
        image[offset : offset + len(piece)] = piece
        taken = offset + len(piece)
    return bytes(image)


def others_as_pieces(others: tuple[Other, ...]) -> list[tuple[int, bytes, str]]:
    """Return them as `lay_out` takes them."""
    return [(other.offset, other.data, f"other[{number}]") for number, other in enumerate(others)]
