"""Resources and keywords, the parts of PCI VPD and IBM's keyword VPD (E-PCI1, E-PCI2).

A resource is a tag, a length and content. Some have keywords as their content:
two characters, a length byte and a value each.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from formats.errors import FieldError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from formats.eeprom.framework.codec import Findings

IDENTIFIER: Final = 0x82

#: Two characters that name a value.
KeywordName = Annotated[str, Meta(pattern="^[!-~]{2}$")]
KeywordValue = Annotated[str, Meta(max_length=255, pattern=r"^[\x00-\xff]*$")]
Identifier = Annotated[
    str, Meta(max_length=0xFFFF, pattern=r"^[\x00-\xff]*$", description="product name")
]

_LARGE: Final = 0x80
_LENGTH: Final = struct.Struct("<H")


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource and where it lies; offsets in bytes.

    Attributes:
        tag: A large resource's first byte; a small one's without its length.
        offset: Of the tag.
        start: Of the content.
        end: Of the first byte after it.
    """

    tag: int
    offset: int
    start: int
    end: int


def read_resource(data: bytes, offset: int, report: Findings, rule: str) -> Resource | None:
    """Return the resource at an offset, cut at the end of the data; None at the end."""
    if offset >= len(data):
        return None
    first = data[offset]
    if first & _LARGE:
        start = offset + 3
        if start > len(data):
            report.problem(offset, rule, "the data ends inside a resource's length")
            return None
        tag, end = first, start + _LENGTH.unpack_from(data, offset + 1)[0]
    else:
        start = offset + 1
        tag, end = first & ~7, start + (first & 7)
    if end > len(data):
        report.problem(
            offset, rule, f"resource {tag:#04x} ends {end - len(data)} bytes beyond the data"
        )
        end = len(data)
    return Resource(tag, offset, start, end)


def large_resource(tag: int, content: bytes, path: str) -> bytes:
    """Return a large resource's bytes.

    Raises:
        FieldError: The content is too long; the error has ``path``.
    """
    if len(content) > 0xFFFF:
        raise FieldError(path, f"needs {len(content)} bytes, but at most 65535 are possible")
    return bytes((tag,)) + _LENGTH.pack(len(content)) + content


def read_keywords(
    data: bytes, start: int, end: int, report: Findings, rule: str
) -> list[tuple[str, int, bytes]]:
    """Return the keywords in a range: name, offset and value of each."""
    found: list[tuple[str, int, bytes]] = []
    names = set()
    while start < end:
        if start + 3 > end or start + 3 + data[start + 2] > end:
            report.problem(start, rule, "a keyword continues beyond the end of its resource")
            break
        name = data[start : start + 2].decode("latin-1")
        if not all("!" <= character <= "~" for character in name):
            report.problem(start, rule, f"{name!r} is not the name of a keyword")
        following = start + 3 + data[start + 2]
        if name in names:
            report.problem(start, rule, f"keyword {name!r} occurs twice")
        else:
            names.add(name)
            found.append((name, start, data[start + 3 : following]))
        start = following
    return found


def encode_keyword(name: str, value: bytes) -> bytes:
    """Return a keyword's bytes; the value has at most 255."""
    return name.encode("latin-1") + bytes((len(value),)) + value


def encode_keywords(keywords: Mapping[str, str]) -> bytes:
    """Return the bytes of keywords with text, in their order."""
    return b"".join(
        encode_keyword(name, value.encode("latin-1")) for name, value in keywords.items()
    )
