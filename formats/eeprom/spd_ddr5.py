"""SPD of DDR5 modules, 1024 bytes (JEDEC JESD400-5; E-SPD1 to E-SPD8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import Meta

from formats.eeprom.framework.limits import UInt8
from formats.eeprom.spd import PART_NUMBER, Layout, SpdCodec, SpdModule


@dataclass(frozen=True, slots=True, kw_only=True)
class SpdDdr5(SpdModule):
    """The SPD of a DDR5 module.

    Attributes:
        parameters: Bytes 0 to 509: what the memory and the module are.
        module_revision_code: The manufacturer's own.
        dram_stepping: The memory manufacturer's own.
        manufacturer_specific_data: Bytes 555 to 639.
        end_user: Bytes 640 to 1023; overclocking profiles have checksums of their own.
    """

    parameters: Annotated[bytes, Meta(min_length=510, max_length=510)]
    module_part_number: Annotated[str, Meta(max_length=30, pattern=PART_NUMBER)] = ""
    module_revision_code: UInt8 = 0
    dram_stepping: UInt8 = 0
    manufacturer_specific_data: Annotated[bytes, Meta(min_length=85, max_length=85)] = bytes(85)
    end_user: Annotated[bytes, Meta(min_length=384, max_length=384)] = bytes(384)


CODEC: Final = SpdCodec(
    "spd-ddr5",
    SpdDdr5,
    Layout(
        title="DDR5",
        size=1024,
        memory_types=(0x12, 0x14),
        module_manufacturer=512,
        date=515,
        serial_number=517,
        part_number=(521, 551),
        dram_manufacturer=552,
        numbers={
            "module_manufacturing_location": (514, 515),
            "module_revision_code": (551, 552),
            "dram_stepping": (554, 555),
        },
        kept={
            "parameters": (0, 510),
            "manufacturer_specific_data": (555, 640),
            "end_user": (640, 1024),
        },
        checksums=((0, 510, 510),),
        hint="its EEPROM has eight pages: Linux reads all with the spd5118 driver",
    ),
)
