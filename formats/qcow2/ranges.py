"""The ranges of a disk that may hold data, through all its backing files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.devices.device import SparseDevice
from formats.qcow2.tables import EntryKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.devices.device import BlockDevice
    from formats.qcow2.device import Qcow2Device


def data_of(disk: Qcow2Device, offset: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of the parts that may hold data, in order, not yet joined.

    Raises:
        FormatError, DeviceError: A table cannot be read.
    """
    for extent in disk.extents(offset, size):
        if extent.kind in (EntryKind.DATA, EntryKind.COMPRESSED):
            yield extent.offset, extent.length
        elif extent.kind is EntryKind.UNALLOCATED and disk.backing is not None:
            length = min(extent.length, disk.backing.size - extent.offset)
            if length > 0:
                yield from _data_below(disk.backing, extent.offset, length)


def _data_below(device: BlockDevice, offset: int, size: int) -> Iterator[tuple[int, int]]:
    if isinstance(device, SparseDevice):
        yield from device.data_ranges(offset, size)
    else:
        yield offset, size
