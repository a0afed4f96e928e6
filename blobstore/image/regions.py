"""What every byte of an image is for, as `blobstore info` shows it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from blobstore.container.regions import Region

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from blobstore.image.image import Image
    from luks.model import Header


def image_regions(image: Image, container: Iterable[Region]) -> tuple[Region, ...]:
    """Return what every byte of an image is for, in order.

    Args:
        image: Whose header is left out if it lies elsewhere.
        container: The regions of the container, from its own start.
    """
    apart = image.header_path or image.luks_beside
    regions = [] if apart else list(luks_regions(image))
    for region in container:
        regions.append(replace(region, offset=region.offset + image.payload_offset))
    end = regions[-1].offset + regions[-1].size
    if end < image.size:
        regions.append(Region(end, image.size - end, "after the last whole sector"))
    return tuple(regions)


def luks_regions(image: Image) -> Iterator[Region]:
    """Yield what every byte of an image's LUKS header is for, attached or not; in order."""
    header = image.luks
    if header is None:
        return
    position = 0
    for region in sorted(_luks_areas(header), key=lambda region: region.offset):
        if position < region.offset:
            yield Region(position, region.offset - position, "LUKS, unused keyslot space")
        yield region
        position = region.offset + region.size
    end = header.keyslots_offset + header.keyslots_size
    if position < end:
        yield Region(position, end - position, "LUKS, unused keyslot space")
        position = end
    if position < image.payload_offset:
        yield Region(position, image.payload_offset - position, "LUKS, gap before the payload")


def _luks_areas(header: Header) -> Iterator[Region]:
    copies = 1 if header.version == 1 else 2
    for copy in range(copies):
        use = f"LUKS{header.version} header" + (f", copy {copy}" if copies > 1 else "")
        yield Region(copy * header.metadata_size, header.metadata_size, use)
    for number, keyslot in header.keyslots.items():
        yield Region(keyslot.area.offset, keyslot.area.size, f"LUKS keyslot {number}")
