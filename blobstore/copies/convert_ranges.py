"""Which bytes of a payload were ever written."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blobstore.image.layers import Layers


def written_ranges(layers: Layers) -> list[tuple[int, int]]:
    """Return byte offset and length of what is not a hole, in order.

    A hole in an image file or disk is one in its payload: in the clear it reads as
    zeros, in a volume as noise.

    Args:
        layers: Of the image.

    Raises:
        DeviceError: The file cannot be asked.
    """
    size = layers.payload.size
    if layers.volume is None:
        return list(layers.device.data_ranges(0, size))
    segments = layers.volume.header.data_segments
    if len(segments) > 1:
        return [(0, size)]  # a re-encryption under way, which leaves no holes
    start, step = segments[0].offset, segments[0].sector_size
    return list(_whole_sectors(layers.device.data_ranges(start, size), start, step))


def _whole_sectors(
    ranges: Iterator[tuple[int, int]], start: int, step: int
) -> Iterator[tuple[int, int]]:
    """Move ranges to the payload's own offsets, and widen them to whole sectors."""
    done = 0
    for offset, length in ranges:
        first = max((offset - start) // step * step, done)
        done = -(-(offset - start + length) // step) * step
        if first < done:
            yield first, done - first
