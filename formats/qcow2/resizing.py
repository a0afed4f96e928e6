"""Changing the size of disks (Q21)."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from formats.qcow2.tables import ZERO

if TYPE_CHECKING:
    from formats.qcow2.writing import WritableContent


def grow(content: WritableContent, size: int, entries: int) -> None:
    """Make a disk larger; durable when it returns.

    Args:
        content: The disk.
        size: Bytes, more than it has.
        entries: How many entries its L1 table needs then.

    Raises:
        DeviceError: It failed; the disk has its old size, or the new one.
    """
    metadata, old = content.metadata, content.size
    header = metadata.header
    # Data beyond the disk's end, such as a machine's state, must not become disk content.
    for index in range(header.l1_needed, header.l1_size):
        metadata.drop_table(index)
    edge = min(size, old + -old % header.cluster_size)
    if edge > old:
        content.overwrite(old, edge)
    metadata.commit()
    if entries > header.l1_size:
        l1 = metadata.l1[:]
        l1.extend(array("Q", bytes(8 * (entries - header.l1_size))))
        metadata.replace_l1(l1, old)
    if content.backing is not None and content.backing.size > old:
        _hide_backing(content, old, min(size, content.backing.size))
    metadata.change_header(size=size)
    metadata.host.flush()
    content.size = size


def _hide_backing(content: WritableContent, old: int, end: int) -> None:
    """Write zeros where the content of a larger backing file would become visible."""
    size = content.metadata.header.cluster_size
    if content.metadata.header.version == 2:
        content.overwrite(old, end)
    else:
        content.zero_clusters(old + -old % size, end + -end % size, ZERO)
    content.metadata.commit()


def shrink(content: WritableContent, size: int) -> None:
    """Make a disk smaller and free the clusters beyond; durable when it returns.

    Args:
        content: The disk.
        size: Bytes, less than it has.

    Raises:
        DeviceError: It failed; the disk has its old size, or the new one.
    """
    metadata, cluster_size = content.metadata, content.metadata.header.cluster_size
    first = size + -size % cluster_size
    end = content.size + -content.size % cluster_size
    # No backing file is visible beyond the end, so the entries can be empty.
    content.zero_clusters(first, end, 0)
    metadata.commit()
    metadata.change_header(size=size)
    metadata.host.flush()
    content.size = size
