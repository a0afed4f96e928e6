"""What a store lies in: the image, and the LUKS header around its container."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from blobstore.container.regions import Region
    from blobstore.image.place import Place
    from luks.model import Header

_Result = TypeVar("_Result")


class ImageLock(Protocol):
    """The lock that keeps other processes out of an image, and reading without it."""

    def acquire(self) -> None:
        """Take it, and the image as it is now; or raise, and do not hold it."""

    def release(self) -> None:
        """Give it up."""

    def read_anew(
        self, attempt: Callable[[], _Result], settled: Callable[[_Result], bool]
    ) -> _Result:
        """Return what ``attempt`` reads, though others may be writing (C66).

        Args:
            attempt: Reads from the beginning.
            settled: Says whether its result needs no second look.

        Raises:
            StorageError: As ``attempt``; `StoreBusyError` if the image does not hold still.
        """


class Image(NamedTuple):
    """An image that is open.

    Attributes:
        path: Place of the device with the payload.
        size: Its bytes; of a qcow2 image, those of its disk.
        format: ``"raw"`` or ``"qcow2"``.
        luks: The LUKS header, or None if it is not encrypted.
        luks_beside: Whether that lies in the qcow2 image beside the disk.
        cluster_size: Of the qcow2 image, in bytes, or None.
        header_path: Place of the detached LUKS header, or None.
        payload_offset: Where the container starts in the file, in bytes.
    """

    path: Place
    size: int
    format: str = "raw"
    luks: Header | None = None
    luks_beside: bool = False
    cluster_size: int | None = None
    header_path: Place | None = None
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
        from blobstore.image.regions import image_regions  # noqa: PLC0415  only to show an image

        return image_regions(self, container)

    def header_regions(self) -> tuple[Region, ...]:
        """Return what every byte of a LUKS header is for that is not in the payload's file."""
        from blobstore.image.regions import luks_regions  # noqa: PLC0415  only to show an image

        return tuple(luks_regions(self)) if self.header_path or self.luks_beside else ()
