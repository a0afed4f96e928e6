"""The EEPROM of Intel's Ethernet controllers: its MAC address and checksum (E-INTEL1 to 4)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import Meta

from formats.devices.device import ReadableBuffer
from formats.eeprom.framework.codec import Findings
from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import Fill, Tail
from formats.eeprom.parts.padding import BLANK, fill_up, split_rest
from formats.eeprom.parts.recognising import require_content, require_size
from formats.eeprom.parts.texts import MacAddress, is_unicast
from formats.errors import FieldError

_WORD: Final = struct.Struct("<H")
_SIZE: Final = 0x40 * _WORD.size
_CHECKSUM_AT: Final = 0x3F * _WORD.size
_SUM: Final = 0xBABA
_MAC_SIZE: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelNic:
    """The EEPROM of a controller.

    Attributes:
        ethernet_address: Words 0 to 2, in the order of the wire.
        configuration: Words 3 to 0x3E, each with its low byte first. They differ between
            controllers, and are kept as they are.
        tail: The bytes after the checksum, which it does not cover.
        fill: The value of unused bytes.
    """

    ethernet_address: MacAddress
    configuration: Annotated[
        bytes, Meta(min_length=120, max_length=120, description="words 3 to 0x3E")
    ]
    tail: Tail = b""
    fill: Fill = BLANK


class _IntelNicCodec:
    name = "intel-nic"
    title = "EEPROM of Intel Ethernet controllers"
    model = IntelNic

    def decode(self, data: ReadableBuffer, report: Findings, /) -> IntelNic:
        content = bytes(data)
        require_content(content, "configuration of a controller", "E-INTEL1")
        require_size(content, _SIZE, "the EEPROM of a controller", "E-INTEL1")
        (found,) = _WORD.unpack_from(content, _CHECKSUM_AT)
        should = _checksum(content[:_CHECKSUM_AT])
        if found != should:
            report.problem(
                _CHECKSUM_AT,
                "E-INTEL3",
                f"the checksum is {found:#06x}, and should be {should:#06x}",
            )
        mac = content[:_MAC_SIZE]
        if not is_unicast(mac):
            report.problem(0, "E-INTEL2", f"{mac.hex(':')} is not the address of a device")
        tail, fill = split_rest(content[_SIZE:])
        return IntelNic(
            ethernet_address=mac,
            configuration=content[_MAC_SIZE:_CHECKSUM_AT],
            tail=tail,
            fill=fill,
        )

    def encode(self, model: IntelNic, size: int | None, /) -> bytes:
        validate(model)
        if not is_unicast(model.ethernet_address):
            raise FieldError("ethernet-address", "is not the address of a device")
        start = model.ethernet_address + model.configuration
        checksum = _WORD.pack(_checksum(start))
        return fill_up(start + checksum, size, tail=model.tail, fill=model.fill)


def _checksum(content: bytes) -> int:
    """Return word 3F for the words before it (E-INTEL3)."""
    words: list[int] = [word for (word,) in _WORD.iter_unpack(content)]
    return (_SUM - sum(words)) & 0xFFFF


CODEC: Final = _IntelNicCodec()
