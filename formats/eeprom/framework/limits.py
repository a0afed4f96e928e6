"""Types that the models of several formats share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta


class ByteOrder(StrEnum):
    """Which byte of a number comes first."""

    LITTLE = "little"
    BIG = "big"


UInt8 = Annotated[int, Meta(ge=0, le=0xFF)]
UInt16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
UInt32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]

#: What unused bytes of an EEPROM hold; a blank one is all 0xFF.
Fill = Annotated[int, Meta(ge=0, le=0xFF, description="what unused bytes hold")]
#: Bytes after the formatted part, up to where only fill bytes follow.
Tail = Annotated[bytes, Meta(description="what follows, up to the fill bytes")]

#: Text of which every character is one byte, ISO 8859-1, so that any bytes are text (E6).
Latin1 = Annotated[str, Meta(pattern=r"^[\x00-\xff]*$")]
