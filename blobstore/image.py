"""What a store lies in: the image file and the LUKS header around its container."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from blobstore.regions import Region

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from luks.model import Header


class ImageLock(Protocol):
    """The lock that keeps other processes out of an image."""

    def acquire(self) -> None:
        """Take it, and the size that the image has now; or raise `DeviceBusyError`."""

    def release(self) -> None:
        """Give it up."""


@dataclass(frozen=True, slots=True)
class Image:
    """An image that is open.

    Attributes:
        path: Of the file or block device with the payload.
        size: Its bytes.
        luks: The LUKS header, or None if it is not encrypted.
        header_path: File of the detached LUKS header, or None.
        payload_offset: Where the container starts in the file, in bytes.
    """

    path: Path
    size: int
    luks: Header | None = None
    header_path: Path | None = None
    payload_offset: int = 0

    @property
    def damaged_header_copy(self) -> str | None:
        """Which copy of the LUKS2 header is damaged or old, or None."""
        stale = self.luks.stale_copy if self.luks else None
        return None if stale is None else ("primary", "secondary")[stale]

    def regions(self, container: Iterable[Region]) -> tuple[Region, ...]:
        """Return what every byte of the image is for, in order.

        Args:
            container: The regions of the container, from its own start.
        """
        regions = [] if self.header_path else list(self._header_regions())
        for region in container:
            regions.append(replace(region, offset=region.offset + self.payload_offset))
        end = regions[-1].offset + regions[-1].size
        if end < self.size:
            regions.append(Region(end, self.size - end, "behind the last whole sector"))
        return tuple(regions)

    def header_regions(self) -> tuple[Region, ...]:
        """Return what every byte of the detached LUKS header is for; else nothing."""
        return tuple(self._header_regions()) if self.header_path else ()

    def _header_regions(self) -> Iterable[Region]:
        header = self.luks
        if header is None:
            return
        position = 0
        for region in sorted(self._luks_areas(header), key=lambda region: region.offset):
            if position < region.offset:
                yield Region(position, region.offset - position, "LUKS, unused keyslot space")
            yield region
            position = region.offset + region.size
        end = header.keyslots_offset + header.keyslots_size
        if position < end:
            yield Region(position, end - position, "LUKS, unused keyslot space")
            position = end
        if position < self.payload_offset:
            yield Region(position, self.payload_offset - position, "LUKS, gap before the payload")

    def _luks_areas(self, header: Header) -> Iterable[Region]:
        copies = 1 if header.version == 1 else 2
        for copy in range(copies):
            use = f"LUKS{header.version} header" + (f", copy {copy}" if copies > 1 else "")
            yield Region(copy * header.metadata_size, header.metadata_size, use)
        for number, keyslot in header.keyslots.items():
            yield Region(keyslot.area.offset, keyslot.area.size, f"LUKS keyslot {number}")
