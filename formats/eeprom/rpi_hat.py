"""The identification of Raspberry Pi HATs and HAT+ boards (E-HAT1 to E-HAT10)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, Final

from msgspec import Meta

from formats.devices.device import ReadableBuffer
from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import Fill, Tail, UInt16, UInt32
from formats.eeprom.parts.checksums import crc16_arc
from formats.eeprom.parts.ordering import Part, arrange, stated_order
from formats.eeprom.parts.padding import BLANK, fill_up, split_rest
from formats.eeprom.parts.recognising import require_signature, require_size
from formats.eeprom.rpi_hat_atoms import (
    GPIO_BANK_0_PINS,
    GPIO_BANK_1_PINS,
    GpioMap,
    VendorInfo,
    decode_gpio_map,
    decode_vendor_info,
    encode_gpio_map,
    encode_vendor_info,
)
from formats.errors import FieldError, FormatError, UnsupportedError

_SIGNATURE: Final = b"R-Pi"
_HEADER: Final = struct.Struct("<4sBBHI")  # signature, version, reserved, atoms, length
_ATOM: Final = struct.Struct("<HHI")  # type, count, length of data and CRC
_CRC_SIZE: Final = 2
_POWER_SUPPLY: Final = struct.Struct("<I")

_HAT, _HAT_PLUS = 1, 2


class _Kind(IntEnum):
    """The types of atoms that have a name."""

    VENDOR_INFO = 1
    GPIO_BANK_0 = 2
    DT_BLOB = 3
    CUSTOM_DATA = 4
    GPIO_BANK_1 = 5
    POWER_SUPPLY = 6


#: Types that occur in one atom at most, and the fields that hold them.
_FIELDS: Final[dict[int, str]] = {
    _Kind.VENDOR_INFO: "vendor_info",
    _Kind.GPIO_BANK_0: "gpio_bank_0",
    _Kind.DT_BLOB: "dt_blob",
    _Kind.GPIO_BANK_1: "gpio_bank_1",
    _Kind.POWER_SUPPLY: "current_supply",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Atom:
    """An atom of a type that the specification does not name.

    Attributes:
        type: Its type.
        content: Its data.
    """

    type: Annotated[int, Meta(ge=7, le=0xFFFE)]
    content: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class RpiHat:
    """The content of the EEPROM of a HAT.

    Attributes:
        version: 1 for a HAT, 2 for a HAT+.
        vendor_info: The vendor and the board.
        gpio_bank_0: What a HAT does with GPIO 0 to 27.
        dt_blob: A device tree overlay, or its name: of a HAT+, always its name.
        custom_data: The manufacturer's own; an atom each.
        gpio_bank_1: What a HAT does with GPIO 28 to 45.
        current_supply: Milliamperes that a HAT+ can supply.
        other: Atoms of other types.
        order: The types of the atoms that are stored first; after them come the others in
            ascending order, then `other`.
        tail: The bytes after the formatted part.
        fill: The value of unused bytes.
    """

    version: Annotated[int, Meta(ge=_HAT, le=_HAT_PLUS)] = _HAT_PLUS
    vendor_info: VendorInfo
    gpio_bank_0: GpioMap | None = None
    dt_blob: bytes | None = None
    custom_data: tuple[bytes, ...] = ()
    gpio_bank_1: GpioMap | None = None
    current_supply: UInt32 | None = None
    other: tuple[Atom, ...] = ()
    order: tuple[UInt16, ...] = ()
    tail: Tail = b""
    fill: Fill = BLANK


class _RpiHatCodec:
    name = "rpi-hat"
    title = "Raspberry Pi HAT and HAT+"
    model = RpiHat

    def decode(self, data: ReadableBuffer, report: Findings, /) -> RpiHat:
        content = bytes(data)
        require_signature(content, _SIGNATURE, "identification of a HAT", "E-HAT1")
        require_size(content, _HEADER.size, "the identification of a HAT", "E-HAT1")
        _, version, reserved, count, length = _HEADER.unpack_from(content)
        if version not in (_HAT, _HAT_PLUS):
            raise UnsupportedError(
                f"the identification of the HAT has version {version}",
                feature="HATs other than version 1 and 2",
            )
        if reserved:
            report.problem(5, "E-HAT1", "a reserved byte is not 0")
        if not _HEADER.size <= length <= len(content):
            report.problem(8, "E-HAT2", f"it has {length} bytes, but the EEPROM has {len(content)}")
            length = len(content)
        atoms, end = _atoms(content, length, count, report)
        if end != length:
            report.problem(end, "E-HAT2", "its length does not end with its atoms")
        values = _named(atoms, report)
        if "vendor_info" not in values:
            raise FormatError("the vendor info is missing", offset=_HEADER.size, rule="E-HAT5")
        hat = RpiHat(version=version, **values, **_behind(content, max(end, _HEADER.size)))
        for path, problem in _contradictions(hat):
            report.problem(_HEADER.size, "E-HAT9", f"{path} {problem}")
        return hat

    def encode(self, model: RpiHat, size: int | None, /) -> bytes:
        validate(model)
        for path, problem in _contradictions(model):
            raise FieldError(path, problem)
        for path in _empty(model):
            raise FieldError(path, "is empty, and eepdump rejects a board with an empty atom")
        stored = arrange(_stored(model), model.order, tuple(_Kind))
        if len(stored) > 0xFFFF:
            raise FieldError("", f"there are {len(stored)} atoms, but at most 65535 are possible")
        atoms = b"".join(_atom(kind, count, data) for count, (kind, data) in enumerate(stored))
        header = _HEADER.pack(_SIGNATURE, model.version, 0, len(stored), _HEADER.size + len(atoms))
        return fill_up(header + atoms, size, tail=model.tail, fill=model.fill)

    def cautions(self, model: RpiHat, /) -> tuple[str, ...]:
        """Return why boards could not be told apart (E-HAT5)."""
        if any(model.vendor_info.uuid):
            return ()
        return ("the UUID is zero: every board needs one of its own [E-HAT5]",)


def _atom(kind: int, count: int, data: bytes) -> bytes:
    atom = _ATOM.pack(kind, count, len(data) + _CRC_SIZE) + data
    return atom + crc16_arc(atom).to_bytes(_CRC_SIZE, "little")


def _behind(content: bytes, end: int) -> dict[str, Any]:
    tail, fill = split_rest(content[end:])
    return {"tail": tail, "fill": fill}


def _atoms(
    content: bytes, length: int, count: int, report: Findings
) -> tuple[list[tuple[int, int, bytes]], int]:
    """Return offset, type and data of each atom, and the offset after them (E-HAT3, E-HAT4)."""
    found: list[tuple[int, int, bytes]] = []
    at = _HEADER.size
    for index in range(count):
        if at + _ATOM.size > length:
            report.problem(at, "E-HAT2", f"there are {index} atoms instead of {count}")
            break
        kind, number, size = _ATOM.unpack_from(content, at)
        end = at + _ATOM.size + size
        if size < _CRC_SIZE or end > length:
            report.problem(at, "E-HAT3", f"atom {index} has an impossible length")
            break
        if number != index:
            report.problem(at + 2, "E-HAT3", f"atom {index} has number {number}")
        crc_at = end - _CRC_SIZE
        crc = crc16_arc(content[at:crc_at]).to_bytes(_CRC_SIZE, "little")
        report.compare(crc_at, "E-HAT4", f"the CRC of atom {index}", content[crc_at:end], crc)
        if at + _ATOM.size == crc_at:
            report.problem(at, "E-HAT11", f"atom {index} is empty, and eepdump rejects the board")
        found.append((at, kind, content[at + _ATOM.size : crc_at]))
        at = end
    return found, at


def _named(atoms: list[tuple[int, int, bytes]], report: Findings) -> dict[str, Any]:
    """Return the fields of the model that are these atoms (E-HAT5 to E-HAT8)."""
    values: dict[str, Any] = {}
    custom: list[bytes] = []
    other: list[Atom] = []
    for at, kind, data in atoms:
        name = _FIELDS.get(kind)
        if kind == _Kind.CUSTOM_DATA:
            custom.append(data)
        elif name is None:
            if kind in (0, 0xFFFF):
                report.problem(at, "E-HAT3", f"atoms of type {kind:#06x} are not valid")
            other.append(Atom(type=kind, content=data))
        elif name in values:
            report.problem(at, "E-HAT3", f"there is more than one atom of type {kind}")
            other.append(Atom(type=kind, content=data))
        else:
            try:
                values[name] = _read(kind, data, at + _ATOM.size, report)
            except ValueError as error:
                report.problem(at, "E-HAT3", f"atom of type {kind} {error}")
                other.append(Atom(type=kind, content=data))
    kinds = [kind for _, kind, _ in atoms]
    known = [kind for kind, name in _FIELDS.items() if name in values]
    usual = sorted(known + [_Kind.CUSTOM_DATA] * len(custom)) + [atom.type for atom in other]
    values["order"] = stated_order(kinds, usual)
    return {**values, "custom_data": tuple(custom), "other": tuple(other)}


def _read(kind: int, data: bytes, at: int, report: Findings) -> VendorInfo | GpioMap | bytes | int:
    """Return the value in the data of an atom.

    Raises:
        ValueError: It has a wrong size.
    """
    match kind:
        case _Kind.VENDOR_INFO:
            return decode_vendor_info(data)
        case _Kind.GPIO_BANK_0:
            return decode_gpio_map(data, GPIO_BANK_0_PINS, at, report)
        case _Kind.GPIO_BANK_1:
            return decode_gpio_map(data, GPIO_BANK_1_PINS, at, report)
        case _Kind.POWER_SUPPLY:
            if len(data) != _POWER_SUPPLY.size:
                raise ValueError(f"has {len(data)} bytes instead of {_POWER_SUPPLY.size}")
            return int.from_bytes(data, "little")
    return data


def _stored(model: RpiHat) -> list[Part]:
    """Return type and data of each atom, in the usual order."""
    stored: list[Part] = [(_Kind.VENDOR_INFO, encode_vendor_info(model.vendor_info))]
    if model.gpio_bank_0 is not None:
        gpio = encode_gpio_map(model.gpio_bank_0, GPIO_BANK_0_PINS, "gpio-bank-0")
        stored.append((_Kind.GPIO_BANK_0, gpio))
    if model.dt_blob is not None:
        stored.append((_Kind.DT_BLOB, model.dt_blob))
    stored += [(_Kind.CUSTOM_DATA, data) for data in model.custom_data]
    if model.gpio_bank_1 is not None:
        gpio = encode_gpio_map(model.gpio_bank_1, GPIO_BANK_1_PINS, "gpio-bank-1")
        stored.append((_Kind.GPIO_BANK_1, gpio))
    if model.current_supply is not None:
        stored.append((_Kind.POWER_SUPPLY, _POWER_SUPPLY.pack(model.current_supply)))
    return stored + [(atom.type, atom.content) for atom in model.other]


def _empty(model: RpiHat) -> list[str]:
    """Return the paths of atoms without any data (E-HAT11)."""
    atoms = {"dt-blob": model.dt_blob}
    atoms |= {f"custom-data[{index}]": data for index, data in enumerate(model.custom_data)}
    atoms |= {f"other[{index}].content": atom.content for index, atom in enumerate(model.other)}
    return [path for path, data in atoms.items() if data == b""]


def _contradictions(model: RpiHat) -> list[tuple[str, str]]:
    """Return path and problem of fields that the version requires or forbids (E-HAT9)."""
    if model.version == _HAT:
        found = [("gpio-bank-0", "is missing, but a HAT must have it")] * (
            model.gpio_bank_0 is None
        )
        if model.current_supply is not None:
            found.append(("current-supply", "is for a HAT+"))
        return found
    maps = {"gpio-bank-0": model.gpio_bank_0, "gpio-bank-1": model.gpio_bank_1}
    found = [
        (path, "is for a HAT, not a HAT+") for path, value in maps.items() if value is not None
    ]
    if model.dt_blob is not None and not model.dt_blob[:1].isalnum():
        found.append(("dt-blob", "is not the name of an overlay, which a HAT+ must have"))
    return found


CODEC: Final = _RpiHatCodec()
