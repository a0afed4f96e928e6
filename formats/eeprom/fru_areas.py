"""The areas of an IPMI FRU that hold fields: chassis, board and product (E-FRU4 to E-FRU7)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

from msgspec import Meta

from formats.eeprom.framework.annotations import kebab
from formats.eeprom.framework.limits import UInt8
from formats.eeprom.fru_text import END_OF_FIELDS, Text, decode_text, encode_text
from formats.eeprom.parts.checksums import check_zero_sum, zero_sum
from formats.errors import FieldError

if TYPE_CHECKING:
    from formats.eeprom.framework.codec import Findings

#: Offsets and sizes of areas are multiples of this, in bytes.
UNIT: Final = 8
_MOST: Final = 0xFF * UNIT

Offset = Annotated[int, Meta(ge=UNIT, le=_MOST, multiple_of=UNIT)]
_Size = Annotated[int, Meta(ge=UNIT, le=_MOST, multiple_of=UNIT)]

_VERSION: Final = 1
_ENGLISH: Final = (0, 25)
_EPOCH: Final = datetime(1996, 1, 1, tzinfo=UTC)
_MINUTE: Final = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoArea:
    """An area with fields.

    Attributes:
        offset: Where it begins; None directly after the area before it.
        size: Bytes; None for as few as it needs.
        padding: The bytes between the fields and the checksum, without zeros at the end.
        custom: The fields after those with names.
    """

    offset: Offset | None = None
    size: _Size | None = None
    padding: Annotated[
        bytes, Meta(description="the bytes after the fields, without zeros at the end")
    ] = b""
    custom: tuple[Text, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChassisInfo(InfoArea):
    """The chassis. `chassis_type` is as in SMBIOS, such as 23 for a rack mount chassis."""

    chassis_type: UInt8
    part_number: Text = ""
    serial_number: Text = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardInfo(InfoArea):
    """The board. `language` is 0 for English; without `mfg_date_time` the date is not known."""

    language: UInt8 = 0
    mfg_date_time: Annotated[datetime, Meta(tz=True)] | None = None
    manufacturer: Text = ""
    product_name: Text = ""
    serial_number: Text = ""
    part_number: Text = ""
    fru_file_id: Text = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductInfo(InfoArea):
    """The product. `language` is 0 for English."""

    language: UInt8 = 0
    manufacturer_name: Text = ""
    product_name: Text = ""
    part_model_number: Text = ""
    version: Text = ""
    serial_number: Text = ""
    asset_tag: Text = ""
    fru_file_id: Text = ""


A = TypeVar("A", bound=InfoArea)

#: The fields with names, in their order, and whether each is in the area's language.
_FIELDS: Final[dict[type[InfoArea], dict[str, bool]]] = {
    ChassisInfo: {"part_number": False, "serial_number": False},
    BoardInfo: {
        "manufacturer": True,
        "product_name": True,
        "serial_number": False,
        "part_number": False,
        "fru_file_id": False,
    },
    ProductInfo: {
        "manufacturer_name": True,
        "product_name": True,
        "part_model_number": False,
        "version": True,
        "serial_number": False,
        "asset_tag": True,
        "fru_file_id": False,
    },
}


def encode_area(area: ChassisInfo | BoardInfo | ProductInfo, name: str) -> bytes:
    """Return an area's bytes.

    Args:
        area: Checked against its limits.
        name: Of the area, for messages.

    Raises:
        FieldError: It cannot be written.
    """
    body = bytes((_VERSION, 0))
    language = 0
    if isinstance(area, ChassisInfo):
        body += bytes((area.chassis_type,))
    else:
        language = area.language
        body += bytes((language,))
    if isinstance(area, BoardInfo):
        body += _encode_date(area.mfg_date_time, f"{name}.mfg-date-time")
    is_unicode = language not in _ENGLISH
    for field, translated in _FIELDS[type(area)].items():
        path = f"{name}.{kebab(field)}"
        body += encode_text(getattr(area, field), path, is_unicode=is_unicode and translated)
    for number, text in enumerate(area.custom):
        body += encode_text(text, f"{name}.custom[{number}]", is_unicode=is_unicode)
    body += bytes((END_OF_FIELDS,)) + area.padding
    if area.padding.endswith(b"\x00"):
        raise FieldError(
            f"{name}.padding", "ends with a zero, but zeros are added after it: leave them out"
        )
    needed = -(-(len(body) + 1) // UNIT) * UNIT
    size = area.size or needed
    if needed > min(size, _MOST):
        raise FieldError(
            f"{name}.size" if area.size else name,
            f"{needed} bytes are needed, but there are {min(size, _MOST)}",
        )
    whole = (body[:1] + bytes((size // UNIT,)) + body[2:]).ljust(size - 1, b"\x00")
    return whole + bytes((zero_sum(whole),))


def decode_area(kind: type[A], data: bytes, start: int, report: Findings) -> tuple[A, int]:
    """Return the area at an offset that is in the data, and the offset after it."""
    values: dict[str, Any] = {}
    if data[start] != _VERSION:
        report.problem(start, "E-FRU4", f"an area has version {data[start]}, not 1")
    size = data[start + 1] * UNIT if start + 1 < len(data) else 0
    end = start + size
    if not size or end > len(data):
        report.problem(start + 1, "E-FRU4", f"an area has {size} bytes, and does not fit")
        end = len(data)
    else:
        check_zero_sum(data[start:end], end - 1, "E-FRU4", "the checksum of an area", report)
    position, fields_end = start + 3, end - 1
    language = 0
    head = data[start + 2 : min(start + 6, end)].ljust(4, b"\x00")
    if kind is ChassisInfo:
        values["chassis_type"] = head[0]
    else:
        language = values["language"] = head[0]
    if kind is BoardInfo:
        position += 3
        minutes = int.from_bytes(head[1:], "little")
        values["mfg_date_time"] = _EPOCH + minutes * _MINUTE if minutes else None
    texts: list[Text] = []
    names = list(_FIELDS[kind].items())
    ended = False
    while position < fields_end and not ended:
        first = data[position]
        ended = first == END_OF_FIELDS
        content = data[position + 1 : min(position + 1 + (first & 0x3F), fields_end)]
        if ended:
            position += 1
            break
        if len(content) < first & 0x3F:
            report.problem(position, "E-FRU5", "a field continues beyond the end of its area")
        translated = names[len(texts)][1] if len(texts) < len(names) else True
        is_unicode = translated and language not in _ENGLISH
        texts.append(decode_text(first >> 6, content, position, report, is_unicode=is_unicode))
        position += 1 + len(content)
    if not ended:
        report.problem(position, "E-FRU7", "the fields have no end marker")
    if len(texts) < len(names):
        report.problem(position, "E-FRU7", f"there are {len(texts)} fields, not {len(names)}")
    values |= {name: text for (name, _), text in zip(names, texts, strict=False)}
    values["custom"] = tuple(texts[len(names) :])
    padding = data[position:fields_end].rstrip(b"\x00")
    needed = -(-(position - start + len(padding) + 1) // UNIT) * UNIT
    if needed != size:
        values["size"] = size
    values["padding"] = padding
    return kind(**values), end


def _encode_date(date: datetime | None, path: str) -> bytes:
    if date is None:
        return bytes(3)
    minutes, rest = divmod(date - _EPOCH, _MINUTE)
    if rest or not 0 < minutes <= 0xFF_FFFF:
        raise FieldError(
            path, f"must be a whole minute from 1996-01-01 00:01 UTC to {_LATEST:%Y-%m-%d %H:%M}"
        )
    return minutes.to_bytes(3, "little")


_LATEST: Final = _EPOCH + 0xFF_FFFF * _MINUTE
