"""Types that the models of several formats share."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

UInt8 = Annotated[int, Meta(ge=0, le=0xFF)]
UInt16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
UInt32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]

#: What unused bytes of an EEPROM hold; a blank one is all 0xFF.
Fill = Annotated[int, Meta(ge=0, le=0xFF, description="what unused bytes hold")]
#: Bytes behind the formatted part, up to where only fill bytes follow.
Tail = Annotated[bytes, Meta(description="what follows, up to the fill bytes")]
