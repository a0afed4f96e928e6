"""Changes of many tables at once, which happen as a whole or not at all.

Snapshots and repairs change counts, flags and tables all over an image. This module
writes all new ones to clusters that are free both before and after, makes them
durable, and then switches to them by one write of the header's sector (Q10). A crash
leaves the old state or the new one, and neither loses space.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Final

from formats.errors import CorruptImageError, DeviceFullError, FormatError, UnsupportedError
from formats.qcow2 import features
from formats.qcow2.bitmaps import invalidate_bitmaps
from formats.qcow2.counts import Counts
from formats.qcow2.header import MAX_REFCOUNT_TABLE_SIZE
from formats.qcow2.host import encode_table
from formats.qcow2.lost import Lost, cut_off
from formats.qcow2.metadata import change_header
from formats.qcow2.refcounts import Refcounts
from formats.qcow2.snapshot_table import MAX_TABLE_SIZE, encode_snapshots, read_snapshots
from formats.qcow2.sparse import SparseCounts
from formats.qcow2.tables import COMPRESSED, COPIED, OFFSET_MASK, clusters_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from formats.qcow2.header import Qcow2Header
    from formats.qcow2.host import Host
    from formats.qcow2.snapshot_table import Snapshot

_OFFSET: Final = OFFSET_MASK


class Rewrite:
    """A new state of an image in the making. Not safe in several threads.

    Attributes:
        counts: The refcounts of the new state, to be changed.
    """

    def __init__(
        self,
        host: Host,
        header: Qcow2Header,
        old: SparseCounts,
        *,
        lost: Lost | None = None,
        limit: int | None = None,
    ) -> None:
        """Begin with the clusters in use.

        Args:
            host: Holds the image; it has no pending writes.
            header: Its header.
            old: How often each cluster is used, refcounts included; not modified.
            lost: In a repair, the clusters that the image refers to beyond its end. A repair
                continues where the image contradicts itself.
            limit: Cluster before which new tables must end, if clusters are lost.
        """
        self.host = host
        self._header = header
        self._old = old
        self.counts = old.copy()
        self._hint = 0
        self._lost = lost
        self._allocation_limit = limit
        self._limit = (1 << header.refcount_bits) - 1

    def drop_refcounts(self) -> None:
        """Count the old refcount table and its blocks as free afterwards."""
        header, bits = self._header, self._header.cluster_bits
        first = header.refcount_table_offset >> bits
        if first:  # otherwise it is lost, and the first cluster is the header's (Q30)
            self.release_clusters(range(first, first + header.refcount_table_clusters))
        end = -(-self.host.size // header.cluster_size) if self._lost is None else self._lost.window
        for offset in Refcounts(self.host, header).metadata():
            # Other entries are not blocks, and were not counted.
            if not offset % header.cluster_size and offset >> bits < end:
                self.release_clusters([offset >> bits])

    def allocate(self, clusters: int = 1) -> int:
        """Take consecutive clusters; return the byte offset of the first.

        Raises:
            TruncatedImageError: Too much of the image is missing to find a place.
        """
        first = self._hint
        found = 0
        while found < clusters:
            cluster = first + found
            if self._old[cluster] or self.counts[cluster]:
                first, found = cluster + 1, 0
            else:
                found += 1
        limit, lost = self._allocation_limit, self._lost
        if limit is not None and first + clusters > limit and lost and lost.first is not None:
            raise cut_off(lost.first, self._header)
        for cluster in range(first, first + clusters):
            self.counts[cluster] = 1
        if clusters == 1:
            self._hint = first + 1
        return first << self._header.cluster_bits

    def write_new(self, data: bytes) -> int:
        """Write a table into new clusters; return its byte offset."""
        size = self._header.cluster_size
        offset = self.allocate(max(1, -(-len(data) // size)))
        self.host.write(offset, data.ljust(-(-len(data) // size) * size, b"\0"))
        return offset

    def write_snapshots(self, snapshots: Sequence[Snapshot]) -> int:
        """Write a snapshot table, and count the old one as free.

        Returns:
            The byte offset of the new one, or 0 if there are no snapshots.

        Raises:
            UnsupportedError: It would be larger than 64 MiB.
            StorageError: As `read_snapshots`, or `write_new`.
        """
        header = self._header
        if header.snapshot_count:
            old = read_snapshots(self.host, header)
            self.release_table(header.snapshots_offset, len(encode_snapshots(old)))
        if not snapshots:
            return 0
        table = encode_snapshots(snapshots)
        if len(table) > MAX_TABLE_SIZE:
            raise UnsupportedError(
                "the snapshot table is larger than 64 MiB", feature="more snapshots"
            )
        return self.write_new(table)

    def release_clusters(self, clusters: Iterable[int]) -> None:
        """Lower the counts of clusters by one.

        Raises:
            CorruptImageError: One counts as free already.
        """
        for cluster in clusters:
            if not self.counts[cluster]:
                if self._lost is not None:
                    continue
                raise CorruptImageError(
                    "a cluster that counts as free is in use",
                    offset=cluster << self._header.cluster_bits,
                    rule="Q9",
                    hint="repair the image first: blobstore check --repair all",
                )
            self.counts[cluster] -= 1

    def release_table(self, offset: int, size: int) -> None:
        """Lower the counts of the clusters of a table of ``size`` bytes."""
        bits = self._header.cluster_bits
        self.release_clusters(range(offset >> bits, offset + size + (1 << bits) - 1 >> bits))

    def use_tree(self, l1: Iterable[int], delta: int) -> None:
        """Count all L2 tables of an L1 table, and all clusters these refer to.

        Args:
            l1: Entries.
            delta: 1 or -1.

        Raises:
            FormatError: A table is impossible.
            CorruptImageError: A cluster that counts as free is in use.
        """
        bits = self._header.cluster_bits
        for entry in tables_once(l1):
            used = [(entry & _OFFSET) >> bits]
            for each in self.read_l2(entry & _OFFSET):
                if each:
                    used.extend(clusters_of(each, bits))
            if delta < 0:
                self.release_clusters(used)
            else:
                for cluster in used:
                    self.counts.add(cluster, delta)

    def read_l2(self, offset: int) -> array[int]:
        """Return the entries of an L2 table.

        Raises:
            FormatError, DeviceError: It cannot be read.
        """
        if offset % self._header.cluster_size:
            raise CorruptImageError("an L2 table is not at a cluster", offset=offset, rule="Q9")
        if self._lost is None:
            self.host.check_whole(offset, self._header.cluster_size, "an L2 table")
        return self.host.read_table(offset, self._header.l2_entries)

    def flagged(self, l1: array[int]) -> array[int]:
        """Return an active L1 table whose flags, and those of its L2 tables, match the counts.

        L2 tables with wrong flags are replaced by corrected copies.
        """
        bits = self._header.cluster_bits
        placed: dict[int, int] = {}  # old offset of a table to its new one
        new = l1[:]
        for index, entry in enumerate(l1):
            offset = new[index] = entry & _OFFSET
            if not offset or self._is_lost(offset):
                continue
            if offset not in placed:
                placed[offset] = self._flagged_table(offset)
            elif placed[offset] != offset:
                self.release_clusters([offset >> bits])
                self.counts.add(placed[offset] >> bits, 1)
            new[index] = placed[offset]
        for index, offset in enumerate(new):
            if offset and self.counts[offset >> bits] == 1:
                new[index] |= COPIED
        return new

    def _is_lost(self, offset: int) -> bool:
        """Say whether an L2 table is beyond the end, or not at a cluster."""
        cluster, rest = divmod(offset, self._header.cluster_size)
        return self._lost is not None and bool(
            rest or cluster >= self._lost.end or not self.counts[cluster]
        )

    def _flagged_table(self, offset: int) -> int:
        """Return the offset of an L2 table with the right flags: the table itself, or a copy."""
        old = self.read_l2(offset)
        entries = array("Q", [self._flagged_entry(each) for each in old])
        if entries == old:
            return offset
        self.release_clusters([offset >> self._header.cluster_bits])
        return self.write_new(encode_table(entries))

    def _flagged_entry(self, entry: int) -> int:
        offset = entry & _OFFSET
        if entry & COMPRESSED or not offset:
            return entry & ~COPIED
        if offset % self._header.cluster_size:
            return entry
        alone = self.counts[offset >> self._header.cluster_bits] == 1
        return entry & ~COPIED | (COPIED if alone else 0)

    def finish(self, *, content_changes: bool = False, **changes: Any) -> Qcow2Header:
        """Write the counts, make everything durable, and switch to the new state.

        Args:
            content_changes: Whether the content of the disk changes.
            changes: Fields of the header that change too.

        Returns:
            The header as it is now.

        Raises:
            UnsupportedError: A count does not fit into the bits of a refcount; nothing
                changed.
            DeviceError: It failed; the image is in its old state, or in the new one.
        """
        table_offset, table = self._write_refcounts()
        self.host.flush()
        autoclear = self._header.autoclear & features.BITMAPS
        if autoclear and content_changes:
            resized = changes.get("size", self._header.size) != self._header.size
            if not invalidate_bitmaps(self.host, self._header, resized=resized):
                autoclear = 0
        header = change_header(
            self.host,
            self._header,
            refcount_table_offset=table_offset,
            refcount_table_clusters=len(table) * 8 // self._header.cluster_size,
            autoclear=autoclear,
            **changes,
        )
        self.host.flush()
        return header

    def _write_refcounts(self) -> tuple[int, array[int]]:
        """Write blocks and table for all counts; return where the table is, and the table."""
        cluster_size = self._header.cluster_size
        region = cluster_size * 8 // self._header.refcount_bits
        per_cluster = cluster_size // 8
        blocks: dict[int, int] = {}
        table_offset, table_clusters = 0, 0
        while True:
            regions = self._regions(region)
            missing = [number for number in regions if number not in blocks]
            needed = -(-(max(regions, default=0) + 1) // per_cluster)
            if needed > table_clusters:
                if table_clusters:  # nothing refers to it
                    self.release_table(table_offset, table_clusters * cluster_size)
                table_clusters = needed + needed // 8
                if table_clusters * cluster_size > MAX_REFCOUNT_TABLE_SIZE:
                    raise DeviceFullError("the refcount table has reached its limit")
                table_offset = self.allocate(table_clusters)
            elif not missing:
                break
            for number in missing:
                blocks[number] = self.allocate()
        table = array("Q", bytes(table_clusters * cluster_size))
        for number, offset in blocks.items():
            self.host.write(offset, self._block(number, region))
            table[number] = offset
        self.host.write(table_offset, encode_table(table))
        return table_offset, table

    def _regions(self, region: int) -> set[int]:
        return {cluster // region for cluster, _ in self.counts.used()}

    def _block(self, number: int, region: int) -> bytearray:
        counts = Counts(bytearray(self._header.cluster_size), self._header.refcount_bits)
        for index, count in self.counts.between(number * region, (number + 1) * region):
            if count > self._limit:
                raise UnsupportedError(
                    f"a refcount of {self._header.refcount_bits} bits cannot count {count}"
                    " uses [Q3]",
                    feature="refcount width",
                )
            counts[index - number * region] = count
        return counts.raw


def tables_once(l1: Iterable[int]) -> Iterator[int]:
    """Yield the entries of an L1 table that refer to L2 tables, each to a different one.

    Raises:
        CorruptImageError: Two entries refer to the same table.
    """
    seen: set[int] = set()
    for entry in l1:
        offset = entry & _OFFSET
        if not offset:
            continue
        if offset in seen:
            raise CorruptImageError("an L2 table is used twice", offset=offset, rule="Q9")
        seen.add(offset)
        yield entry


def load_counts(host: Host, header: Qcow2Header, *, skip_bad: bool = False) -> SparseCounts:
    """Return the refcounts of an image from its disk.

    Args:
        host: Holds the image.
        header: Its header.
        skip_bad: Count zero for a block that is impossible or cut off.

    Raises:
        FormatError, DeviceError: A block cannot be read.
    """
    counts = SparseCounts()
    refcounts = Refcounts(host, header)
    # Clusters that count beyond the end were cut off, and must not be taken for free.
    clusters = Lost(header, host.size).window
    seen: set[int] = set()
    for number, entry in enumerate(refcounts.table):
        base = number * refcounts.region
        if not entry or base >= clusters:
            continue
        try:
            if entry in seen:
                raise CorruptImageError(
                    "a refcount block counts two ranges of clusters", offset=entry, rule="Q9"
                )
            found = refcounts.block_counts(number)
        except FormatError:
            if not skip_bad:
                raise
            continue
        seen.add(entry)
        for index, count in found:
            if base + index < clusters:
                counts[base + index] = count
    return counts
