"""Making a container longer, with the device below it: C57."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blobstore.errors import NoSpaceError
from blobstore.headers import write_total
from blobstore.structure import free_item, free_span, merge
from blobstore.writing import Span
from formats.errors import UnsupportedError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from blobstore.opened import OpenContainer

_log = LateLogger(__name__)

#: What the container grows by is rounded up to this, in bytes: devices register
#: one after the other, and each growth costs four flushes.
GROWTH_STEP = 1 << 20


def make_room(container: OpenContainer, length: int) -> None:
    """Let the container grow by a free item that an extent fits into.

    Space behind the container is taken first; then the device is resized.

    Args:
        container: See `grow`.
        length: Bytes that the extents need.

    Raises:
        NoSpaceError: The device cannot grow.
        DeviceError, PoisonedStoreError: As in `grow`.
    """
    needed = container.total + length + container.block_size
    total = -(-needed // GROWTH_STEP) * GROWTH_STEP
    if needed <= container.device.size < total:
        total = container.device.size // container.block_size * container.block_size
    grow(container, total)


def grow(container: OpenContainer, total: int) -> None:
    """Make the container longer; what is new becomes free space (C57).

    Args:
        container: Its total, header and free space are updated.
        total: Bytes it is to have: a multiple of its block size, more than now.

    Raises:
        ValueError: It cannot have so many.
        NoSpaceError: The device cannot grow.
        DamagedHeadError, PoisonedStoreError: It must not be written.
        DeviceError: It could not be done; the container has its old length or
            the new one.
    """
    container.next_generation()  # refuses a store that must not be written
    before, device = container.total, container.device
    if total % container.block_size or total <= before:
        raise ValueError(f"a container of {before} bytes cannot grow to {total}")
    if device.size < total:
        try:
            device.resize(total)
        except UnsupportedError as error:
            raise NoSpaceError(
                f"the image cannot grow to hold a container of {total} bytes: {error}",
                hint="make a larger image and move the sections there",
            ) from error
    _log.info("growing from %d to %d bytes", before, total)
    item = free_item(container, total - before)
    container.writer.write([free_span(container, before, item)])
    write_total(container, total)
    container.directory.free[before] = item
    if any(o + free.length == before for o, free in container.directory.free.items()):
        inside = merge(container, before, total - before)
        container.writer.write([Span(offset, (), container.block_size) for offset in inside])
