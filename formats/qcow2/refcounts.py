"""Reference counts of host clusters, and the allocation of clusters by them.

All changes stay in memory until `write`, which is one step of a commit
(Q11 to Q14). Counts must not be lowered on the medium while anything there still
refers to their clusters, and until then the clusters are not free: the caller,
`formats.qcow2.metadata`, ensures that.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from formats.errors import DeviceFullError, FormatError, UnsupportedError
from formats.qcow2.counts import Counts, RefcountBlock
from formats.qcow2.header import MAX_REFCOUNT_TABLE_SIZE
from formats.qcow2.host import check_entry
from formats.qcow2.in_use import ClustersInUse
from formats.qcow2.lost import Growth

if TYPE_CHECKING:
    from collections.abc import Iterable

    from formats.qcow2.header import Qcow2Header
    from formats.qcow2.host import Host

#: Bytes of refcount blocks that are kept in memory.
_CACHE_SIZE: Final = 2 << 20
_SECTOR: Final = 512
#: Bits of a refcount table entry that are an offset.
TABLE_OFFSET_MASK: Final = 0xFFFF_FFFF_FFFF_FE00


class Refcounts:
    """The refcount table and blocks of an image. Not safe in several threads."""

    def __init__(self, host: Host, header: Qcow2Header, used: ClustersInUse | None = None) -> None:
        """Read the refcount table.

        Args:
            host: Holds the image.
            header: Its header.
            used: Says which clusters hold metadata, and learns of new ones.

        Raises:
            DeviceError: It cannot be read.
        """
        self._host = host
        self._used = used or ClustersInUse(header.cluster_size)
        self._bits = header.refcount_bits
        self._cluster_size = header.cluster_size
        #: Clusters that one refcount block counts.
        self.region = header.cluster_size * 8 // header.refcount_bits
        # A lost table counts nothing; then the image is only read, checked or repaired (Q30).
        there = 0 < header.refcount_table_offset < host.size
        size = header.refcount_table_clusters * header.cluster_size if there else 0
        self.table = (
            host.read_table(header.refcount_table_offset, size // 8) if size else array("Q")
        )
        self.table_offset = header.refcount_table_offset
        #: Where the table on disk is, while a larger one replaces it.
        self.replaced: tuple[int, int] | None = None
        self._blocks: OrderedDict[int, RefcountBlock] = OrderedDict()
        self._dirty: dict[int, RefcountBlock] = {}
        self._homeless: list[int] = []
        self._new: dict[int, bool] = {}  # region, and whether its block counts itself
        self._hint = 0
        self._growth = Growth(host, header)

    @property
    def dirty_size(self) -> int:
        """Bytes of blocks that wait to be written."""
        return len(self._dirty) * self._cluster_size

    @property
    def dirty(self) -> bool:
        """Whether anything waits to be written."""
        return bool(self._dirty or self._new or self.replaced)

    def get(self, cluster: int) -> int:
        """Return the count of a cluster."""
        region, index = divmod(cluster, self.region)
        block = self._block(region)
        return 0 if block is None else block.counts[index]

    def add(self, cluster: int, delta: int) -> int:
        """Change the count of a cluster; return the new one.

        Raises:
            UnsupportedError: It would not fit into the bits of a refcount.
            FormatError: It would be negative.
        """
        region, index = divmod(cluster, self.region)
        if self.get(cluster) + delta < 0:
            raise FormatError(
                "a cluster that counts as free is in use",
                offset=cluster * self._cluster_size,
                rule="Q9",
            )
        block = self._made_block(region)
        count = block.counts[index] + delta
        if count >> self._bits:
            raise UnsupportedError(
                f"a refcount of {self._bits} bits cannot count {count} uses [Q3]",
                feature="refcount width",
            )
        block.counts[index] = count
        block.touch(index, index + 1)
        self._dirty[region] = block
        if not count:
            self._hint = min(self._hint, cluster)
        self._settle()
        return count

    def allocate(self, most: int) -> tuple[int, int]:
        """Take up to ``most`` consecutive free clusters.

        Returns:
            The first, and their number; their counts are 1 now.

        Raises:
            DeviceFullError: The image is as large as one can be.
        """
        first = self._find_free(self._hint)
        region, index = divmod(first, self.region)
        if self._block(region) is None:
            # The block of a region is its first cluster, and so counts itself.
            self._made_block(region)
            self._settle()
            first = self._find_free(first)
            region, index = divmod(first, self.region)
        block = self._made_block(region)
        count = block.counts.free_run(index, most)
        self._take(first, count)
        self._hint = first + count
        return first, count

    def allocate_together(self, count: int) -> int:
        """Take exactly ``count`` consecutive free clusters; return the first.

        Raises:
            DeviceFullError: The image is as large as one can be.
        """
        first = self._find_free(self._hint)
        while (found := self._free_run(first, count)) < count:
            first = self._find_free(first + found + 1)
        self._take(first, count)
        try:
            self._settle()
        except BaseException:
            for cluster in range(first, first + count):
                self._dirty[cluster // self.region].counts[cluster % self.region] = 0
            self._abandon()
            raise
        return first

    def write(self) -> None:
        """Write the changes, new blocks before the table that refers to them.

        When it returns the blocks are written but not flushed; call `settled` once they
        are. All blocks are durable before a table that refers to them is written.

        Raises:
            DeviceError: It failed; call it again to write everything again.
        """
        self._settle()
        for block in self._dirty.values():
            first = block.first - block.first % _SECTOR
            last = block.last + -block.last % _SECTOR
            self._host.write(block.offset + first, memoryview(block.counts.raw)[first:last])
        if self.replaced is not None:
            self._host.write_table(self.table_offset, self.table, 0, len(self.table))
            return
        # A block that another block counts is written once that one is reachable.
        own = [region for region, counts_itself in self._new.items() if counts_itself]
        others = [region for region, counts_itself in self._new.items() if not counts_itself]
        table = self.table[:] if others else self.table
        for region in others:
            table[region] = 0
        for regions, entries in ((own, table), (others, self.table)):
            if regions:
                self._host.flush()
            for region in regions:
                self._host.write_table(self.table_offset, entries, region, region + 1)

    def settled(self) -> None:
        """Note that the result of `write` is durable."""
        for region, block in self._dirty.items():
            block.first = block.last = 0
            self._keep(region, block)
        self._dirty.clear()
        self._new.clear()
        self.replaced = None

    def metadata(self) -> list[int]:
        """Return the offsets of all blocks."""
        return [entry & TABLE_OFFSET_MASK for entry in self.table if entry]

    def block_counts(self, region: int) -> Iterable[tuple[int, int]]:
        """Return index and value of the counts of a region that are not zero.

        Raises:
            FormatError, DeviceError: Its block cannot be read.
        """
        block = self._block(region)
        return () if block is None else block.counts.used()

    def _take(self, first: int, count: int) -> None:
        end = first + count
        self._used.check(first, count)
        self._growth.check(first, end)
        # A lack of room must be reported now, not when the changes are made durable.
        self._host.reach(end * self._cluster_size)
        while first < end:
            region, index = divmod(first, self.region)
            number = min(end - first, self.region - index)
            block = self._made_block(region)
            block.counts.fill(index, number)
            block.touch(index, index + number)
            self._dirty[region] = block
            first += number

    def _find_free(self, cluster: int) -> int:
        while True:
            region, index = divmod(cluster, self.region)
            block = self._block(region)
            if block is None:
                return cluster
            found = block.counts.find_free(index)
            if found is not None:
                return region * self.region + found
            cluster = (region + 1) * self.region

    def _free_run(self, first: int, most: int) -> int:
        found = 0
        while found < most:
            region, index = divmod(first + found, self.region)
            block = self._block(region)
            here = min(self.region - index, most - found)
            run = here if block is None else block.counts.free_run(index, here)
            found += run
            if run < here:
                break
        return found

    def _block(self, region: int) -> RefcountBlock | None:
        block = self._dirty.get(region)
        if block is not None:
            return block
        block = self._blocks.get(region)
        if block is not None:
            self._blocks.move_to_end(region)
            return block
        if region >= len(self.table) or not self.table[region]:
            return None
        offset = self.table[region] & TABLE_OFFSET_MASK
        check_entry(offset, self._cluster_size, "a refcount block", self.table_offset + region * 8)
        block = RefcountBlock(
            Counts(self._host.read(offset, self._cluster_size), self._bits), offset
        )
        self._keep(region, block)
        return block

    def _keep(self, region: int, block: RefcountBlock) -> None:
        self._blocks[region] = block
        self._blocks.move_to_end(region)
        while len(self._blocks) > max(2, _CACHE_SIZE // self._cluster_size):
            self._blocks.popitem(last=False)

    def _made_block(self, region: int) -> RefcountBlock:
        block = self._block(region)
        if block is None:
            self._reach(region)
            block = self._block(region)  # a table that moved here has made it
        if block is None:
            block = RefcountBlock(Counts(bytearray(self._cluster_size), self._bits), 0)
            block.touch(0, self.region)
            self._dirty[region] = block
            self._homeless.append(region)
        return block

    def _settle(self) -> None:
        """Place new blocks, in the region that they count if it has room."""
        while self._homeless:
            region = self._homeless[-1]
            block = self._dirty[region]
            index = block.counts.find_free(0)
            if index is not None:
                cluster = region * self.region + index
                counts_itself = True
            else:
                cluster = self._find_free(region * self.region)
                home = cluster // self.region
                if self._block(home) is None:
                    self._made_block(home)
                    continue  # that one first
                counts_itself = False
            try:
                self._take(cluster, 1)
            except BaseException:
                self._abandon()
                raise
            block.offset = cluster * self._cluster_size
            self.table[region] = block.offset
            self._new[region] = counts_itself
            self._used.add(cluster)
            self._homeless.remove(region)

    def _abandon(self) -> None:
        """Drop new blocks that have no place and count nothing."""
        for region in self._homeless[:]:
            if not any(self._dirty[region].counts.raw):
                self._homeless.remove(region)
                del self._dirty[region]

    def _reach(self, region: int) -> None:
        """Move the table to a place where it is large enough for a region."""
        if region < len(self.table):
            return
        per_cluster = self._cluster_size // 8
        entries = max(region + 2, len(self.table) * 3 // 2)
        # It counts itself as well.
        entries += entries // per_cluster // self.region * 2 + 4
        clusters = -(-entries // per_cluster)
        if clusters * self._cluster_size > MAX_REFCOUNT_TABLE_SIZE:
            raise DeviceFullError("the image cannot grow: its refcount table has reached its limit")
        length = len(self.table)
        self.table.extend(array("Q", bytes(8 * (clusters * per_cluster - length))))
        try:
            first = self.allocate_together(clusters)
        except BaseException:
            self._shorten(length)
            raise
        old = None
        if self.replaced is None:
            self.replaced = self.table_offset, length // per_cluster
        else:
            old = self.table_offset, length // per_cluster
        self._used.add(first, clusters)
        self.table_offset = first * self._cluster_size
        if old is not None:  # nothing on disk refers to that one
            for cluster in range(old[1]):
                self.add(old[0] // self._cluster_size + cluster, -1)
            self._used.remove(old[0] // self._cluster_size, old[1])

    def _shorten(self, length: int) -> None:
        """Give up a longer table for which no place was found, and the blocks only it refers to."""
        del self.table[length:]
        for region in [region for region in self._dirty if region >= length]:
            del self._dirty[region]
            self._new.pop(region, None)
            if region in self._homeless:
                self._homeless.remove(region)
