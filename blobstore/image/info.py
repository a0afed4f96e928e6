"""What an image is, as plain values: for people who look at it, and for other processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from blobstore.container.regions import Region  # noqa: TC001  msgspec reads it, for an owner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blobstore.image.image import Image


@dataclass(frozen=True, slots=True)
class LuksInfo:
    """What the LUKS header of an image says. Sizes and offsets in bytes.

    Attributes:
        version: 1 or 2.
        uuid: Of the volume.
        label: Of LUKS2; empty if there is none.
        cipher: Of the payload, or None.
        sector_size: Of the payload.
        keyslots: Numbers of those that are active.
        place: Where the header is: ``"attached"``, ``"detached"`` (in a file of its own), or
            ``"beside"`` the disk of a qcow2 image.
        payload_offset: Where the payload starts in the file or disk.
        damaged_header_copy: ``"primary"`` or ``"secondary"``, if that copy of a LUKS2 header
            is damaged or old.
    """

    version: int
    uuid: str
    label: str
    cipher: str | None
    sector_size: int
    keyslots: tuple[int, ...]
    place: str
    payload_offset: int
    damaged_header_copy: str | None


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What an image is, and what each byte of it is for. Sizes in bytes.

    Attributes:
        path: Of the file or block device.
        format: ``"raw"`` or ``"qcow2"``.
        size: Of the file; of a qcow2 image, of its disk.
        cluster_size: Of a qcow2 image, or None.
        header_path: File of the detached LUKS header, or None.
        luks: What its LUKS header says; None if it is not encrypted.
        regions: What each byte of the file or disk is for, in order.
        header_regions: Likewise of a LUKS header that lies elsewhere.
    """

    path: str
    format: str
    size: int
    cluster_size: int | None
    header_path: str | None
    luks: LuksInfo | None
    regions: tuple[Region, ...]
    header_regions: tuple[Region, ...]


def describe_image(image: Image, container: Iterable[Region]) -> ImageInfo:
    """Return what there is to say of an image.

    Args:
        image: Its layers.
        container: The regions of the container in it, from its own start.
    """
    return ImageInfo(
        path=str(image.path),
        format=image.format,
        size=image.size,
        cluster_size=image.cluster_size,
        header_path=None if image.header_path is None else str(image.header_path),
        luks=_describe_luks(image),
        regions=image.regions(container),
        header_regions=image.header_regions(),
    )


def _describe_luks(image: Image) -> LuksInfo | None:
    header = image.luks
    if header is None:
        return None
    place = "detached" if image.header_path else "attached"
    return LuksInfo(
        version=header.version,
        uuid=header.uuid,
        label=header.label or "",
        cipher=header.cipher,
        sector_size=header.sector_size,
        keyslots=tuple(sorted(header.keyslots)),
        place="beside" if image.luks_beside else place,
        payload_offset=image.payload_offset,
        damaged_header_copy=image.damaged_header_copy,
    )
