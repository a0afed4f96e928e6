"""Persistent dirty bitmaps: kept, and marked if changes here make them incomplete (Q8).

No code here records changes in bitmaps. A bitmap that must reflect all changes is marked
as in use before the first change: QEMU then knows that it is not complete. Others
stay as they are.

Source: QEMU's docs/interop/qcow2, "Bitmaps".
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from formats.errors import FormatError
from formats.qcow2 import features

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.qcow2.header import Qcow2Header
    from formats.qcow2.host import Host

_ENTRY: Final = struct.Struct(">QIIBBHI")
_FLAGS_AT: Final = 12
IN_USE: Final = 1 << 0
AUTO: Final = 1 << 1
_MAX_BITMAPS: Final = 65535
_MAX_DIRECTORY: Final = 64 << 20
#: Bits of a bitmap table entry that are an offset.
TABLE_OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
#: Most entries of a bitmap's table, as in QEMU.
MAX_TABLE: Final = (32 << 20) // 8


class Bitmap(NamedTuple):
    """An entry of the bitmap directory.

    Attributes:
        name: Its name.
        flags: `IN_USE`, `AUTO` and others.
        granularity: Bytes of the disk for each bit.
        table_offset: Byte offset of its table in the image.
        table_size: Entries of that.
        place: Byte offset of this entry in the image.
    """

    name: str
    flags: int
    granularity: int
    table_offset: int
    table_size: int
    place: int


def has_bitmaps(header: Qcow2Header) -> bool:
    """Say whether the image has bitmaps that can be relied on."""
    return bool(header.autoclear & features.BITMAPS and header.extensions.bitmaps)


def read_bitmaps(host: Host, header: Qcow2Header) -> list[Bitmap]:
    """Read the bitmap directory; it is empty where `has_bitmaps` is false.

    Raises:
        FormatError: It breaks a rule.
        DeviceError: It cannot be read.
    """
    pointer = header.extensions.bitmaps
    if not has_bitmaps(header) or pointer is None:
        return []
    if (
        not 0 < pointer.count <= _MAX_BITMAPS
        or not 0 < pointer.size <= _MAX_DIRECTORY
        or not pointer.offset
        or pointer.offset % header.cluster_size
        or pointer.offset + pointer.size > host.size
    ):
        raise FormatError("the bitmap directory is impossible", offset=pointer.offset, rule="Q8")
    data = bytes(host.read(pointer.offset, pointer.size))
    bitmaps = list(_entries(data, pointer.offset))
    if len(bitmaps) != pointer.count:
        raise FormatError(
            f"there are {len(bitmaps)} bitmaps instead of {pointer.count}",
            offset=pointer.offset,
            rule="Q8",
        )
    return bitmaps


def _entries(data: bytes, start: int) -> Iterator[Bitmap]:
    at = 0
    while at < len(data):
        if at + _ENTRY.size > len(data):
            raise FormatError("the bitmap directory ends early", offset=start + at, rule="Q8")
        table, entries, flags, _, bits, name_size, extra = _ENTRY.unpack_from(data, at)
        size = _ENTRY.size + extra + name_size
        if at + size > len(data) or entries > MAX_TABLE or bits > 63:
            raise FormatError("a bitmap is impossible", offset=start + at, rule="Q8")
        name = data[at + size - name_size : at + size].decode("utf-8", "replace")
        yield Bitmap(name, flags, 1 << bits, table, entries, start + at)
        at += size + -size % 8


def invalidate_bitmaps(host: Host, header: Qcow2Header, *, resized: bool) -> bool:
    """Durably mark the bitmaps that are about to miss changes.

    Args:
        host: Holds the image.
        header: Its header.
        resized: Mark all, because none fits a disk of another size.

    Returns:
        Whether the bitmaps are kept; otherwise their directory is damaged, and the
        caller must clear the feature bit.

    Raises:
        DeviceError: It failed.
    """
    try:
        bitmaps = read_bitmaps(host, header)
    except FormatError:
        return False
    marked = [
        bitmap
        for bitmap in bitmaps
        if not bitmap.flags & IN_USE and (resized or bitmap.flags & AUTO)
    ]
    for bitmap in marked:
        flags = (bitmap.flags | IN_USE).to_bytes(4)
        host.write(bitmap.place + _FLAGS_AT, flags)
    if marked:
        host.flush()
    return True
