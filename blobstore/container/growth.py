"""Making a container longer, with the device below it: C57."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from blobstore.container.extents import free_item, free_span, merge, wipe_heads
from blobstore.container.headers import write_total
from blobstore.errors import NoSpaceError
from formats.devices.device import SpaceDevice
from formats.errors import DeviceFullError, StorageError, UnsupportedError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from blobstore.container.open_container import OpenContainer
    from formats.devices.device import BlockDevice

_log = LateLogger(__name__)

#: What the container grows by is rounded up to this, in bytes: devices register
#: one after the other, and each growth costs four flushes.
GROWTH_STEP = 1 << 20


def make_room(container: OpenContainer, length: int) -> None:
    """Let the container grow by a free item that an extent fits into, with space to store it.

    Space after the container is taken first; then the device is resized.

    Args:
        container: See `grow`.
        length: Bytes that the extents need.

    Raises:
        NoSpaceError: The device cannot grow.
        DeviceFullError: It can, but has no space to store as much; the image has
            the size it had.
        DeviceError, PoisonedStoreError: As in `grow`.
    """
    needed = container.total + length + container.block_size
    rounded = -(-needed // GROWTH_STEP) * GROWTH_STEP
    if needed <= container.device.size < rounded:
        rounded = container.device.size // container.block_size * container.block_size
    try:
        grow(container, rounded, reserve=True)
    except DeviceFullError:
        if needed == rounded:
            raise
        grow(container, needed, reserve=True)


def grow(container: OpenContainer, total: int, *, reserve: bool = False) -> None:
    """Make the container longer; what is new becomes free space (C57).

    Args:
        container: Its total, header and free space are updated.
        total: Bytes it is to have: a multiple of its block size, more than now.
        reserve: Have the device find the space first, if it can; otherwise a
            file gets a hole.

    Raises:
        ValueError: It cannot have so many.
        NoSpaceError: The device cannot grow.
        DeviceFullError: It has no space for that; it has the size it had.
        DamagedHeadError, PoisonedStoreError: It must not be written.
        DeviceError: It could not be done; the container has its old length or
            the new one.
    """
    container.next_generation()  # refuses a store that must not be written
    before, device = container.total, container.device
    if total % container.block_size or total <= before:
        raise ValueError(f"a container of {before} bytes cannot grow to {total}")
    device_size = device.size
    item = free_item(container, total - before)
    try:
        if device_size < total:
            _resize(device, total)
        if reserve and isinstance(device, SpaceDevice):
            device.reserve(before, total - before)
        _log.info("growing from %d to %d bytes", before, total)
        container.writer.write_free([free_span(container, before, item)])
    except BaseException:
        if device_size < device.size:
            # It still ends before what is new. What cannot be given back is not part of it.
            with suppress(StorageError):
                device.resize(device_size)
        raise
    write_total(container, item)
    if any(o + free.length == before for o, free in container.directory.free.items()):
        wipe_heads(container, merge(container, before, total - before))


def _resize(device: BlockDevice, total: int) -> None:
    try:
        device.resize(total)
    except UnsupportedError as error:
        raise NoSpaceError(
            f"the image cannot grow to hold a container of {total} bytes: {error}",
            hint="make a larger image and move the sections there",
        ) from error
