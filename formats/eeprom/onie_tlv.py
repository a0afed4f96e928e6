"""ONIE TlvInfo: the board information of network switches (E-ONIE1 to E-ONIE9)."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final

from msgspec import Meta

from formats.devices.device import ReadableBuffer
from formats.eeprom.framework.annotations import kebab
from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import Fill, Tail, UInt8, UInt16, UInt32
from formats.eeprom.parts.checksums import crc32
from formats.eeprom.parts.ordering import arrange, stated_order
from formats.eeprom.parts.padding import BLANK, fill_up, split_rest
from formats.eeprom.parts.recognising import require_signature, require_size
from formats.eeprom.parts.texts import LATIN1_WITHOUT_NUL, MacAddress, is_unicast
from formats.errors import FieldError, UnsupportedError

_SIGNATURE: Final = b"TlvInfo\x00"
_HEADER: Final = struct.Struct(">8sBH")  # signature, version, length of all TLVs
_LENGTH_AT: Final = 9
_VERSION: Final = 1
#: Bytes that signature, version, length and TLVs may take together.
MAX_SIZE: Final = 2048

_VENDOR_EXTENSION, _CRC = 0xFD, 0xFE
_CRC_HEAD: Final = bytes((_CRC, 4))
_RESERVED: Final = (0x00, 0xFF)
_ENTERPRISE: Final = struct.Struct(">I")

#: Type codes to the fields that hold their values, in ascending order.
_FIELDS: Final = {
    0x21: "product_name",
    0x22: "part_number",
    0x23: "serial_number",
    0x24: "mac_1_base",
    0x25: "manufacture_date",
    0x26: "device_version",
    0x27: "label_revision",
    0x28: "platform_name",
    0x29: "onie_version",
    0x2A: "num_macs",
    0x2B: "manufacturer",
    0x2C: "country_code",
    0x2D: "vendor",
    0x2E: "diag_version",
    0x2F: "service_tag",
}
_DATE: Final = r"^[0-9]{2}/[0-9]{2}/[0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2}$(?!\n)"
_COUNTRY: Final = r"^[A-Z]{2}$(?!\n)"

Text = Annotated[str, Meta(max_length=255, pattern=LATIN1_WITHOUT_NUL)]
_NUMBERS: Final = ("mac_1_base", "device_version", "num_macs")
_TEXTS: Final = "|".join(kebab(name) for name in _FIELDS.values() if name not in _NUMBERS)
TextField = Annotated[str, Meta(pattern=rf"^(?:{_TEXTS})$(?!\n)")]
TextSize = Annotated[int, Meta(ge=1, le=255, description="bytes, the 00 after it included")]


@dataclass(frozen=True, slots=True, kw_only=True)
class VendorExtension:
    """Data that only a vendor understands.

    Attributes:
        enterprise_number: The number that IANA assigned to the vendor.
        content: The vendor's data.
    """

    enterprise_number: UInt32
    content: Annotated[bytes, Meta(max_length=251)] = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tlv:
    """A value of a type that the specification does not name.

    Attributes:
        type: Its code.
        value: As it is stored.
    """

    type: UInt8
    value: Annotated[bytes, Meta(max_length=255)] = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnieTlv:
    """The content of a TlvInfo EEPROM; each field is the value of one type code.

    Attributes:
        manufacture_date: ``MM/DD/YYYY HH:NN:SS``.
        country_code: ISO 3166-1 alpha-2, where it was manufactured.
        text_sizes: Bytes of texts that 00 fills up to a fixed size, by their fields.
        other: Types that the specification does not name.
        order: The type codes that are stored first; after them come the others in
            ascending order, then `other`, then vendor extensions.
        tail: The bytes after the formatted part.
        fill: The value of unused bytes.
    """

    product_name: Text | None = None
    part_number: Text | None = None
    serial_number: Text | None = None
    mac_1_base: MacAddress | None = None
    manufacture_date: Annotated[str, Meta(pattern=_DATE)] | None = None
    device_version: UInt8 | None = None
    label_revision: Text | None = None
    platform_name: Text | None = None
    onie_version: Text | None = None
    num_macs: UInt16 | None = None
    manufacturer: Text | None = None
    country_code: Annotated[str, Meta(pattern=_COUNTRY)] | None = None
    vendor: Text | None = None
    diag_version: Text | None = None
    service_tag: Text | None = None
    vendor_extension: tuple[VendorExtension, ...] = ()
    text_sizes: Mapping[TextField, TextSize] = field(default_factory=dict)
    other: tuple[Tlv, ...] = ()
    order: tuple[UInt8, ...] = ()
    tail: Tail = b""
    fill: Fill = BLANK


class _OnieTlvCodec:
    name = "onie-tlv"
    title = "ONIE TlvInfo"
    model = OnieTlv

    def decode(self, data: ReadableBuffer, report: Findings, /) -> OnieTlv:
        content = bytes(data)
        require_signature(content, _SIGNATURE, "ONIE TlvInfo", "E-ONIE1")
        require_size(content, _HEADER.size, "ONIE TlvInfo", "E-ONIE1")
        _, version, length = _HEADER.unpack_from(content)
        if version != _VERSION:
            raise UnsupportedError(
                f"ONIE TlvInfo has version {version}", feature="TlvInfo other than version 1"
            )
        end = _HEADER.size + length
        if end > MAX_SIZE:
            report.problem(_LENGTH_AT, "E-ONIE2", f"it has {end} bytes, more than {MAX_SIZE}")
        if end > len(content):
            report.problem(
                _LENGTH_AT, "E-ONIE2", f"it has {end} bytes, but the EEPROM has {len(content)}"
            )
            end = len(content)
        tail, fill = split_rest(content[end:])
        values = _named(_tlvs(content, end, report), report)
        return OnieTlv(**values, tail=tail, fill=fill)

    def encode(self, model: OnieTlv, size: int | None, /) -> bytes:
        validate(model)
        stored = arrange(_stored(model), model.order, (*_FIELDS, _VENDOR_EXTENSION))
        tlvs = b"".join(bytes((code, len(value))) + value for code, value in stored)
        length = len(tlvs) + len(_CRC_HEAD) + 4
        if _HEADER.size + length > MAX_SIZE:
            raise FieldError(
                "", f"{_HEADER.size + length} bytes are needed, but at most {MAX_SIZE} are possible"
            )
        start = _HEADER.pack(_SIGNATURE, _VERSION, length) + tlvs + _CRC_HEAD
        crc = crc32(start).to_bytes(4, "big")
        return fill_up(start + crc, size, tail=model.tail, fill=model.fill)

    def cautions(self, model: OnieTlv, /) -> tuple[str, ...]:
        """Return how other programs treat some of the values (E-ONIE6, E-ONIE8)."""
        found = []
        if model.mac_1_base is not None and not is_unicast(model.mac_1_base):
            found.append(
                f"U-Boot and Linux refuse {model.mac_1_base.hex(':')} as mac-1-base: it is not"
                " the address of a device [E-ONIE6]"
            )
        if model.other:
            codes = ", ".join(sorted({f"{tlv.type:#04x}" for tlv in model.other}))
            found.append(
                f"Linux's onie-tlv driver was observed not to get past a type like {codes}:"
                " use a vendor extension instead [E-ONIE8]"
            )
        return tuple(found)


def _tlvs(content: bytes, end: int, report: Findings) -> list[tuple[int, int, bytes]]:
    """Return offset, type and value of each TLV except the CRC, which is checked (E-ONIE3, 4)."""
    found: list[tuple[int, int, bytes]] = []
    at = _HEADER.size
    while at < end:
        code, length = content[at], content[at + 1] if at + 1 < end else 0
        following = at + 2 + length
        if following > end:
            report.problem(at, "E-ONIE3", f"type {code:#04x} does not end inside TlvInfo")
            return found
        value = content[at + 2 : following]
        if code == _CRC:
            _check_crc(content[: at + 2], value, at, report)
            if following != end:
                report.problem(following, "E-ONIE4", "the CRC-32 is followed by more data")
            return found
        found.append((at, code, value))
        at = following
    report.problem(at, "E-ONIE4", "the CRC-32 is missing")
    return found


def _check_crc(covered: bytes, value: bytes, at: int, report: Findings) -> None:
    crc = crc32(covered).to_bytes(4, "big")
    if len(value) != len(crc):
        report.problem(at, "E-ONIE4", f"the CRC-32 has {len(value)} bytes instead of 4")
    else:
        report.compare(at + 2, "E-ONIE4", "the CRC-32", value, crc)


def _named(tlvs: list[tuple[int, int, bytes]], report: Findings) -> dict[str, Any]:
    """Return the fields of the model that hold these values (E-ONIE5 to E-ONIE7)."""
    values: dict[str, Any] = {}
    extensions: list[VendorExtension] = []
    sizes: dict[str, int] = {}
    other: list[Tlv] = []
    for at, code, value in tlvs:
        if code == _VENDOR_EXTENSION and len(value) >= _ENTERPRISE.size:
            number = _ENTERPRISE.unpack_from(value)[0]
            extensions.append(
                VendorExtension(enterprise_number=number, content=value[_ENTERPRISE.size :])
            )
            continue
        name = _FIELDS.get(code)
        if name is not None and name not in values:
            try:
                values[name] = _read(name, value)
            except ValueError as error:
                report.problem(at, "E-ONIE6", f"{kebab(name)} {error}")
            else:
                if value.endswith(b"\x00") and isinstance(values[name], str):
                    sizes[kebab(name)] = len(value)
                continue
        elif name is not None:
            report.problem(at, "E-ONIE5", f"{kebab(name)} occurs twice")
        elif code in _RESERVED or code == _VENDOR_EXTENSION:
            report.problem(at, "E-ONIE7", f"type {code:#04x} cannot have such a value")
        other.append(Tlv(type=code, value=value))
    codes = [code for _, code, _ in tlvs]
    usual = [code for code, name in _FIELDS.items() if name in values]
    usual += [tlv.type for tlv in other] + [_VENDOR_EXTENSION] * len(extensions)
    values["order"] = stated_order(codes, usual)
    values |= {"vendor_extension": tuple(extensions), "other": tuple(other)}
    return values | {"text_sizes": sizes}


def _read(name: str, value: bytes) -> str | int | bytes:
    """Return the value of a field.

    Raises:
        ValueError: The value is impossible.
    """
    sizes = {"mac_1_base": 6, "device_version": 1, "num_macs": 2}
    if name in sizes:
        if len(value) != sizes[name]:
            raise ValueError(f"has {len(value)} bytes instead of {sizes[name]}")
        return value if name == "mac_1_base" else int.from_bytes(value, "big")
    found = value.rstrip(b"\x00").decode("latin-1")
    if name == "manufacture_date":
        _check_date(found)
    elif name == "country_code" and not re.search(_COUNTRY, found):
        raise ValueError("is not a code of two capital letters")
    return found


def _check_date(text: str) -> None:
    """Raise ValueError unless the date exists."""
    if not re.search(_DATE, text):
        raise ValueError("is not written MM/DD/YYYY HH:NN:SS")
    try:
        datetime.strptime(text, "%m/%d/%Y %H:%M:%S")  # noqa: DTZ007  it has no time zone
    except ValueError:
        raise ValueError(f"{text} is not a date") from None


def _stored(model: OnieTlv) -> list[tuple[int, bytes]]:
    """Return type and value of each TLV except the CRC, in the usual order."""
    stored = []
    for code, name in _FIELDS.items():
        value = getattr(model, name)
        size = model.text_sizes.get(kebab(name))
        if value is not None:
            stored.append((code, _written(name, value, size)))
        elif size is not None:
            raise FieldError(f"text-sizes.{kebab(name)}", "is given, but the text is not")
    for index, tlv in enumerate(model.other):
        if tlv.type in _FIELDS:
            raise FieldError(f"other[{index}].type", f"is that of {kebab(_FIELDS[tlv.type])}")
        if tlv.type in (*_RESERVED, _VENDOR_EXTENSION, _CRC):
            raise FieldError(f"other[{index}].type", f"cannot be {tlv.type:#04x}")
        stored.append((tlv.type, tlv.value))
    stored += [
        (_VENDOR_EXTENSION, _ENTERPRISE.pack(extension.enterprise_number) + extension.content)
        for extension in model.vendor_extension
    ]
    return stored


def _written(name: str, value: str | int | bytes, size: int | None) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, int):
        return value.to_bytes(2 if name == "num_macs" else 1, "big")
    if name == "manufacture_date":
        try:
            _check_date(value)
        except ValueError as error:
            raise FieldError("manufacture-date", str(error)) from None
    text = value.encode("latin-1")
    if size is None:
        return text
    if size <= len(text):
        raise FieldError(
            kebab(name), f"has {len(text)} bytes, but its text-sizes allow at most {size - 1}"
        )
    return text.ljust(size, b"\x00")


CODEC: Final = _OnieTlvCodec()
