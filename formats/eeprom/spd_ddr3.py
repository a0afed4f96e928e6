"""SPD of DDR3 modules, 256 bytes (JEDEC 21-C annex K; E-SPD1 to E-SPD8)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import Meta

from formats.eeprom.framework.limits import UInt16
from formats.eeprom.spd import PART_NUMBER, Layout, SpdCodec, SpdModule


@dataclass(frozen=True, slots=True, kw_only=True)
class SpdDdr3(SpdModule):
    """The SPD of a DDR3 module.

    Attributes:
        parameters: Bytes 0 to 116: what the memory is and how fast.
        module_revision_code: The manufacturer's own.
        manufacturer_specific_data: Bytes 150 to 175.
        customer_use: Bytes 176 to 255.
    """

    parameters: Annotated[bytes, Meta(min_length=117, max_length=117)]
    module_part_number: Annotated[str, Meta(max_length=18, pattern=PART_NUMBER)] = ""
    module_revision_code: UInt16 = 0
    manufacturer_specific_data: Annotated[bytes, Meta(min_length=26, max_length=26)] = bytes(26)
    customer_use: Annotated[bytes, Meta(min_length=80, max_length=80)] = bytes(80)


CODEC: Final = SpdCodec(
    "spd-ddr3",
    SpdDdr3,
    Layout(
        title="DDR3",
        size=256,
        memory_types=(0x0B,),
        module_manufacturer=117,
        date=120,
        serial_number=122,
        part_number=(128, 146),
        dram_manufacturer=148,
        numbers={"module_manufacturing_location": (119, 120), "module_revision_code": (146, 148)},
        kept={
            "parameters": (0, 117),
            "manufacturer_specific_data": (150, 176),
            "customer_use": (176, 256),
        },
        checksums=((0, 126, 126),),
        has_coverage_bit=True,
    ),
)
