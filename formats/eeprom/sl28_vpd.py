"""The VPD of Kontron's sl28 boards, as Linux reads it (E-SL1 to E-SL4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import Meta

from formats.devices.device import ReadableBuffer
from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import Fill, Tail
from formats.eeprom.parts.checksums import crc8_smbus
from formats.eeprom.parts.padding import BLANK, fill_up, split_rest
from formats.eeprom.parts.recognising import require_signature, require_size
from formats.eeprom.parts.texts import LATIN1_WITHOUT_NUL, MacAddress, is_unicast
from formats.errors import FieldError, UnsupportedError

_LAYOUT: Final = struct.Struct("<cB15s6sB")  # magic, version, serial number, MAC address, CRC
_MAGIC: Final = b"V"
_VERSION: Final = 1
_MAC_AT: Final = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class Sl28Vpd:
    """The identification of an sl28 board.

    Attributes:
        serial_number: Of the board.
        base_mac_address: Its first address; Linux counts up from it.
        tail: The bytes after the formatted part.
        fill: The value of unused bytes.
    """

    serial_number: Annotated[str, Meta(max_length=15, pattern=LATIN1_WITHOUT_NUL)]
    base_mac_address: MacAddress
    tail: Tail = b""
    fill: Fill = BLANK


class _Sl28VpdCodec:
    name = "sl28-vpd"
    title = "VPD of Kontron sl28 boards"
    model = Sl28Vpd

    def decode(self, data: ReadableBuffer, report: Findings, /) -> Sl28Vpd:
        content = bytes(data)
        require_signature(content, _MAGIC, "sl28 VPD", "E-SL1")
        require_size(content, _LAYOUT.size, "the sl28 VPD", "E-SL1")
        _, version, serial, mac, crc = _LAYOUT.unpack_from(content)
        if version != _VERSION:
            raise UnsupportedError(
                f"the sl28 VPD has version {version}", feature="sl28 VPD other than version 1"
            )
        computed = crc8_smbus(content[: _LAYOUT.size - 1])
        report.compare(_LAYOUT.size - 1, "E-SL4", "the CRC", bytes((crc,)), bytes((computed,)))
        if not is_unicast(mac):
            report.problem(_MAC_AT, "E-SL3", f"{mac.hex(':')} is not the address of a device")
        tail, fill = split_rest(content[_LAYOUT.size :])
        return Sl28Vpd(
            serial_number=serial.rstrip(b"\x00").decode("latin-1"),
            base_mac_address=mac,
            tail=tail,
            fill=fill,
        )

    def encode(self, model: Sl28Vpd, size: int | None, /) -> bytes:
        validate(model)
        if not is_unicast(model.base_mac_address):
            raise FieldError("base-mac-address", "is not the address of a device")
        serial = model.serial_number.encode("latin-1")
        start = _LAYOUT.pack(_MAGIC, _VERSION, serial, model.base_mac_address, 0)[:-1]
        return fill_up(start + bytes((crc8_smbus(start),)), size, tail=model.tail, fill=model.fill)


CODEC: Final = _Sl28VpdCodec()
