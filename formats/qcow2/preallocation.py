"""Allocating all clusters of a disk in advance.

Later writes then change no table, so that each is durable after one flush.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from formats.qcow2.tables import COPIED, OFFSET_MASK

if TYPE_CHECKING:
    from formats.qcow2.device import Qcow2Device
    from formats.qcow2.metadata import Metadata

_CHUNK: Final = 1 << 20


def preallocate(disk: Qcow2Device) -> None:
    """Allocate every cluster of a disk that has none; durable when it returns.

    The new clusters read as zeros, or as noise if the image is encrypted.

    Args:
        disk: Open for writing, without a backing file.

    Raises:
        ValueError: It has a backing file, which would be hidden.
        DeviceFullError: There is not enough space.
        DeviceError: It failed; clusters allocated so far stay allocated.
    """
    if disk.backing is not None:
        raise ValueError("a disk with a backing file cannot be preallocated")

    def work(metadata: Metadata) -> None:
        header = metadata.header
        clusters = -(-disk.size // header.cluster_size)
        fresh = metadata.host.size  # bytes that the device gets beyond this are zero
        for first in range(0, clusters, header.l2_entries):
            last = min(header.l2_entries, clusters - first)
            fresh = _fill(metadata, first // header.l2_entries, last, fresh)
            metadata.relieve()

    disk.change_tables(work)
    disk.flush()


def _fill(metadata: Metadata, l1_index: int, last: int, fresh: int) -> int:
    """Allocate the missing clusters of one L2 table; return where the zeros of the device begin."""
    bits = metadata.header.cluster_bits
    table = metadata.writable_table(l1_index)
    index = 0
    while index < last:
        if table.entries[index] & OFFSET_MASK:
            index += 1
            continue
        count = 1
        while index + count < last and not table.entries[index + count]:
            count += 1
        first, count = metadata.allocate(count)
        offset, end = first << bits, first + count << bits
        for at in range(offset, min(end, fresh), _CHUNK):
            metadata.host.write(at, bytes(min(_CHUNK, end - at)))
        metadata.host.reach(end)
        for number in range(count):
            table.entries[index + number] = offset + (number << bits) | COPIED
        metadata.l2.touch(table, index, index + count)
        index += count
        fresh = max(fresh, end)
    return fresh
