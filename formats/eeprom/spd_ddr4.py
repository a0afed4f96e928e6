"""SPD of DDR4 modules, 512 bytes (JEDEC 21-C annex L; E-SPD1 to E-SPD8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import Meta

from formats.eeprom.framework.limits import UInt8
from formats.eeprom.spd import PART_NUMBER, Layout, SpdCodec, SpdModule


@dataclass(frozen=True, slots=True, kw_only=True)
class SpdDdr4(SpdModule):
    """The SPD of a DDR4 module.

    Attributes:
        parameters: Bytes 0 to 125: what the memory is and how fast.
        module_parameters: Bytes 128 to 253: what the module is.
        extended_parameters: Bytes 256 to 319.
        module_revision_code: The manufacturer's own.
        dram_stepping: The memory manufacturer's own.
        manufacturer_specific_data: Bytes 353 to 381.
        reserved: Bytes 382 and 383.
        end_user: Bytes 384 to 511.
    """

    parameters: Annotated[bytes, Meta(min_length=126, max_length=126)]
    module_parameters: Annotated[bytes, Meta(min_length=126, max_length=126)]
    extended_parameters: Annotated[bytes, Meta(min_length=64, max_length=64)] = bytes(64)
    module_part_number: Annotated[str, Meta(max_length=20, pattern=PART_NUMBER)] = ""
    module_revision_code: UInt8 = 0
    dram_stepping: UInt8 = 0
    manufacturer_specific_data: Annotated[bytes, Meta(min_length=29, max_length=29)] = bytes(29)
    reserved: Annotated[bytes, Meta(min_length=2, max_length=2)] = bytes(2)
    end_user: Annotated[bytes, Meta(min_length=128, max_length=128)] = bytes(128)


CODEC: Final = SpdCodec(
    "spd-ddr4",
    SpdDdr4,
    Layout(
        title="DDR4",
        size=512,
        memory_types=(0x0C, 0x0E, 0x10, 0x11),
        module_manufacturer=320,
        date=323,
        serial_number=325,
        part_number=(329, 349),
        dram_manufacturer=350,
        numbers={
            "module_manufacturing_location": (322, 323),
            "module_revision_code": (349, 350),
            "dram_stepping": (352, 353),
        },
        kept={
            "parameters": (0, 126),
            "module_parameters": (128, 254),
            "extended_parameters": (256, 320),
            "manufacturer_specific_data": (353, 382),
            "reserved": (382, 384),
            "end_user": (384, 512),
        },
        checksums=((0, 126, 126), (128, 254, 254)),
        has_coverage_bit=True,
        hint="its EEPROM has two pages: Linux reads both with the ee1004 driver",
    ),
)
