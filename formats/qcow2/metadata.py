"""The tables of an open image, and how changes of them reach the medium.

Changes stay in memory until `Metadata.commit`, which writes them in the order of
rules Q11 to Q16: a crash at any moment leaves tables that agree with each other,
and at worst unused clusters that count as used.
"""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from formats.errors import ReadOnlyError, TruncatedImageError
from formats.qcow2 import features
from formats.qcow2.bitmaps import invalidate_bitmaps
from formats.qcow2.header import SECTOR_SIZE, encode_fields
from formats.qcow2.in_use import ClustersInUse
from formats.qcow2.refcounts import Refcounts
from formats.qcow2.tables import COMPRESSED, COPIED, OFFSET_MASK, L2Cache, L2Table, clusters_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from formats.qcow2.header import Qcow2Header
    from formats.qcow2.host import Host

#: Bytes of changed tables in memory that cause a commit.
_MOST_DIRTY: Final = 16 << 20
#: Clusters waiting to become free that cause a commit.
_MOST_RELEASED: Final = 1 << 16


class Metadata:
    """Header, L1 table, L2 tables and refcounts of an image. Not safe in several threads.

    Attributes:
        host: Holds the image.
        header: As it is on disk.
        l1: The active L1 table, or a snapshot's.
        l2: L2 tables.
    """

    def __init__(self, host: Host, header: Qcow2Header, l1: array[int], *, read_only: bool) -> None:
        """Take the tables read so far; others are read when they are needed."""
        self.host = host
        self.header = header
        self.l1 = l1
        self.l2 = L2Cache(host, header)
        self.read_only = read_only
        self._l1_dirty: set[int] = set()
        self._released: list[int] = []
        self._discard = False
        self._refcounts: Refcounts | None = None
        self._used = ClustersInUse(header.cluster_size)
        self._begun = False

    @property
    def refcounts(self) -> Refcounts:
        """The refcounts, read when first needed."""
        if self._refcounts is None:
            refcounts = Refcounts(self.host, self.header, self._used)
            self._note_metadata(refcounts)
            self._refcounts = refcounts
        return self._refcounts

    def begin(self) -> None:
        """Prepare the image for its first change (Q8).

        Raises:
            ReadOnlyError: It is open for reading only.
            DeviceError: It failed.
        """
        if self._begun:
            return
        if self.read_only:
            raise ReadOnlyError("the qcow2 image is open for reading only")
        header = self.header
        kept = header.autoclear & features.BITMAPS
        if kept and not invalidate_bitmaps(self.host, header, resized=False):
            kept = 0
        if kept != header.autoclear:
            self.change_header(autoclear=kept)
            self.host.flush()
        self._begun = True

    def table(self, l1_index: int) -> L2Table | None:
        """Return an L2 table to read in, or None if there is none.

        Raises:
            FormatError, DeviceError: It cannot be read.
        """
        offset = self.l1[l1_index] & OFFSET_MASK
        return self.l2.get(offset) if offset else None

    def writable_table(self, l1_index: int) -> L2Table:
        """Return an L2 table to change; a new one if there is none or it is shared."""
        entry = self.l1[l1_index]
        offset = entry & OFFSET_MASK
        if offset and entry & COPIED:
            return self.l2.get(offset)
        if offset:
            # A cluster that two tables refer to has a count of two.
            entries = array(
                "Q",
                [e if e & COMPRESSED else e & ~COPIED for e in self.l2.get(offset).entries],
            )
        else:
            entries = array("Q", bytes(self.header.cluster_size))
        cluster, _ = self.refcounts.allocate(1)
        self._used.add(cluster)
        table = self.l2.add(entries, cluster << self.header.cluster_bits)
        if offset:
            self._release_table(offset)
        self.l1[l1_index] = table.offset | COPIED
        self._l1_dirty.add(l1_index)
        return table

    def drop_table(self, l1_index: int) -> None:
        """Give up an L2 table and all clusters it refers to."""
        offset = self.l1[l1_index] & OFFSET_MASK
        if offset:
            for entry in self.l2.get(offset).entries:
                self.release(entry)
            self._release_table(offset)
            self.l1[l1_index] = 0
            self._l1_dirty.add(l1_index)

    def _release_table(self, offset: int) -> None:
        cluster = offset >> self.header.cluster_bits
        self._released.append(cluster)
        self._used.remove(cluster)
        self.l2.forget(offset)

    def allocate(self, most: int) -> tuple[int, int]:
        """Take up to ``most`` clusters for data; return the first one and their number."""
        return self.refcounts.allocate(most)

    def give_back(self, first: int, count: int) -> None:
        """Free clusters that were allocated and to which nothing refers."""
        for cluster in range(first, first + count):
            self.refcounts.add(cluster, -1)

    def release(self, entry: int, *, discard: bool = False) -> None:
        """Free the clusters of an L2 entry, once the table without it is durable.

        Args:
            entry: The entry that was replaced.
            discard: Give the space back to the device too.
        """
        self._released.extend(clusters_of(entry, self.header.cluster_bits))
        self._discard |= discard

    def check_data(self, offset: int, size: int) -> None:
        """Check that data may be written to a range of the image.

        Raises:
            FormatError: The range holds metadata, or is beyond the end of the image.
        """
        if self._refcounts is None:
            self._refcounts = self.refcounts  # reading them completes the map of metadata
        bits = self.header.cluster_bits
        first, last = offset >> bits, offset + size - 1 >> bits
        self._used.check(first, last + 1 - first)
        if last << bits >= self.host.size:
            raise TruncatedImageError(
                "the image ends before a cluster that it uses", offset=last << bits, rule="Q9"
            )

    def relieve(self) -> None:
        """Commit if too much waits in memory."""
        waiting = self.l2.dirty_size
        if self._refcounts is not None:
            waiting += self._refcounts.dirty_size
        if waiting > _MOST_DIRTY or len(self._released) > _MOST_RELEASED:
            self.commit()

    @property
    def dirty(self) -> bool:
        """Whether changes wait in memory."""
        refcounts = self._refcounts
        return bool(
            self.l2.dirty
            or self._l1_dirty
            or self._released
            or (refcounts is not None and refcounts.dirty)
        )

    def commit(self) -> None:
        """Make all changes, and the data they refer to, durable (Q11 to Q14).

        Raises:
            DeviceError: It failed. Repeating it writes everything again, unless the
                failure was that of a flush (Q16).
        """
        if self._refcounts is not None and self._refcounts.dirty:
            self._commit_refcounts(self._refcounts)
        self.host.flush()  # data and counts, before anything refers to the clusters
        if self._refcounts is not None:
            self._refcounts.settled()
        if self.l2.dirty or self._l1_dirty:
            self.l2.write()
            if self._l1_dirty:
                if self.l2.dirty:
                    self.host.flush()
                for index in self._l1_dirty:
                    self.host.write_table(self.header.l1_offset, self.l1, index, index + 1)
            self.host.flush()
            self.l2.settled()
            self._l1_dirty.clear()
        if self._released:
            self._free(self._released)

    def _commit_refcounts(self, refcounts: Refcounts) -> None:
        refcounts.write()
        if refcounts.replaced is None:
            return
        offset, clusters = refcounts.replaced
        self.host.flush()
        bits = self.header.cluster_bits
        self.change_header(
            refcount_table_offset=refcounts.table_offset,
            refcount_table_clusters=len(refcounts.table) * 8 >> bits,
        )
        self.host.flush()
        refcounts.settled()
        self._released.extend(range(offset >> bits, (offset >> bits) + clusters))
        self._used.remove(offset >> bits, clusters)

    def _free(self, clusters: Iterable[int]) -> None:
        """Lower counts; a crash before the next flush only loses space."""
        self._released = []
        freed = [cluster for cluster in clusters if not self.refcounts.add(cluster, -1)]
        self.refcounts.write()
        self.refcounts.settled()
        if self._discard:
            self._discard = False
            bits = self.header.cluster_bits
            for first, last in _runs(sorted(freed)):
                self.host.discard(first << bits, last - first << bits)

    def change_header(self, **changes: Any) -> None:
        """Write fields of the header; no flush. As `change_header`."""
        self.header = change_header(self.host, self.header, **changes)

    def replace_l1(self, l1: array[int], size: int) -> None:
        """Make the L1 table longer, moving it if necessary, and change the size of the disk.

        Args:
            l1: The active table's entries, followed by zeros.
            size: Bytes of the disk.

        Raises:
            DeviceError: It failed; the image has its old size, or the new one.
        """
        header, bits = self.header, self.header.cluster_bits
        old = _clusters(header.l1_size * 8, bits)
        new = _clusters(len(l1) * 8, bits)
        self.commit()
        if new == old:
            self.host.write_table(header.l1_offset, l1, header.l1_size, len(l1))
            offset = header.l1_offset
        else:
            first = self.refcounts.allocate_together(new)
            self._used.add(first, new)
            offset = first << bits
            self.host.write_table(offset, l1, 0, len(l1))
            self.commit()
        self.host.flush()
        self.change_header(l1_offset=offset, l1_size=len(l1), size=size)
        self.host.flush()
        self.l1 = l1
        if new != old:
            start = header.l1_offset >> bits
            self._used.remove(start, old)
            self._free(range(start, start + old))

    def _note_metadata(self, refcounts: Refcounts) -> None:
        header, bits = self.header, self.header.cluster_bits
        used = self._used
        used.add(header.l1_offset >> bits, _clusters(header.l1_size * 8, bits))
        used.add(header.refcount_table_offset >> bits, header.refcount_table_clusters)
        encryption = header.extensions.encryption
        if encryption is not None:
            used.add(encryption.offset >> bits, _clusters(encryption.length, bits))
        for offset in refcounts.metadata():
            used.add(offset >> bits)
        for entry in self.l1:
            if entry & OFFSET_MASK:
                used.add((entry & OFFSET_MASK) >> bits)


def change_header(host: Host, header: Qcow2Header, **changes: Any) -> Qcow2Header:
    """Write fields of the header, in one write of one sector; no flush (Q10).

    Args:
        host: Holds the image.
        header: Its header.
        changes: Fields of `Qcow2Header` with new values.

    Returns:
        The header as it is now.
    """
    header = replace(header, **changes)
    sector = host.read(0, SECTOR_SIZE)
    fields = encode_fields(header)
    sector[: len(fields)] = fields
    host.write(0, sector)
    return header


def _clusters(size: int, bits: int) -> int:
    return size + (1 << bits) - 1 >> bits


def _runs(numbers: list[int]) -> Iterable[tuple[int, int]]:
    start = 0
    for index in range(1, len(numbers) + 1):
        if index == len(numbers) or numbers[index] != numbers[index - 1] + 1:
            yield numbers[start], numbers[index - 1] + 1
            start = index
