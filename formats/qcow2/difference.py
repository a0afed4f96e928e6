"""The ranges in which two states of one image may differ, judged by their clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from formats.qcow2.mapping import merged
from formats.qcow2.tables import EntryKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from formats.qcow2.device import Qcow2Device
    from formats.qcow2.mapping import Extent


def differing_ranges(one: Qcow2Device, other: Qcow2Device) -> Iterator[tuple[int, int]]:
    """Yield offset and length of the ranges that may differ between two states, in order.

    Only tables are read: clusters that both states share cannot differ; other clusters may
    still have the same content. If one disk is longer, all of its rest is yielded.

    Args:
        one: A snapshot, or the active state.
        other: Another state of the same image, with the same backing file.

    Raises:
        FormatError, DeviceError: A table cannot be read.
    """
    return merged(_pieces(one, other))


def _pieces(one: Qcow2Device, other: Qcow2Device) -> Iterator[tuple[int, int]]:
    size = min(one.size, other.size)
    left, right = one.extents(0, size), other.extents(0, size)
    offset = 0
    first, second = next(left, None), next(right, None)
    while first is not None and second is not None:
        end = min(first.offset + first.length, second.offset + second.length)
        if not _shared(first, second):
            yield offset, end - offset
        if first.offset + first.length == end:
            first = next(left, None)
        if second.offset + second.length == end:
            second = next(right, None)
        offset = end
    longest = max(one.size, other.size)
    if longest > size:
        yield size, longest - size


def _shared(one: Extent, other: Extent) -> bool:
    if one.kind is not other.kind:
        return False
    if one.kind is EntryKind.DATA:
        return one.host - one.offset == other.host - other.offset
    return one.kind is not EntryKind.COMPRESSED or one.host == other.host
