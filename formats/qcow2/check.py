"""Checking an image: whether exactly the clusters in use are counted as used.

The findings are those of ``qemu-img check``: corruptions, which endanger data, and
leaks, which waste space.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from formats.errors import CorruptImageError, FormatError
from formats.qcow2 import features
from formats.qcow2.bitmaps import MAX_TABLE, TABLE_OFFSET_MASK, read_bitmaps
from formats.qcow2.compression import decompress
from formats.qcow2.header import MAX_L1_SIZE, is_refcount_table_lost, read_header
from formats.qcow2.host import Host
from formats.qcow2.lost import Lost
from formats.qcow2.mapping import has_impossible_bitmap
from formats.qcow2.refcounts import TABLE_OFFSET_MASK as BLOCK_OFFSET_MASK
from formats.qcow2.refcounts import Refcounts
from formats.qcow2.report import CheckReport
from formats.qcow2.rewrite import load_counts
from formats.qcow2.snapshot_table import encode_snapshots, read_snapshots
from formats.qcow2.sparse import SparseCounts
from formats.qcow2.tables import (
    COMPRESSED,
    COPIED,
    L1_RESERVED,
    L2_RESERVED,
    OFFSET_MASK,
    EntryKind,
    compressed_place,
    entry_kind,
)

if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterable

    from formats.devices.device import BlockDevice


def check(device: BlockDevice) -> CheckReport:
    """Check the tables of an image: refcounts, overlaps, flags, bounds. Nothing is written.

    Args:
        device: Holds the image, which must not be written meanwhile. It may be one whose
            disk cannot be read here (Q32).

    Raises:
        FormatError, UnsupportedError: The header, or the snapshot table, is not sound
            enough to say what belongs to the image.
        DeviceError: It cannot be read.
    """
    return Checker(device, features.READABLE).run()


class Checker:
    """One check of an image.

    Attributes:
        host: Holds the image.
        header: Its header.
        report: The findings so far.
        used: How often each cluster is used, after `run`; beyond the end, up to
            ``lost.window``.
        lost: The clusters used beyond the end, after `run`.
        bad_blocks: Whether refcount blocks cannot be read.
        lost_blocks: Whether some are beyond the end.
    """

    def __init__(self, device: BlockDevice, implemented: int = features.IMPLEMENTED) -> None:
        self.host = Host(device)
        self.header = read_header(device, implemented)
        self.report = CheckReport()
        self.used = SparseCounts()
        self.lost = Lost(self.header, self.host.size)
        self.bad_blocks = False
        self.lost_blocks = False
        self._clusters = self.lost.end
        # Data clusters are then in another file, where nothing is counted.
        self._external = self.header.has_data_file
        self._inflated: dict[int, bool] = {}
        self._l2_seen: Counter[int] = Counter()
        self._active: Counter[int] = Counter()

    def run(self) -> CheckReport:
        """Check everything; errors as `check`."""
        header, report = self.header, self.report
        report.total_clusters = -(-header.size // header.cluster_size)
        self.count()
        stored = self._compare()
        self._check_flags(stored)
        end = max(stored.end(self._clusters), self.used.end(self._clusters))
        report.image_end_offset = end << header.cluster_bits
        if header.incompatible & features.CORRUPT:
            report.findings.append("the image is marked as corrupt")
        return report

    def count(self) -> None:
        """Count the uses of clusters, without reading the counts on disk; errors as `check`."""
        header = self.header
        self._use(0, header.cluster_size, "the header")
        self._use_l1s()
        self._use_l2s()
        encryption = header.extensions.encryption
        if encryption is not None:
            self._use(encryption.offset, encryption.length, "the LUKS header")
        self._use_bitmaps()
        self._use_refcounts()

    def _use(self, offset: int, size: int, what: str, times: int = 1) -> bool:
        """Count a use of a range of the image; return whether that was possible."""
        if not size:
            return True
        bits = self.header.cluster_bits
        first, last = offset >> bits, offset + size - 1 >> bits
        if last >= self._clusters:
            self.report.corrupt(f"{what} at byte {offset} is beyond the end of the image", times)
            self.lost.note(self.used, first, last, times)
            return False
        for cluster in range(first, last + 1):
            self.used.add(cluster, times)
        return True

    def _lose(self, offset: int, size: int, what: str) -> None:
        """Note a range that ends beyond the image and must not be filled with zeros."""
        bits = self.header.cluster_bits
        self.lost.note(self.used, offset >> bits, offset + size - 1 >> bits, 1)
        self.lost.forbid(what)

    def _use_l1s(self) -> None:
        """Count L1 tables, and note how often they refer to which L2 tables."""
        header, host = self.header, self.host
        snapshots = read_snapshots(host, header)
        tables = [(header.l1_offset, header.l1_size, "the active L1 table")]
        for snapshot in snapshots:
            what = f"the L1 table of snapshot {snapshot.id!r}"
            if header.version == 3 and len(snapshot.extra) < 16:
                self.report.corrupt(f"snapshot {snapshot.id!r} does not state the size of its disk")
            if snapshot.l1_offset % header.cluster_size or snapshot.l1_size * 8 > MAX_L1_SIZE:
                self.report.corrupt(f"{what} is impossible")
            elif snapshot.l1_offset + snapshot.l1_size * 8 > host.size and snapshot.l1_size:
                self.report.corrupt(f"{what} is beyond the end of the image")
                self._lose(snapshot.l1_offset, snapshot.l1_size * 8, what)
            else:
                tables.append((snapshot.l1_offset, snapshot.l1_size, what))
        if sum(size for _, size, _ in tables) * 8 > host.size + MAX_L1_SIZE:
            raise CorruptImageError("the L1 tables are larger than the image", rule="Q18")
        for number, (offset, size, what) in enumerate(tables):
            self._use(offset, size * 8, what)
            for entry in host.read_table(offset, size) if size else ():
                self._use_l1_entry(entry, what, active=number == 0)
        if snapshots:
            size = len(encode_snapshots(snapshots))
            self._use(header.snapshots_offset, size, "the snapshot table")

    def _use_l1_entry(self, entry: int, what: str, *, active: bool) -> None:
        offset = entry & OFFSET_MASK
        if entry & L1_RESERVED:
            self.report.corrupt(f"{what} has an entry with reserved bits, {entry:#x}")
        if not offset:
            return
        self._l2_seen[offset] += 1
        if active:
            self._active[offset] += 1

    def _use_l2s(self) -> None:
        """Count the clusters that L2 tables refer to; each table is read only once."""
        for offset, times in self._l2_seen.items():
            there = self._use(offset, self.header.cluster_size, "an L2 table", times)
            if offset + self.header.cluster_size > self.host.size:
                self.lost.note_table()
                if there:
                    self.report.corrupt(f"the L2 table at byte {offset} is cut off", times)
                    self.lost.note_part()
            if offset % self.header.cluster_size:
                self.report.corrupt(f"an L2 table at byte {offset} is not at a cluster", times)
                there = False
            if not there:
                continue
            entries = self._l2(offset, times)
            active = bool(self._active[offset])
            self._use_entries(entries, offset, times, active=active)

    def _l2(self, offset: int, times: int = 0) -> array[int]:
        """Return the entries of an L2 table; of ``times`` uses report impossible bitmaps (Q35)."""
        words = self.host.read_table(offset, self.header.l2_entries)
        if not self.header.has_extended_l2:
            return words
        entries = words[::2]
        for index, entry in enumerate(entries if times else ()):
            if has_impossible_bitmap(entry, words[2 * index + 1], external=self._external):
                place = f"entry {index} of the L2 table at byte {offset}"
                self.report.corrupt(f"{place} has an impossible bitmap", times)
        return entries

    def _use_entries(self, entries: Iterable[int], table: int, times: int, *, active: bool) -> None:
        bits, size = self.header.cluster_bits, self.header.cluster_size
        used, end = self.used, self._clusters
        expected = 0
        for index, entry in enumerate(entries):
            if not entry:
                continue
            place = f"entry {index} of the L2 table at byte {table}"
            kind = entry_kind(entry)
            if kind is EntryKind.COMPRESSED:
                self._use_compressed(entry, place, times)
                if active:
                    self.report.compressed_clusters += 1
                    self.report.allocated_clusters += 1
                    self.report.fragmented_clusters += 1
                continue
            if entry & L2_RESERVED:
                self.report.corrupt(f"{place} has reserved bits, {entry:#x}", times)
            offset = entry & OFFSET_MASK
            if not offset and not (self._external and entry & COPIED):
                continue
            if active:
                self.report.allocated_clusters += 1
                if expected and offset != expected:
                    self.report.fragmented_clusters += 1
                expected = offset + size
            if offset % size:
                self.report.corrupt(
                    f"{place} refers to byte {offset}, which is not a cluster", times
                )
                # As QEMU does: to count too much is better than to count too little.
                if not self._external:
                    self._use(offset, size, place, times)
            elif self._external:
                continue
            elif offset >> bits >= end:
                self.report.corrupt(f"{place} refers to byte {offset}, beyond the end", times)
                self.lost.note(used, offset >> bits, offset >> bits, times)
                self.lost.note_data()
            else:
                used.add(offset >> bits, times)
                if offset + size > self.host.size and self.header.crypt_method:
                    self.lost.note_part()
                    self.lost.note_data()

    def _use_compressed(self, entry: int, place: str, times: int) -> None:
        if entry & COPIED:
            self.report.corrupt(f"{place} is compressed and marked as used once", times)
        if self._external:
            self.report.corrupt(f"{place} is compressed, with an external data file", times)
            return
        offset, size = compressed_place(entry & ~COPIED, self.header.cluster_bits)
        # The sectors of the last one may end beyond the file.
        bits = self.header.cluster_bits
        first, last = offset >> bits, offset + size - 1 >> bits
        if first >= self._clusters:
            self.report.corrupt(f"{place} refers to byte {offset}, beyond the end", times)
            self.lost.note(self.used, first, last, times)
            return
        for cluster in range(first, min(last, self._clusters - 1) + 1):
            self.used.add(cluster, times)
        if offset + size > self.host.size and not self._is_whole(offset):
            self.report.corrupt(f"{place} refers to byte {offset}, and is cut off", times)
            self.lost.note_part()
            self.lost.note(self.used, last, last, times)
            self.lost.forbid("compressed data")

    def _is_whole(self, offset: int) -> bool:
        """Say whether compressed data near the end of the image is complete."""
        if offset not in self._inflated:
            data = (
                self.host.read(offset, self.host.size - offset) if offset < self.host.size else b""
            )
            try:
                decompress(data, self.header.cluster_size, self.header.compression_type)
            except FormatError:
                self._inflated[offset] = False
            else:
                self._inflated[offset] = True
        return self._inflated[offset]

    def _use_bitmaps(self) -> None:
        header, host = self.header, self.host
        pointer = header.extensions.bitmaps
        try:
            bitmaps = read_bitmaps(host, header)
        except FormatError as error:
            self.report.corrupt(str(error))
            if pointer is not None and pointer.offset + pointer.size > host.size:
                self._lose(pointer.offset, pointer.size, "the bitmap directory")
            return
        if not bitmaps or pointer is None:
            return
        self._use(pointer.offset, pointer.size, "the bitmap directory")
        total = 0
        for bitmap in bitmaps:
            offset, size = bitmap.table_offset, bitmap.table_size
            total += size
            if total > max(MAX_TABLE, host.size // 8):
                raise CorruptImageError("the bitmaps' tables are larger than the image", rule="Q8")
            if offset % header.cluster_size or not offset:
                self.report.corrupt(f"the table of bitmap {bitmap.name!r} is not at a cluster")
                continue
            what = f"bitmap {bitmap.name!r}"
            if not self._use(offset, size * 8, f"the table of {what}"):
                self.lost.forbid(what)
                continue
            for entry in host.read_table(offset, size) if size else ():
                place = entry & TABLE_OFFSET_MASK
                if place and not self._use(place, header.cluster_size, what):
                    self.lost.forbid(what)

    def _use_refcounts(self) -> None:
        header, report = self.header, self.report
        self._use_refcount_table()
        table = Refcounts(self.host, header).table
        for number, entry in enumerate(table):
            offset = entry & BLOCK_OFFSET_MASK
            if entry & ~BLOCK_OFFSET_MASK:
                # Its counts hold, but QEMU does not count the block itself as used.
                report.corrupt(f"refcount table entry {number} has reserved bits, {entry:#x}")
                continue
            if not offset:
                continue
            if offset % header.cluster_size:
                report.corrupt(f"refcount block {number} at byte {offset} is not at a cluster")
                self.bad_blocks = True
            elif offset >> header.cluster_bits >= self._clusters:
                report.corrupt(f"refcount block {number} is beyond the end of the image")
                cluster = offset >> header.cluster_bits
                self.lost.note(self.used, cluster, cluster, 1)
                self.bad_blocks = self.lost_blocks = True
            else:
                cluster = offset >> header.cluster_bits
                self.used.add(cluster, 1)
                if self.used[cluster] != 1:
                    report.corrupt(
                        f"refcount block {number} at byte {offset} is used more than once"
                    )
                    self.bad_blocks = True

    def _use_refcount_table(self) -> None:
        """Count the uses of the refcount table, which may be lost (Q30)."""
        header = self.header
        offset, size = header.refcount_table_offset, header.refcount_table_clusters
        size <<= header.cluster_bits
        if not size:
            self.report.findings.append("the image has no refcount table")
        elif not offset:
            self.report.corrupt("the refcount table is at byte 0")
        elif self._use(offset, size, "the refcount table") and offset + size > self.host.size:
            self.report.corrupt("the refcount table is cut off")
            self.lost.note_part()
        if is_refcount_table_lost(header, self.host.size):
            self.bad_blocks = True
            # In a longer file it could be a table of zeros, which counts everything as free.
            self.lost_blocks = bool(size) and 0 < offset >> header.cluster_bits < self.lost.window

    def _compare(self) -> SparseCounts:
        """Compare with the counts on disk, and return these."""
        stored = load_counts(self.host, self.header, skip_bad=True)
        for number in sorted({*stored.chunks(), *self.used.chunks()}):
            counts, uses = stored.chunk(number), self.used.chunk(number)
            if counts == uses:
                continue
            base = number * len(uses)
            for index, (count, use) in enumerate(zip(counts, uses, strict=True), base):
                if index >= self._clusters:
                    break
                if count < use:
                    self.report.miscount(f"cluster {index} is used {use} times and counts {count}")
                elif count > use:
                    self.report.leak(f"cluster {index} is used {use} times and counts {count}")
        return stored

    def _check_flags(self, stored: SparseCounts) -> None:
        header, report = self.header, self.report
        bits, size = header.cluster_bits, header.cluster_size
        for index, l1_entry in enumerate(self.host.read_table(header.l1_offset, header.l1_size)):
            offset = l1_entry & OFFSET_MASK
            if not offset:
                continue
            if (stored[offset >> bits] == 1) != bool(l1_entry & COPIED):
                report.miscount(f"the flag of L1 entry {index} contradicts the count of its table")
        for offset, times in self._active.items():
            if offset % size or offset >> bits >= self._clusters:
                continue
            for number, entry in enumerate(self._l2(offset)):
                place = entry & OFFSET_MASK
                if not place or entry & COMPRESSED:
                    continue
                alone = self._external or stored[place >> bits] == 1
                if alone != bool(entry & COPIED):
                    report.miscount(
                        f"the flag of entry {number} of the L2 table at byte {offset} contradicts"
                        " the count of its cluster",
                        times,
                    )
