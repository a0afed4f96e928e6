"""Where the content of the disk is, as runs of clusters of maximal length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from formats.errors import FormatError
from formats.qcow2.tables import COMPRESSED, COPIED, OFFSET_MASK, ZERO, EntryKind, entry_kind

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable, Iterator

    from formats.qcow2.header import Qcow2Header
    from formats.qcow2.metadata import Metadata
    from formats.qcow2.tables import L2Table


# Of extended L2 entries, each of which describes 32 parts of a cluster.
_PART_BITS: Final = 5
_PARTS: Final = 1 << _PART_BITS
_ALL_PARTS: Final = (1 << _PARTS) - 1
_EXTENDED_SIZE: Final = 16


class Extent(NamedTuple):
    """A range of the disk, all of one kind.

    Attributes:
        offset: Byte offset in the disk.
        length: Bytes.
        kind: Kind of content.
        host: For data, the byte offset of ``offset`` in the image; for a compressed
            cluster, its L2 entry; otherwise 0.
    """

    offset: int
    length: int
    kind: EntryKind
    host: int


def extents(metadata: Metadata, offset: int, end: int) -> Iterator[Extent]:
    """Yield the extents of a range of the disk, in order, with neighbours joined.

    Raises:
        FormatError: A table refers to an impossible place.
        DeviceError: A table cannot be read.
    """
    return joined(_extents(metadata, offset, end))


def joined(found: Iterable[Extent]) -> Iterator[Extent]:
    """Yield extents, joining neighbours that continue each other."""
    last: Extent | None = None
    for extent in found:
        if last is not None and _joins(last, extent):
            last = last._replace(length=last.length + extent.length)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


def merged(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield offset and length of ranges in order, joining those that touch."""
    start = end = 0
    for first, length in ranges:
        if first > end:
            if end > start:
                yield start, end - start
            start = first
        end = first + length
    if end > start:
        yield start, end - start


def _joins(one: Extent, other: Extent) -> bool:
    if one.kind is not other.kind or one.kind is EntryKind.COMPRESSED:
        return False
    return one.kind is not EntryKind.DATA or one.host + one.length == other.host


def _extents(metadata: Metadata, offset: int, end: int) -> Iterator[Extent]:
    header = metadata.header
    bits = header.cluster_bits
    extended = header.has_extended_l2
    span_bits = 2 * bits - (4 if extended else 3)
    while offset < end:
        l1_index = offset >> span_bits
        stop = min(end, l1_index + 1 << span_bits)
        table = metadata.table(l1_index)
        if table is None:
            yield Extent(offset, stop - offset, EntryKind.UNALLOCATED, 0)
            offset = stop
            continue
        base = l1_index << span_bits
        if extended:
            yield from _extended(header, table, base, (offset, stop))
            offset = stop
            continue
        if header.has_data_file:
            yield from _external(header, table, base, (offset, stop))
            offset = stop
            continue
        index = offset - base >> bits
        last = stop - base + header.cluster_size - 1 >> bits
        while index < last:
            kind = entry_kind(table.entries[index])
            count = _run(table.entries, index, last, header.cluster_size, kind)
            piece_end = min(stop, base + (index + count << bits))
            host = _place(header, table.entries[index], kind, table.offset + index * 8)
            if kind is EntryKind.DATA:
                host += offset & header.cluster_size - 1
            yield Extent(offset, piece_end - offset, kind, host)
            offset = piece_end
            index += count


def _external(
    header: Qcow2Header, table: L2Table, base: int, wanted: tuple[int, int]
) -> Iterator[Extent]:
    """As `_extended`, of plain entries for clusters in an external data file (Q36)."""
    offset, end = wanted
    while offset < end:
        index = offset - base >> header.cluster_bits
        entry, place = table.entries[index], table.offset + index * 8
        stop = min(end, base + (index + 1 << header.cluster_bits))
        kind = entry_kind(entry)
        if kind is EntryKind.COMPRESSED:
            raise FormatError(
                "a cluster in an external data file is compressed", offset=place, rule="Q36"
            )
        if kind is EntryKind.UNALLOCATED and entry & COPIED:
            kind = EntryKind.DATA  # at the beginning of that file
        host = _place(header, entry, kind, place)
        if kind is EntryKind.DATA:
            host += offset & header.cluster_size - 1
        yield Extent(offset, stop - offset, kind, host)
        offset = stop


def _extended(
    header: Qcow2Header, table: L2Table, base: int, wanted: tuple[int, int]
) -> Iterator[Extent]:
    """Yield the extents of what one table with extended entries maps (Q35).

    Args:
        header: Of the image.
        table: The table.
        base: Offset in the disk of the first byte that it maps.
        wanted: Where to begin and end.
    """
    bits, part_bits = header.cluster_bits, header.cluster_bits - _PART_BITS
    offset, end = wanted
    while offset < end:
        index = offset - base >> bits
        entry, bitmap = table.entries[2 * index : 2 * index + 2]
        place = table.offset + index * _EXTENDED_SIZE
        start, stop = base + (index << bits), min(end, base + (index + 1 << bits))
        if entry & COMPRESSED and not header.has_data_file:
            yield Extent(offset, stop - offset, EntryKind.COMPRESSED, entry)
            offset = stop
            continue
        if entry & COMPRESSED:
            raise FormatError(
                "a cluster in an external data file is compressed", offset=place, rule="Q36"
            )
        host = _place(header, entry & OFFSET_MASK, EntryKind.DATA, place)
        _check_bitmap(header, entry, bitmap, place)
        while offset < stop:
            part = offset - start >> part_bits
            piece_end = min(stop, start + (part + 1 << part_bits))
            kind = _part_kind(bitmap, part)
            at = host + (offset - start) if kind is EntryKind.DATA else 0
            yield Extent(offset, piece_end - offset, kind, at)
            offset = piece_end


def _part_kind(bitmap: int, part: int) -> EntryKind:
    if bitmap >> part & 1:
        return EntryKind.DATA
    return EntryKind.ZERO if bitmap >> part + _PARTS & 1 else EntryKind.UNALLOCATED


def has_impossible_bitmap(entry: int, bitmap: int, *, external: bool) -> bool:
    """Say whether an extended L2 entry contradicts itself (Q35).

    Args:
        entry: Its first word.
        bitmap: Its second word.
        external: Whether clusters are in an external data file, where 0 is a place.
    """
    data, zeros = bitmap & _ALL_PARTS, bitmap >> _PARTS
    if entry & COMPRESSED:
        return bitmap != 0
    if entry & OFFSET_MASK or (external and entry & COPIED):
        return data & zeros != 0
    return data != 0


def _check_bitmap(header: Qcow2Header, entry: int, bitmap: int, place: int) -> None:
    """Refuse an entry that contradicts itself, as QEMU does when it is used."""
    if has_impossible_bitmap(entry, bitmap, external=header.has_data_file):
        raise FormatError(
            f"an extended L2 entry contradicts itself: {entry:#x}, {bitmap:#x}",
            offset=place,
            rule="Q35",
        )


def _run(entries: array[int], index: int, last: int, cluster_size: int, kind: EntryKind) -> int:
    """Return how many entries, starting at ``index``, continue the first one."""
    at = index + 1
    if kind is EntryKind.DATA:
        expected = entries[index] + cluster_size
        while at < last and entries[at] == expected:
            expected += cluster_size
            at += 1
    elif kind is EntryKind.ZERO:
        while at < last and entries[at] & (ZERO | COMPRESSED) == ZERO:
            at += 1
    elif kind is EntryKind.UNALLOCATED:
        while at < last and not entries[at] & (OFFSET_MASK | ZERO | COMPRESSED):
            at += 1
    return at - index


def _place(header: Qcow2Header, entry: int, kind: EntryKind, place: int) -> int:
    if kind is EntryKind.DATA:
        offset = entry & OFFSET_MASK
        if offset & header.cluster_size - 1:
            raise FormatError(
                f"an L2 entry refers to byte {offset}, which is not a cluster",
                offset=place,
                rule="Q9",
            )
        return offset
    if kind is EntryKind.ZERO and header.version == 2:
        raise FormatError(
            "an image of version 2 has an L2 entry for a zero cluster", offset=place, rule="Q9"
        )
    return entry if kind is EntryKind.COMPRESSED else 0
