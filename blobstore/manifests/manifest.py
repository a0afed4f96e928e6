"""What a manifest says, read and checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blobstore.errors import ManifestError
from formats.container.model import DEFAULT_BLOCK_SIZE

if TYPE_CHECKING:
    from blobstore.container.initialise import SectionSpec
    from blobstore.image.place import Place
    from formats.devices.device import ReadableBuffer


@dataclass(frozen=True, slots=True)
class Manifest:
    """What to pack.

    Attributes:
        sections: With their contents.
        luks_version: 1, 2, or None for no LUKS volume.
        size: Bytes of the whole image, or None for what the sections need.
        header: Place of the detached LUKS header, or None.
        block_size: Of the container, in bytes.
        sector_size: Of LUKS2, in bytes, or None for the default.
        image_format: ``"raw"`` or ``"qcow2"``.
        own_luks: Whether the qcow2 image is encrypted by itself.
        cluster_size: Of qcow2, in bytes, or None for the default.
        seed: What everything random is derived from, or None for true randomness.
    """

    sections: tuple[SectionSpec, ...]
    luks_version: int | None = 2
    size: int | None = None
    header: Place | None = None
    block_size: int = DEFAULT_BLOCK_SIZE
    sector_size: int | None = None
    image_format: str = "raw"
    own_luks: bool = False
    cluster_size: int | None = None
    seed: bytes | None = field(default=None, repr=False)

    @property
    def encrypted(self) -> bool:
        """Whether the image is."""
        return self.own_luks or self.luks_version is not None

    def section(self, name: str) -> SectionSpec:
        """Return the section of that name.

        Raises:
            ManifestError: There is none.
        """
        for spec in self.sections:
            if spec.name == name:
                return spec
        names = ", ".join(spec.name for spec in self.sections)
        raise ManifestError(f"there is no section {name!r}, only {names or 'none at all'}")

    def content(self, name: str) -> ReadableBuffer:
        """Return the content of a section, as `blobstore.pack_raw` writes it.

        Raises:
            ManifestError: There is no such section, or it has no content.
        """
        content = self.section(name).content
        if content is None:
            raise ManifestError(f"section {name!r} has no content")
        return content
