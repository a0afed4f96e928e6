"""EDID: the identification of a display, and its CTA blocks (E-EDID1 to E-EDID10)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, Any, Final

from msgspec import Meta

from formats.devices.device import ReadableBuffer
from formats.eeprom.edid_descriptors import (
    AlphanumericDataString,
    DetailedTiming,
    DisplayDescriptor,
    DisplayProductName,
    DisplayProductSerialNumber,
    decode_descriptors,
    encode_descriptors,
)
from formats.eeprom.edid_extensions import (
    BLOCK_SIZE,
    CtaExtension,
    Extension,
    check_sum,
    decode_extension,
    encode_extension,
    with_checksum,
)
from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import Fill, Tail, UInt8, UInt16, UInt32
from formats.eeprom.parts.padding import BLANK, fill_up, split_rest
from formats.eeprom.parts.recognising import require_signature, require_size
from formats.errors import FieldError, UnsupportedError

_SIGNATURE: Final = b"\x00\xff\xff\xff\xff\xff\xff\x00"
#: Signature, manufacturer, product, serial number, week, year, version, revision, basic
#: parameters, colours, established and standard timings, descriptors, extensions, Σ.
_BASE: Final = struct.Struct(">8sH2s4sBBBB5s10s3s16s72sBB")
_MANUFACTURER_AT: Final = 8
_WEEK_AT: Final = 16
_DESCRIPTORS_AT: Final = 54
_COUNT_AT: Final = 126
_VERSION: Final = 1
_FIRST_YEAR: Final = 1990
_LAST_WEEK: Final = 54
_MODEL_YEAR: Final = 0xFF

Year = Annotated[int, Meta(ge=_FIRST_YEAR, le=_FIRST_YEAR + 0xFF)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edid:
    """A display's identification.

    Attributes:
        id_manufacturer_name: The three letters of its PNP ID.
        id_product_code: The manufacturer's own.
        id_serial_number: 0 where it is not given.
        week_of_manufacture: 0 where it is not given.
        year_of_manufacture: Instead of `model_year`.
        model_year: Of a display that does not say when it was manufactured.
        version: Of EDID; 1.
        revision: Of EDID; 4 is the last.
        basic_display_parameters: Bytes 20 to 24.
        color_characteristics: Bytes 25 to 34.
        established_timings: Bytes 35 to 37.
        standard_timings: Bytes 38 to 53, two each; 0101 is unused.
        descriptors: Of 18 bytes, up to four; dummies fill them up.
        extensions: Further blocks.
        tail: The bytes after the formatted part.
        fill: The value of unused bytes.
    """

    id_manufacturer_name: Annotated[str, Meta(pattern=r"^[A-Z]{3}$(?!\n)")]
    id_product_code: UInt16
    id_serial_number: UInt32 = 0
    week_of_manufacture: Annotated[int, Meta(ge=0, le=_LAST_WEEK)] = 0
    year_of_manufacture: Year | None = None
    model_year: Year | None = None
    version: Annotated[int, Meta(ge=_VERSION, le=_VERSION)] = _VERSION
    revision: UInt8 = 4
    basic_display_parameters: Annotated[bytes, Meta(min_length=5, max_length=5)]
    color_characteristics: Annotated[bytes, Meta(min_length=10, max_length=10)]
    established_timings: Annotated[bytes, Meta(min_length=3, max_length=3)] = bytes(3)
    standard_timings: Annotated[bytes, Meta(min_length=16, max_length=16)] = b"\x01" * 16
    descriptors: Annotated[
        tuple[
            DetailedTiming
            | DisplayProductName
            | DisplayProductSerialNumber
            | AlphanumericDataString
            | DisplayDescriptor,
            ...,
        ],
        Meta(max_length=4),
    ] = ()
    extensions: Annotated[tuple[CtaExtension | Extension, ...], Meta(max_length=255)] = ()
    tail: Tail = b""
    fill: Fill = BLANK


class _EdidCodec:
    name = "edid"
    title = "EDID"
    model = Edid

    def decode(self, data: ReadableBuffer, report: Findings, /) -> Edid:
        content = bytes(data)
        require_signature(content, _SIGNATURE, "EDID", "E-EDID1")
        require_size(content, BLOCK_SIZE, "the EDID", "E-EDID1")
        (_, maker, product, serial, week, year, version, revision, *kept, descriptors, count, _) = (
            _BASE.unpack_from(content)
        )
        if version != _VERSION:
            raise UnsupportedError(
                f"this is EDID {version}.{revision}", feature="EDID other than 1.x"
            )
        check_sum(content, 0, report)
        end = BLOCK_SIZE * (1 + count)
        if end > len(content):
            report.problem(
                _COUNT_AT, "E-EDID6", f"{end} bytes are announced, but there are {len(content)}"
            )
            end = len(content) - len(content) % BLOCK_SIZE
        tail, fill = split_rest(content[end:])
        basic, colors, established, standard = kept
        return Edid(
            id_manufacturer_name=_read_letters(maker, report),
            id_product_code=int.from_bytes(product, "little"),
            id_serial_number=int.from_bytes(serial, "little"),
            **_read_date(week, year, report),
            revision=revision,
            basic_display_parameters=basic,
            color_characteristics=colors,
            established_timings=established,
            standard_timings=standard,
            descriptors=decode_descriptors(descriptors, _DESCRIPTORS_AT, report),
            extensions=tuple(
                decode_extension(content, at, report) for at in range(BLOCK_SIZE, end, BLOCK_SIZE)
            ),
            tail=tail,
            fill=fill,
        )

    def encode(self, model: Edid, size: int | None, /) -> bytes:
        validate(model)
        week, year = _date(model)
        base = _BASE.pack(
            _SIGNATURE,
            _letters(model.id_manufacturer_name),
            model.id_product_code.to_bytes(2, "little"),
            model.id_serial_number.to_bytes(4, "little"),
            week,
            year,
            model.version,
            model.revision,
            model.basic_display_parameters,
            model.color_characteristics,
            model.established_timings,
            model.standard_timings,
            encode_descriptors(model.descriptors),
            len(model.extensions),
            0,
        )
        blocks = [
            encode_extension(extension, f"extensions[{index}]")
            for index, extension in enumerate(model.extensions)
        ]
        made = with_checksum(base) + b"".join(blocks)
        return fill_up(made, size, tail=model.tail, fill=model.fill)


def _read_letters(packed: int, report: Findings) -> str:
    """Return three letters of five bits each, A being 1 (E-EDID3)."""
    letters = [packed >> shift & 0x1F for shift in (10, 5, 0)]
    if packed >> 15 or not all(1 <= letter <= 26 for letter in letters):
        report.problem(_MANUFACTURER_AT, "E-EDID3", f"{packed:#06x} is not a manufacturer")
    return "".join(chr(0x40 + letter) for letter in letters)


def _letters(name: str) -> int:
    first, second, third = (ord(letter) - 0x40 for letter in name)
    return first << 10 | second << 5 | third


def _read_date(week: int, year: int, report: Findings) -> dict[str, Any]:
    """Return the fields that say when it was made (E-EDID4)."""
    if week == _MODEL_YEAR:
        return {"model_year": _FIRST_YEAR + year}
    if week > _LAST_WEEK:
        report.problem(_WEEK_AT, "E-EDID4", f"{week} is not a week")
    return {"week_of_manufacture": week, "year_of_manufacture": _FIRST_YEAR + year}


def _date(model: Edid) -> tuple[int, int]:
    if (model.year_of_manufacture is None) == (model.model_year is None):
        raise FieldError("year-of-manufacture", "or model-year must be given, and not both")
    if model.year_of_manufacture is not None:
        return model.week_of_manufacture, model.year_of_manufacture - _FIRST_YEAR
    assert model.model_year is not None
    if model.week_of_manufacture:
        raise FieldError("week-of-manufacture", "cannot be given together with model-year")
    return _MODEL_YEAR, model.model_year - _FIRST_YEAR


CODEC: Final = _EdidCodec()
