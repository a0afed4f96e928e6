"""Any bytes, filled up, with optional checksums (E-RAW1 to E-RAW3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

from msgspec import Meta

from formats.eeprom.framework.fields import validate
from formats.eeprom.framework.limits import ByteOrder, Fill
from formats.eeprom.parts import checksums
from formats.eeprom.parts.padding import fill_up, split_rest
from formats.errors import FieldError

if TYPE_CHECKING:
    from formats.devices.device import ReadableBuffer
    from formats.eeprom.framework.codec import Findings


class Algorithm(StrEnum):
    """A checksum."""

    ZERO_SUM_8 = "zero-sum-8"
    CRC_8_SMBUS = "crc-8-smbus"
    CRC_16_XMODEM = "crc-16-xmodem"
    CRC_16_IBM_3740 = "crc-16-ibm-3740"
    CRC_16_ARC = "crc-16-arc"
    CRC_32 = "crc-32"


_FUNCTIONS: Final[dict[Algorithm, tuple[Callable[[ReadableBuffer], int], int]]] = {
    Algorithm.ZERO_SUM_8: (checksums.zero_sum, 1),
    Algorithm.CRC_8_SMBUS: (checksums.crc8_smbus, 1),
    Algorithm.CRC_16_XMODEM: (checksums.crc16_xmodem, 2),
    Algorithm.CRC_16_IBM_3740: (checksums.crc16_ibm_3740, 2),
    Algorithm.CRC_16_ARC: (checksums.crc16_arc, 2),
    Algorithm.CRC_32: (checksums.crc32, 4),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checksum:
    """One checksum; offsets in bytes.

    Attributes:
        algorithm: The algorithm.
        start: Where the covered bytes begin.
        end: The offset after them; None for the end of the EEPROM.
        offset: Where it is written.
        byte_order: The byte order in which it is written.
    """

    algorithm: Algorithm
    start: Annotated[int, Meta(ge=0)] = 0
    end: Annotated[int, Meta(ge=0)] | None = None
    offset: Annotated[int, Meta(ge=0)]
    byte_order: ByteOrder = ByteOrder.LITTLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """Any content.

    Attributes:
        content: It does not end with the fill byte, unless it fills the EEPROM.
        fill: The byte that fills the rest.
        checksums: Checksums to write; decoding returns none.
    """

    content: bytes = b""
    fill: Fill = 0xFF
    checksums: tuple[Checksum, ...] = ()


class RawCodec:
    """See `formats.eeprom.framework.codec.Codec`."""

    name: ClassVar[str] = "raw"
    title: ClassVar[str] = "Raw binary"
    model: ClassVar[type[Raw]] = Raw

    def decode(self, data: ReadableBuffer, report: Findings, /) -> Raw:
        del report
        content, fill = split_rest(bytes(data))
        return Raw(content=content, fill=fill)

    def encode(self, model: Raw, size: int | None, /) -> bytes:
        validate(model)
        image = bytearray(fill_up(model.content, size, fill=model.fill))
        for number, checksum in enumerate(model.checksums):
            _write(image, checksum, f"checksums[{number}]")
        return bytes(image)


CODEC: Final = RawCodec()


def _write(image: bytearray, checksum: Checksum, path: str) -> None:
    function, width = _FUNCTIONS[checksum.algorithm]
    end = len(image) if checksum.end is None else checksum.end
    if not checksum.start <= end <= len(image):
        raise FieldError(
            path, f"covers bytes {checksum.start} to {end} of an EEPROM with {len(image)}"
        )
    place = slice(checksum.offset, checksum.offset + width)
    if place.stop > len(image):
        raise FieldError(f"{path}.offset", f"is beyond the end: the EEPROM has {len(image)} bytes")
    image[place] = bytes(width)
    value = function(image[checksum.start : end])
    image[place] = value.to_bytes(width, checksum.byte_order.value)
