"""The kinds of images that `convert` makes, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from blobstore.image.layers import QCOW2, RAW

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blobstore.image.layers import Layers


class ImageKind(NamedTuple):
    """What an image is made of.

    Attributes:
        image_format: `RAW` or `QCOW2`.
        luks_version: Of the volume in the file or the disk, or None.
        own_luks: Whether a qcow2 image is encrypted by itself.
    """

    image_format: str = RAW
    luks_version: int | None = None
    own_luks: bool = False

    @property
    def encrypted(self) -> bool:
        """Whether there is a passphrase."""
        return self.own_luks or self.luks_version is not None


IMAGE_KINDS: Final[Mapping[str, ImageKind]] = {
    "raw": ImageKind(),
    "luks1": ImageKind(luks_version=1),
    "luks2": ImageKind(luks_version=2),
    "qcow2": ImageKind(QCOW2),
    "qcow2-luks": ImageKind(QCOW2, own_luks=True),
    "luks1-in-qcow2": ImageKind(QCOW2, luks_version=1),
    "luks2-in-qcow2": ImageKind(QCOW2, luks_version=2),
}


def image_kind(layers: Layers) -> ImageKind:
    """Return what an open image is made of."""
    return ImageKind(
        RAW if layers.disk is None else QCOW2,
        None if layers.volume is None else layers.volume.header.version,
        layers.encrypts_itself,
    )
