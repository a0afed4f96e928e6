"""Where extents go in free space (C52, C57).

An extent takes the end of a free item, for then one head is written and not two.
On a file with holes, or a qcow2 image, that may be space that the file system has
still to find, and no longer has. So space that is backed comes first, wherever in
an item it is, and the rest is reserved before anything is written to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from blobstore.errors import NoSpaceError
from formats.devices.device import SpaceDevice
from formats.errors import DeviceFullError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from blobstore.container.open_container import OpenContainer
    from blobstore.container.sections import Section


class _Place(NamedTuple):
    """Where an extent can go: the order of these is the order of preference."""

    unbacked: bool
    left: int  # bytes of the free item
    item: int  # its byte offset
    start: int  # of the extent


def place_extents(
    container: OpenContainer, extents: Sequence[Section], within: int | None = None
) -> dict[int, int]:
    """Give extents their offsets, and see to it that the device has space there.

    Args:
        container: Not modified.
        extents: Their offsets are set, the longest first.
        within: Offset of the only free item to use, at its end; any if None.

    Returns:
        Lengths of all free items by offset as they will be.

    Raises:
        NoSpaceError: They do not fit.
        DeviceFullError: They would, but the device has no space to store them.
    """
    free = {offset: item.length for offset, item in container.directory.free.items()}
    for extent in sorted(extents, key=lambda extent: extent.place[1], reverse=True):
        _, length = extent.place
        places = sorted(_places(container, free, length, within))
        if not places:
            usable = max(max(free.values(), default=0) - container.block_size, 0)
            raise NoSpaceError(
                f"section {extent.name!r} needs {length} bytes in one piece; the largest free "
                f"piece has {usable}",
                hint="let the image grow, or make a larger one and move the sections there",
            )
        place = _reserve(container, places, extent)
        end = place.item + place.left
        free[place.item] = place.start - place.item
        if place.start + length < end:
            free[place.start + length] = end - place.start - length
        for number, copy in enumerate(filter(None, extent.copies)):
            copy.offset = place.start + number * copy.length
    return free


def _places(
    container: OpenContainer, free: dict[int, int], length: int, within: int | None
) -> Iterator[_Place]:
    """Yield where an extent of so many bytes fits; never over the first block of an item."""
    device, block_size = container.device, container.block_size
    for item, left in free.items():
        if left <= length or within not in (None, item):
            continue
        start = item + left - length
        if not isinstance(device, SpaceDevice):
            yield _Place(unbacked=False, left=left, item=item, start=start)
            continue
        unbacked = list(device.backed_ranges(start, length)) != [(start, length)]
        yield _Place(unbacked, left, item, start)
        if unbacked and within is None:
            for offset, size in device.backed_ranges(item + block_size, left - block_size):
                # What is left after the extent needs space for a head, too.
                end = (offset + size) // block_size * block_size - block_size
                if end - length >= offset:
                    yield _Place(unbacked=False, left=left, item=item, start=end - length)


def _reserve(container: OpenContainer, places: Sequence[_Place], extent: Section) -> _Place:
    """Return the first place that the device has space for."""
    device = container.device
    full: DeviceFullError | None = None
    for place in places:
        if not (place.unbacked and isinstance(device, SpaceDevice)):
            return place
        try:
            device.reserve(place.start, extent.place[1])
        except DeviceFullError as error:
            full = error
        else:
            return place
    raise DeviceFullError(
        f"section {extent.name!r} needs {extent.place[1]} bytes, which the image has free but the "
        f"file system does not: {full}",
        hint="make room in the file system; the store is as it was",
    ) from full
