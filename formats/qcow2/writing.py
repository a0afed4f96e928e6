"""Writing a disk: in place, to new clusters, and zeros."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.errors import FormatError
from formats.qcow2.content import CHUNK, SECTOR, ZEROS, Content
from formats.qcow2.mapping import Extent, extents
from formats.qcow2.tables import COMPRESSED, COPIED, OFFSET_MASK, ZERO, EntryKind

if TYPE_CHECKING:
    from array import array


class WritableContent(Content):
    """Reads and writes a disk. Not safe in several threads.

    Nothing is durable before the tables are committed.
    """

    def write_some(self, offset: int, view: memoryview) -> int:
        """Write the beginning of ``view``, as far as its clusters are alike; return how much (Q11).

        Raises:
            FormatError: An entry refers to an impossible place, or to metadata.
            DeviceFullError: There is not enough space; nothing changed.
            DeviceError: It failed. New clusters are given back; a write in place may be
                incomplete.
        """
        header, metadata = self.metadata.header, self.metadata
        cluster_size = header.cluster_size
        l1_index, index = divmod(offset >> header.cluster_bits, header.l2_entries)
        inside = offset & cluster_size - 1
        table = metadata.writable_table(l1_index)
        last = min(header.l2_entries, index + -(-(inside + len(view)) // cluster_size))
        entry = table.entries[index]
        if not entry & COMPRESSED and entry & OFFSET_MASK & cluster_size - 1:
            raise FormatError(
                f"an L2 entry refers to byte {entry & OFFSET_MASK}, which is not a cluster",
                offset=table.offset + index * 8,
                rule="Q9",
            )
        if entry & (COPIED | COMPRESSED | ZERO) == COPIED and entry & OFFSET_MASK:
            count = _in_place(table.entries, index, last, cluster_size)
            view = view[: count * cluster_size - inside]
            self._write_in_place((entry & OFFSET_MASK) + inside, offset, view)
            return len(view)
        reuse = entry & (COPIED | COMPRESSED | ZERO) == COPIED | ZERO and entry & OFFSET_MASK
        if reuse:
            first, count = reuse >> header.cluster_bits, 1
            metadata.check_data(reuse, cluster_size)
        else:
            first, count = metadata.allocate(_not_in_place(table.entries, index, last))
        view = view[: count * cluster_size - inside]
        try:
            self._write_new(first << header.cluster_bits, count, offset, view)
        except BaseException:
            if not reuse:
                metadata.give_back(first, count)
            raise
        for at in range(index, index + count):
            if table.entries[at] and not reuse:
                metadata.release(table.entries[at])
            table.entries[at] = first << header.cluster_bits | COPIED
            first += 1
        self.forget()
        metadata.l2.touch(table, index, index + count)
        return len(view)

    def _write_in_place(self, host: int, offset: int, view: memoryview) -> None:
        metadata = self.metadata
        metadata.check_data(host, len(view))
        if self.cipher is None:
            metadata.host.write(host, view)
            return
        before = offset % SECTOR
        end = offset + len(view)
        start, stop = offset - before, end + -end % SECTOR
        for at in range(start, stop, CHUNK):
            chunk_end = min(at + CHUNK, stop)
            first, last = max(at, offset), min(chunk_end, end)
            chunk = memoryview(bytearray(chunk_end - at))
            extent = Extent(at, len(chunk), EntryKind.DATA, host - before + at - start)
            if first != at:
                self._read_whole(extent, chunk, 0)
            if last != chunk_end and (first == at or len(chunk) > SECTOR):
                self._read_whole(extent, chunk, len(chunk) - SECTOR)
            chunk[first - at : last - at] = view[first - offset : last - offset]
            self._write_chunk(extent, chunk)

    def _read_whole(self, extent: Extent, chunk: memoryview, at: int) -> None:
        """Read and decrypt the sector at ``at`` in a chunk."""
        part = chunk[at : at + SECTOR]
        self.metadata.host.read_into(extent.host + at, part)
        self.decrypt(Extent(extent.offset + at, SECTOR, EntryKind.DATA, extent.host + at), part)

    def _write_new(self, host: int, count: int, offset: int, view: memoryview) -> None:
        """Fill new clusters with ``view``, and around it with the old content of the disk."""
        cluster_size = self.metadata.header.cluster_size
        start = offset - offset % cluster_size
        stop, end = start + count * cluster_size, offset + len(view)
        step = max(cluster_size, CHUNK)
        for at in range(start, stop, step):
            chunk_end = min(at + step, stop)
            first, last = max(at, offset), min(chunk_end, end)
            part = view[first - offset : last - offset]
            if first != at or last != chunk_end:
                chunk = memoryview(bytearray(chunk_end - at))
                chunk[first - at : last - at] = part
                self._read_old(at, chunk[: first - at])
                self._read_old(last, chunk[last - at :])
                part = chunk
            self._write_chunk(Extent(at, len(part), EntryKind.DATA, host + at - start), part)

    def _read_old(self, offset: int, view: memoryview) -> None:
        """Fill ``view`` with the content of the disk, and with zeros beyond its end."""
        view = view[: max(0, self.size - offset)]
        if view:
            for extent, part in self.read(offset, view):
                self.decrypt(extent, part)

    def _write_chunk(self, extent: Extent, chunk: memoryview) -> None:
        if self.cipher is not None:
            sealed = bytearray(len(chunk))
            self.cipher.encrypt(self.sector(extent.offset, extent.host), chunk, sealed)
            chunk = memoryview(sealed)
        self.metadata.host.write(extent.host, chunk)

    def zero(self, offset: int, end: int) -> None:
        """Make a range read as zeros: free whole clusters, overwrite the rest.

        Errors are those of `write_some`.
        """
        cluster_size = self.metadata.header.cluster_size
        first = offset + -offset % cluster_size
        # The last cluster counts as whole if the range covers all of it that the disk has.
        stop = end + -end % cluster_size if end == self.size else end - end % cluster_size
        if first >= stop or (self.metadata.header.version == 2 and self.backing is not None):
            self.overwrite(offset, end)
            return
        self.overwrite(offset, min(first, end))
        self.zero_clusters(first, stop, ZERO if self.backing is not None else 0)
        if end > stop:
            self.overwrite(stop, end)

    def overwrite(self, offset: int, end: int) -> None:
        """Write zeros over a range that may hold something else."""
        while offset < end:
            extent = next(extents(self.metadata, offset, end))
            backed = self.backing is not None and self.backing.size > extent.offset
            zero = extent.kind is EntryKind.ZERO or (
                extent.kind is EntryKind.UNALLOCATED and not backed
            )
            length = extent.length if zero else min(extent.length, CHUNK)
            stop = offset + length
            while not zero and offset < stop:
                offset += self.write_some(offset, ZEROS[: stop - offset])
                self.metadata.relieve()
            offset = stop

    def zero_clusters(self, offset: int, end: int, value: int) -> None:
        """Free the clusters from ``offset`` to ``end``, both on cluster boundaries.

        Args:
            offset: In the disk.
            end: Likewise.
            value: New value of their entries: `ZERO`, or 0 if no backing file is visible.

        Errors are those of `write_some`.
        """
        header, metadata = self.metadata.header, self.metadata
        while offset < end:
            l1_index, index = divmod(offset >> header.cluster_bits, header.l2_entries)
            count = min(header.l2_entries - index, end - offset >> header.cluster_bits)
            offset += count << header.cluster_bits
            table = metadata.table(l1_index)
            if table is None and not value:
                continue
            if table is not None and table.entries[index : index + count].count(value) == count:
                continue
            table = metadata.writable_table(l1_index)
            for at in range(index, index + count):
                old = table.entries[at]
                if old != value:
                    metadata.release(old, discard=True)
                    table.entries[at] = value
                    metadata.l2.touch(table, at, at + 1)
            self.forget()
            metadata.relieve()


def _in_place(entries: array[int], index: int, last: int, cluster_size: int) -> int:
    at, expected = index + 1, entries[index] + cluster_size
    while at < last and entries[at] == expected:
        expected += cluster_size
        at += 1
    return at - index


def _not_in_place(entries: array[int], index: int, last: int) -> int:
    at = index
    # COPIED alone marks a cluster that is not shared, COPIED and ZERO one to be reused.
    while at < last and not entries[at] & COPIED:
        at += 1
    return max(1, at - index)
