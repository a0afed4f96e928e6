"""Google VPD 2.0: names and values in a region of a Chrome device's flash (E-GVPD1 to 7)."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import Fill, Tail, UInt32
from formats.eeprom.parts.padding import BLANK, fill_up, split_rest
from formats.eeprom.parts.recognising import require_content, require_size
from formats.eeprom.parts.texts import LATIN1
from formats.errors import EmptyImageError, FieldError, ForeignImageError

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer
    from formats.eeprom.framework.codec import Findings

#: Where the pairs, or the header before them, are in a region.
OFFSET: Final = 0x600
_INFO: Final = b"\xfe\x09\x01gVpdInfo\x04"
_INFO_SIZE: Final = struct.Struct("<I")
_HEADER_SIZE: Final = len(_INFO) + _INFO_SIZE.size

_TERMINATOR, _STRING, _IMPLICIT_TERMINATOR = b"\x00", b"\x01", b"\xff"
#: Bytes that a length may take: 28 bits exceed the size of any flash.
_LENGTH_MOST: Final = 4
_KEY: Final = r"^[A-Za-z0-9_]+$(?!\n)"


@dataclass(frozen=True, slots=True, kw_only=True)
class GoogleVpd:
    """The content of a VPD region.

    Attributes:
        pairs: Values by their names, such as ``serial_number``, in their order; 00 at
            the end of a value is padding.
        has_info: There is a header with the size of the pairs, as there should be.
        info_size: The size in the header, if it is not that of pairs and terminator.
        is_terminated: There is a terminator; an erased byte after the pairs is one, too.
        front: The bytes before the header, without FF at their end: an SMBIOS entry
            point in old firmware.
        tail: The bytes after the formatted part.
        fill: The value of unused bytes.
    """

    pairs: Mapping[Annotated[str, Meta(pattern=_KEY)], Annotated[str, Meta(pattern=LATIN1)]] = (
        field(default_factory=dict)
    )
    has_info: bool = True
    info_size: UInt32 | None = None
    is_terminated: bool = True
    front: Annotated[bytes, Meta(max_length=OFFSET)] = b""
    tail: Tail = b""
    fill: Fill = BLANK


class _GoogleVpdCodec:
    name = "google-vpd"
    title = "Google VPD 2.0"
    model = GoogleVpd

    def decode(self, data: ReadableBuffer, report: Findings, /) -> GoogleVpd:
        content = bytes(data)
        require_content(content, "Google VPD", "E-GVPD1")
        require_size(content, OFFSET + 1, "the region of Google VPD", "E-GVPD1")
        start, stated = _header(content)
        end = len(content)
        if stated is not None and stated > end - start:
            report.problem(OFFSET, "E-GVPD2", f"its {stated} bytes do not fit into the region")
        elif stated is not None:
            end = start + stated
        pairs, at, is_whole = _read_pairs(content, start, end, report)
        after = content[at : at + 1]
        if is_whole and not after:
            report.problem(at, "E-GVPD5", "the terminator is missing")
        elif is_whole and after not in (_TERMINATOR, _IMPLICIT_TERMINATOR):
            report.problem(at, "E-GVPD2", "the pairs take more bytes than the size says")
        is_terminated = is_whole and after == _TERMINATOR
        at += is_terminated
        tail, fill = split_rest(content[at:])
        return GoogleVpd(
            pairs=pairs,
            has_info=stated is not None,
            info_size=None if stated == at - start else stated,
            is_terminated=is_terminated,
            front=content[:OFFSET].rstrip(bytes((BLANK,))),
            tail=tail,
            fill=fill,
        )

    def encode(self, model: GoogleVpd, size: int | None, /) -> bytes:
        validate(model)
        if model.front.endswith(bytes((BLANK,))):
            raise FieldError("front", "ends with ff, as unused bytes do: leave them out")
        pairs = b"".join(_pair(key, value) for key, value in model.pairs.items())
        body = pairs + (_TERMINATOR if model.is_terminated else b"")
        if not model.is_terminated and (model.tail or bytes((model.fill,)))[0] != BLANK:
            raise FieldError("is-terminated", "must be true if no ff follows")
        info = b""
        if model.has_info:
            if model.info_size == len(body):
                raise FieldError("info-size", "equals the size of the pairs: leave it out")
            stated = len(body) if model.info_size is None else model.info_size
            info = _INFO + _INFO_SIZE.pack(stated)
        elif model.info_size is not None:
            raise FieldError("info-size", "needs a header")
        elif not model.pairs:
            raise FieldError("has-info", "must be true if there are no pairs")
        front = model.front.ljust(OFFSET, bytes((BLANK,)))
        made = fill_up(front + info + body, size, tail=model.tail, fill=model.fill)
        most = len(made) - OFFSET - _HEADER_SIZE
        if model.info_size is not None and not len(pairs) <= model.info_size <= most:
            raise FieldError("info-size", f"must be {len(pairs)} to {most} here")
        return made


def _header(content: bytes) -> tuple[int, int | None]:
    """Return where the pairs begin, and their size according to the header (E-GVPD1, 2).

    Raises:
        EmptyImageError: The region is blank.
        ForeignImageError: The region holds other data.
        TruncatedImageError: The header is cut short.
    """
    if content.startswith(_INFO, OFFSET):
        start = OFFSET + _HEADER_SIZE
        require_size(content, start, "the header of Google VPD", "E-GVPD2")
        return start, _INFO_SIZE.unpack_from(content, start - _INFO_SIZE.size)[0]
    first = content[OFFSET : OFFSET + 1]
    if first in (_TERMINATOR, _IMPLICIT_TERMINATOR):
        raise EmptyImageError("the region has no Google VPD", offset=OFFSET, rule="E-GVPD1")
    if first != _STRING:
        raise ForeignImageError("the region has no Google VPD", offset=OFFSET, rule="E-GVPD1")
    return OFFSET, None


def _read_pairs(
    content: bytes, at: int, end: int, report: Findings
) -> tuple[dict[str, str], int, bool]:
    """Return the pairs, the offset after them, and whether they end correctly."""
    pairs: dict[str, str] = {}
    while at < end and content[at : at + 1] not in (_TERMINATOR, _IMPLICIT_TERMINATOR):
        if content[at : at + 1] != _STRING:
            report.problem(at, "E-GVPD3", f"type {content[at]:#04x} is not that of a pair")
            return pairs, at, False
        key, after_key = _read_counted(content, at + 1, end, report)
        value, after = _read_counted(content, after_key, end, report)
        if key is None or value is None:
            report.problem(at, "E-GVPD3", "a pair does not end inside the region")
            return pairs, at, False
        name = key.decode("latin-1")
        if not re.search(_KEY, name):
            report.problem(at, "E-GVPD6", f"{name!r} is not a name of letters, digits and _")
        if name in pairs:
            report.problem(at, "E-GVPD6", f"{name} occurs twice, and readers find only the first")
        pairs.setdefault(name, value.decode("latin-1"))
        at = after
    return pairs, at, True


def _read_counted(content: bytes, at: int, end: int, report: Findings) -> tuple[bytes | None, int]:
    """Return the bytes that follow a length, and the offset after them (E-GVPD4).

    None stands for bytes that do not fit.
    """
    length = 0
    for index, octet in enumerate(content[at : min(end, at + _LENGTH_MOST)]):
        if index == 0 and octet == 0x80:
            report.problem(at, "E-GVPD4", "a length takes more bytes than it needs")
        length = length << 7 | octet & 0x7F
        if not octet & 0x80:
            start = at + index + 1
            if start + length <= end:
                return content[start : start + length], start + length
            break
    return None, end


def _pair(key: str, value: str) -> bytes:
    """Return a pair as it is stored (E-GVPD3)."""
    return _STRING + _counted(key.encode("latin-1")) + _counted(value.encode("latin-1"))


def _counted(content: bytes) -> bytes:
    """Return bytes after their number, most significant seven bits first (E-GVPD4)."""
    octets = [len(content) & 0x7F]
    while rest := len(content) >> 7 * len(octets):
        octets.append(0x80 | rest & 0x7F)
    return bytes(reversed(octets)) + content


CODEC: Final = _GoogleVpdCodec()
