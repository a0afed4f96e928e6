"""The SPD of JEDEC's memory modules, as far as all generations share it (E-SPD1 to 8).

`spd_ddr3`, `spd_ddr4` and `spd_ddr5` hold the layouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Generic, TypeVar

from msgspec import Meta

from formats.devices.device import ReadableBuffer
from formats.eeprom.framework.annotations import kebab
from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import UInt8
from formats.eeprom.parts.checksums import crc16_xmodem
from formats.eeprom.parts.recognising import require_content, require_size
from formats.eeprom.parts.texts import is_printable
from formats.errors import FieldError, ForeignImageError

#: Two bytes of JEP-106: the number of its continuations, and the code.
ManufacturerId = Annotated[
    bytes,
    Meta(min_length=2, max_length=2, description="as in JEP-106, such as 80CE"),
]
Year = Annotated[int, Meta(ge=2000, le=2099)]
Week = Annotated[int, Meta(ge=0, le=53, description="0 if it is not given")]
SerialNumber = Annotated[bytes, Meta(min_length=4, max_length=4)]
#: Printable ASCII that does not end with a space; spaces fill the unused bytes.
PART_NUMBER: Final = r"^([ -~]*[!-~])?$(?!\n)"

_MEMORY_TYPE_AT: Final = 2
_MEMORY_TYPES: Final = {
    0x08: "DDR2 SDRAM",
    0x0B: "DDR3 SDRAM",
    0x0C: "DDR4 SDRAM",
    0x0E: "DDR4E SDRAM",
    0x0F: "LPDDR3 SDRAM",
    0x10: "LPDDR4 SDRAM",
    0x11: "LPDDR4X SDRAM",
    0x12: "DDR5 SDRAM",
    0x13: "LPDDR5 SDRAM",
    0x14: "DDR5 NVDIMM-P",
    0x15: "LPDDR5X SDRAM",
}
#: Identifiers that a module does not state.
_UNSTATED: Final = (b"\x00\x00", b"\xff\xff")
_NO_DATE: Final = b"\xff\xff"
_CENTURY: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class SpdModule:
    """The identification of a module.

    Attributes:
        module_manufacturer_id_code: Who made the module.
        module_manufacturing_location: The manufacturer's own code.
        module_manufacturing_year: None if year and week were never written.
        module_manufacturing_week: Likewise; 0 if it is not given.
        module_serial_number: The manufacturer's own; tools show it in hexadecimal.
        module_part_number: As on the label.
        module_part_number_octets: The bytes of the part number, instead of the text, if
            they are not text filled up with spaces.
        dram_manufacturer_id_code: Who made the memory on it.
    """

    module_manufacturer_id_code: ManufacturerId = b"\x00\x00"
    module_manufacturing_location: UInt8 = 0
    module_manufacturing_year: Year | None = None
    module_manufacturing_week: Week | None = None
    module_serial_number: SerialNumber = bytes(4)
    module_part_number: str = ""
    module_part_number_octets: bytes | None = None
    dram_manufacturer_id_code: ManufacturerId = b"\x00\x00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The layout of one generation's SPD; numbers are offsets.

    Attributes:
        title: Its name in messages.
        size: Bytes of the whole SPD.
        memory_types: Possible values of byte 2.
        part_number: Its first byte, and the one after it.
        numbers: Fields that are numbers, and where they are.
        kept: Fields that are kept as they are, and where they are.
        has_coverage_bit: Bit 7 of byte 0 says that the first CRC ends before the
            identification of the module.
        checksums: The first byte covered, the one after the last, and where the CRC is.
        hint: What to do if the data is cut short.
    """

    title: str
    size: int
    memory_types: tuple[int, ...]
    module_manufacturer: int
    date: int
    serial_number: int
    part_number: tuple[int, int]
    dram_manufacturer: int
    numbers: dict[str, tuple[int, int]]
    kept: dict[str, tuple[int, int]]
    checksums: tuple[tuple[int, int, int], ...]
    has_coverage_bit: bool = False
    hint: str | None = None


M = TypeVar("M", bound=SpdModule)


class SpdCodec(Generic[M]):
    """The SPD of one generation."""

    def __init__(self, name: str, model: type[M], layout: Layout) -> None:
        self.name = name
        self.title = f"SPD of {layout.title} modules"
        self.model = model
        self._layout = layout

    def decode(self, data: ReadableBuffer, report: Findings, /) -> M:
        content, layout = bytes(data), self._layout
        require_content(content, self.title, "E-SPD1")
        require_size(content, _MEMORY_TYPE_AT + 1, f"the {self.title}", "E-SPD1")
        memory_type = content[_MEMORY_TYPE_AT]
        if memory_type not in layout.memory_types:
            kind = _MEMORY_TYPES.get(memory_type, "another kind")
            raise ForeignImageError(
                f"the data is not {self.title}: memory type {memory_type:#04x} is {kind}",
                offset=_MEMORY_TYPE_AT,
                rule="E-SPD1",
            )
        require_size(content, layout.size, f"the {self.title}", "E-SPD1", hint=layout.hint)
        if len(content) > layout.size:
            report.problem(layout.size, "E-SPD1", f"it continues after its {layout.size} bytes")
        for start, end, at in self._checksums(content):
            crc = crc16_xmodem(content[start:end]).to_bytes(2, "little")
            what = f"the CRC of bytes {start} to {end - 1}"
            report.compare(at, "E-SPD2", what, content[at : at + 2], crc)
        values: dict[str, Any] = {
            name: int.from_bytes(content[start:end], "big")
            for name, (start, end) in layout.numbers.items()
        }
        values |= {name: content[start:end] for name, (start, end) in layout.kept.items()}
        year, week = _read_date(content[layout.date : layout.date + 2], layout.date, report)
        part, octets = _read_part(content[slice(*layout.part_number)])
        return self.model(
            **values,
            module_manufacturer_id_code=_read_id(content, layout.module_manufacturer, report),
            module_manufacturing_year=year,
            module_manufacturing_week=week,
            module_serial_number=content[layout.serial_number : layout.serial_number + 4],
            module_part_number=part,
            module_part_number_octets=octets,
            dram_manufacturer_id_code=_read_id(content, layout.dram_manufacturer, report),
        )

    def encode(self, model: M, size: int | None, /) -> bytes:
        validate(model)
        layout = self._layout
        if size not in (None, layout.size):
            raise FieldError("", f"the {self.title} must have {layout.size} bytes, not {size}")
        made = bytearray(layout.size)
        for name, (start, end) in layout.kept.items():
            made[start:end] = getattr(model, name)
        if made[_MEMORY_TYPE_AT] not in layout.memory_types:
            raise FieldError(
                kebab(next(iter(layout.kept))),
                f"byte 2, the memory type, is not that of {layout.title}",
            )
        for name, (start, end) in layout.numbers.items():
            made[start:end] = getattr(model, name).to_bytes(end - start, "big")
        for name, at in (
            ("module_manufacturer_id_code", layout.module_manufacturer),
            ("dram_manufacturer_id_code", layout.dram_manufacturer),
        ):
            identifier = getattr(model, name)
            if not _is_id(identifier):
                raise FieldError(kebab(name), "does not have odd parity in each byte")
            made[at : at + 2] = identifier
        made[layout.date : layout.date + 2] = _date(model)
        made[layout.serial_number : layout.serial_number + 4] = model.module_serial_number
        made[slice(*layout.part_number)] = _part(model, *layout.part_number)
        for start, end, at in self._checksums(made):
            crc = crc16_xmodem(made[start:end])
            made[at : at + 2] = crc.to_bytes(2, "little")
        return bytes(made)

    def _checksums(self, content: bytes | bytearray) -> list[tuple[int, int, int]]:
        """Return the range that each CRC covers, and where it is (E-SPD2, E-SPD3)."""
        found = list(self._layout.checksums)
        if self._layout.has_coverage_bit and content[0] & 0x80:
            start, _, at = found[0]
            found[0] = start, 117, at
        return found


def _is_id(identifier: bytes) -> bool:
    """Say whether JEP-106 could have assigned it (E-SPD4)."""
    return identifier in _UNSTATED or all(octet.bit_count() & 1 for octet in identifier)


def _read_id(content: bytes, at: int, report: Findings) -> bytes:
    identifier = content[at : at + 2]
    if not _is_id(identifier):
        report.problem(at, "E-SPD4", f"{identifier.hex()} does not have odd parity in each byte")
    return identifier


def _read_date(octets: bytes, at: int, report: Findings) -> tuple[int | None, int | None]:
    """Return year and week, from two bytes of binary-coded decimals (E-SPD5)."""
    if octets == _NO_DATE:
        return None, None
    digits = octets.hex()
    if not digits.isdecimal() or int(digits[2:]) > 53:
        report.problem(at, "E-SPD5", f"{digits} is not a year and week")
        return None, None
    return _CENTURY + int(digits[:2]), int(digits[2:])


def _date(model: SpdModule) -> bytes:
    year, week = model.module_manufacturing_year, model.module_manufacturing_week
    if year is None and week is None:
        return _NO_DATE
    if year is None or week is None:
        raise FieldError(
            "module-manufacturing-week", "and the year must be given together, or neither of them"
        )
    return bytes.fromhex(f"{year - _CENTURY:02}{week:02}")


def _read_part(octets: bytes) -> tuple[str, bytes | None]:
    """Return the part number as text, or as bytes if it is not text (E-SPD6)."""
    text = octets.rstrip(b" ")
    return (text.decode("ascii"), None) if is_printable(text) else ("", octets)


def _part(model: SpdModule, start: int, end: int) -> bytes:
    octets = model.module_part_number_octets
    if octets is None:
        return model.module_part_number.encode("ascii").ljust(end - start, b" ")
    if model.module_part_number:
        raise FieldError("module-part-number", "and its octets are both given: give one of them")
    if len(octets) != end - start:
        raise FieldError("module-part-number-octets", f"must have {end - start} bytes")
    if is_printable(octets):
        raise FieldError("module-part-number-octets", "is text: give it as module-part-number")
    return octets
