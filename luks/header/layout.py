"""The layout of new headers, before a keyslot is in use.

The numbers are cryptsetup's, except for the compact LUKS2 areas (L2, L3).
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from formats.errors import ArgumentError
from luks.header import luks1
from luks.header.luks2_binary import LABEL_SIZE, METADATA_SIZES
from luks.header.luks2_binary import VERSION as LUKS2
from luks.header.text import encode_field
from luks.header.validate import AREA_ALIGNMENT, MAX_KEYSLOTS_SIZE, SECTOR_SIZES
from luks.model import SECTOR_SIZE, Header, Segment

#: AF stripes of every keyslot that is made here.
STRIPES: Final = luks1.STRIPES
#: A payload starts at a multiple of this, unless its offset is given.
DATA_ALIGNMENT: Final = 1 << 20

_LUKS1_FIRST_AREA: Final = luks1.AREA_ALIGNMENT


#: Largest number of AF stripes of a new keyslot.
MAX_STRIPES: Final = 1 << 20


def area_size(key_size: int, stripes: int = STRIPES) -> int:
    """Return the bytes of a keyslot's area, for a key of ``key_size`` bytes."""
    return _align(key_size * stripes, AREA_ALIGNMENT)


def new_luks1(
    *,
    cipher: str,
    key_size: int,
    hash_name: str,
    uuid: str,
    detached: bool,
    data_offset: int | None,
    alignment: int = DATA_ALIGNMENT,
    stripes: int = STRIPES,
) -> Header:
    """Lay out a LUKS1 header: eight areas that start at byte 4096, then the payload.

    Its digest is still empty.

    Args:
        cipher: dm-crypt's cipher string.
        key_size: Bytes of the volume key.
        hash_name: Hash for everything.
        uuid: UUID.
        detached: Whether the payload is on another device.
        data_offset: Byte offset of the payload; by default 0 in a detached
            header, else the next multiple of ``alignment`` after the areas.
        alignment: Bytes, a multiple of 512.
        stripes: AF stripes of all keyslots; QEMU accepts only 4000.

    Raises:
        ValueError: The payload would overlap the keyslot areas, or not start at
            a sector boundary.
    """
    if not 1 <= stripes <= MAX_STRIPES:
        raise ArgumentError(f"stripes must be 1 to {MAX_STRIPES}, not {stripes}")
    stride = area_size(key_size, stripes)
    end = _LUKS1_FIRST_AREA + luks1.KEYSLOT_COUNT * stride
    data_offset = _place_payload(data_offset, end, alignment, detached=detached)
    _check_data_offset(data_offset, end, SECTOR_SIZE, detached=detached)
    name, _, mode = cipher.partition("-")
    raw = luks1.RawHeader(
        cipher_name=name,
        cipher_mode=mode,
        hash_spec=hash_name,
        payload_sector=data_offset // SECTOR_SIZE,
        key_bytes=key_size,
        mk_digest=bytes(20),
        mk_digest_salt=bytes(32),
        mk_digest_iterations=0,
        uuid=encode_field(uuid, 40),
        keyslots=tuple(
            luks1.RawKeyslot(
                active=False,
                iterations=0,
                salt=bytes(32),
                material_sector=(_LUKS1_FIRST_AREA + number * stride) // SECTOR_SIZE,
                stripes=stripes,
            )
            for number in range(luks1.KEYSLOT_COUNT)
        ),
    )
    return luks1.to_model(raw)


def new_luks2(
    *,
    cipher: str,
    key_size: int,
    sector_size: int,
    uuid: str,
    label: str,
    subsystem: str,
    detached: bool,
    data_offset: int | None,
    metadata_size: int,
    keyslots_size: int,
    alignment: int = DATA_ALIGNMENT,
) -> Header:
    """Lay out a LUKS2 header: two copies, the keyslots area, then the payload.

    It has no digest yet.

    Args:
        cipher: dm-crypt's cipher string.
        key_size: Bytes of the volume key.
        sector_size: Bytes per sector of the payload.
        uuid: UUID.
        label: At most 47 bytes of UTF-8.
        subsystem: Likewise.
        detached: Whether the payload is on another device.
        data_offset: Byte offset of the payload; by default 0 for a detached
            header, else the next multiple of ``alignment`` after the keyslots
            area.
        metadata_size: Bytes of one header copy.
        keyslots_size: Bytes of the keyslots area.
        alignment: Bytes, a multiple of 512.

    Raises:
        ValueError: One of these is impossible, or they do not fit together.
    """
    if sector_size not in SECTOR_SIZES:
        raise ArgumentError(f"sector_size must be one of {SECTOR_SIZES}, not {sector_size}")
    if metadata_size not in METADATA_SIZES:
        raise ArgumentError(f"metadata_size must be one of {METADATA_SIZES}, not {metadata_size}")
    least = area_size(key_size)
    if keyslots_size % AREA_ALIGNMENT or not least <= keyslots_size <= MAX_KEYSLOTS_SIZE:
        raise ArgumentError(
            f"keyslots_size must be a multiple of {AREA_ALIGNMENT} from {least} to"
            f" {MAX_KEYSLOTS_SIZE}, not {keyslots_size}"
        )
    for text in (label, subsystem):
        encode_field(text, LABEL_SIZE)
    end = 2 * metadata_size + keyslots_size
    data_offset = _place_payload(data_offset, end, alignment, detached=detached)
    _check_data_offset(data_offset, end, sector_size, detached=detached)
    return Header(
        version=LUKS2,
        uuid=uuid,
        keyslots=MappingProxyType({}),
        digests=MappingProxyType({}),
        segments=MappingProxyType(
            {
                0: Segment(
                    type="crypt",
                    offset=data_offset,
                    size=None,
                    cipher=cipher,
                    sector_size=sector_size,
                )
            }
        ),
        label=label,
        subsystem=subsystem,
        metadata_size=metadata_size,
        keyslots_offset=2 * metadata_size,
        keyslots_size=keyslots_size,
    )


def _place_payload(data_offset: int | None, end: int, alignment: int, *, detached: bool) -> int:
    if alignment < SECTOR_SIZE or alignment % SECTOR_SIZE:
        raise ArgumentError(f"alignment must be a multiple of {SECTOR_SIZE} bytes, not {alignment}")
    if data_offset is not None:
        return data_offset
    return 0 if detached else _align(end, alignment)


def _check_data_offset(offset: int, end: int, sector_size: int, *, detached: bool) -> None:
    # Even a detached header must not place its payload where its own areas
    # would be: cryptsetup would report an overlap.
    least = 0 if detached and offset == 0 else end
    if offset < least or offset % sector_size:
        raise ArgumentError(
            f"data_offset must be a multiple of {sector_size} and at least {least}, not {offset}"
        )


def _align(value: int, alignment: int) -> int:
    return value + -value % alignment
