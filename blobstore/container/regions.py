"""What every byte of a container is for, as `blobstore info` shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from formats.container.model import HEAD_SIZE, State

if TYPE_CHECKING:
    from blobstore.container.open_container import OpenContainer
    from blobstore.container.sections import Copy


@dataclass(frozen=True, slots=True)
class Region:
    """A run of bytes with one purpose.

    Attributes:
        offset: First byte, from the start of whatever was asked about.
        size: Bytes.
        use: What they are for.
        section: Name of the section they belong to, or None.
    """

    offset: int
    size: int
    use: str
    section: str | None = None


def container_regions(container: OpenContainer) -> tuple[Region, ...]:
    """Return the regions of a container in order: every byte is in exactly one (C82)."""
    directory = container.directory
    size = container.block_size
    regions = [
        Region(
            copy * size, size, f"container header, copy {copy}" + ("" if header else " (damaged)")
        )
        for copy, header in enumerate(container.header_copies)
    ]
    for name, section in directory.every_section():
        for extent in (section, *section.rivals):
            for copy in filter(None, extent.copies):
                regions += _record_regions(name or None, copy, newest=copy is section.newest)
    regions += (Region(o, free.length, "free") for o, free in directory.free.items())
    regions += (Region(o, d.length, "hidden by a damaged head") for o, d in directory.damaged)
    regions += (
        Region(*extent.place, "left over by an interrupted change")
        for extent in directory.left_over
    )
    beyond = container.device.size - container.total
    if beyond:
        regions.append(Region(container.total, beyond, "beyond the container"))
    return tuple(sorted(regions, key=lambda region: region.offset))


def _record_regions(name: str | None, copy: Copy, *, newest: bool) -> list[Region]:
    version = copy.version
    which = f"copy {copy.identity.copy}"
    if name is None:
        which = f"of a section whose name is not known, {which}"
    if version.state is State.LIVE:
        use = f"{which}, {'the blob' if newest else 'the blob before'}"
    else:
        use = f"{which}, {version.state.name.lower().replace('_', ' ')}"
    head = Region(copy.offset, HEAD_SIZE, f"{which}, head", name)
    start = copy.offset + HEAD_SIZE
    used = version.size if version.state is State.LIVE else 0
    rest = copy.length - HEAD_SIZE - used
    regions = [head]
    if used:
        regions.append(Region(start, used, use, name))
    if rest:
        spare = f"{which}, room to the worst case and the block's end"
        regions.append(Region(start + used, rest, spare if used else f"{use}, room", name))
    return regions
