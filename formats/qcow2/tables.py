"""L1 and L2 tables: where the clusters of the disk are in the image.

Source: QEMU's docs/interop/qcow2, "Cluster mapping".
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from formats.errors import FormatError

if TYPE_CHECKING:
    from array import array

    from formats.qcow2.header import Qcow2Header
    from formats.qcow2.host import Host

#: The reference count is exactly one; in active tables only.
COPIED: Final = 1 << 63
COMPRESSED: Final = 1 << 62
#: Of a standard cluster: it reads as zeros. Version 3 only.
ZERO: Final = 1
OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
L1_RESERVED: Final = 0x7F00_0000_0000_01FF
L2_RESERVED: Final = 0x3F00_0000_0000_01FE

#: Bytes of L2 tables that are kept in memory.
_CACHE_SIZE: Final = 8 << 20


class EntryKind(Enum):
    """The kinds of content that a disk can have."""

    DATA = "data"
    COMPRESSED = "compressed"
    #: Zeros, regardless of the backing file.
    ZERO = "zero"
    #: The content of the backing file, or zeros if there is none.
    UNALLOCATED = "unallocated"


class CompressedPlace(NamedTuple):
    """The place of a compressed cluster: bytes in the image, without any alignment."""

    offset: int
    size: int


@dataclass(slots=True)
class L2Table:
    """An L2 table in memory.

    Attributes:
        entries: Its entries, a cluster of them.
        offset: Byte offset in the image.
        first: Index of the first entry that differs from the table on disk.
        last: Index after the last one that differs.
    """

    entries: array[int]
    offset: int
    first: int = field(default=0)
    last: int = field(default=0)

    @property
    def dirty(self) -> bool:
        """Whether it must be written."""
        return self.first < self.last

    def touch(self, first: int, last: int) -> None:
        """Note that the entries ``first`` to ``last`` - 1 changed."""
        if self.dirty:
            first, last = min(first, self.first), max(last, self.last)
        self.first, self.last = first, last


class L2Cache:
    """The L2 tables used last; changed ones stay until they are written."""

    def __init__(self, host: Host, header: Qcow2Header) -> None:
        self._host = host
        self._cluster_size = header.cluster_size
        self._most = max(4, _CACHE_SIZE // header.cluster_size)
        self._tables: OrderedDict[int, L2Table] = OrderedDict()
        self.dirty: dict[int, L2Table] = {}

    @property
    def dirty_size(self) -> int:
        """Bytes of tables that wait to be written."""
        return len(self.dirty) * self._cluster_size

    def get(self, offset: int) -> L2Table:
        """Return the table at a byte offset of the image.

        Raises:
            FormatError: No table can be there.
            DeviceError: It cannot be read.
        """
        table = self.dirty.get(offset) or self._tables.get(offset)
        if table is None:
            if offset % self._cluster_size:
                raise FormatError("an L2 table is not at a cluster", offset=offset, rule="Q9")
            self._host.check_whole(offset, self._cluster_size, "an L2 table")
            table = L2Table(self._host.read_table(offset, self._cluster_size // 8), offset)
        self._keep(table)
        return table

    def add(self, entries: array[int], offset: int) -> L2Table:
        """Add a new table, all of which must be written."""
        table = L2Table(entries, offset)
        table.touch(0, len(entries))
        self.dirty[offset] = table
        self._keep(table)
        return table

    def touch(self, table: L2Table, first: int, last: int) -> None:
        """Note that entries of a table changed."""
        table.touch(first, last)
        self.dirty[table.offset] = table

    def forget(self, offset: int) -> None:
        """Drop a table that is not in use any more."""
        self.dirty.pop(offset, None)
        self._tables.pop(offset, None)

    def write(self) -> None:
        """Write the changes; call `settled` once they are durable."""
        for table in self.dirty.values():
            self._host.write_table(table.offset, table.entries, table.first, table.last)

    def settled(self) -> None:
        """Note that the result of `write` is durable."""
        for table in self.dirty.values():
            table.first = table.last = 0
            self._keep(table)
        self.dirty.clear()

    def _keep(self, table: L2Table) -> None:
        self._tables[table.offset] = table
        self._tables.move_to_end(table.offset)
        while len(self._tables) > self._most:
            self._tables.popitem(last=False)


def entry_kind(entry: int) -> EntryKind:
    """Return the kind of content that an L2 entry describes."""
    if entry & COMPRESSED:
        return EntryKind.COMPRESSED
    if entry & ZERO:
        return EntryKind.ZERO
    return EntryKind.DATA if entry & OFFSET_MASK else EntryKind.UNALLOCATED


def compressed_place(entry: int, cluster_bits: int) -> CompressedPlace:
    """Return where the data of a compressed cluster is."""
    shift = 62 - (cluster_bits - 8)
    offset = entry & (1 << shift) - 1
    sectors = (entry >> shift & (1 << cluster_bits - 8) - 1) + 1
    return CompressedPlace(offset, sectors * 512 - offset % 512)


def clusters_of(entry: int, cluster_bits: int) -> range:
    """Return the numbers of the host clusters that an L2 entry refers to."""
    if entry & COMPRESSED:
        offset, size = compressed_place(entry, cluster_bits)
        return range(offset >> cluster_bits, (offset + size - 1 >> cluster_bits) + 1)
    first = (entry & OFFSET_MASK) >> cluster_bits
    return range(first, first + bool(first))
