"""What a store lies in: the image file, the LUKS header around its container, its owner's place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from blobstore.container.regions import Region
    from luks.model import Header

    AnyPath = str | os.PathLike[str]

_Result = TypeVar("_Result")

_OF_ROOT: Final = "/run/blobstore"


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
        path: Of the file or block device with the payload.
        size: Its bytes; of a qcow2 image, those of its disk.
        format: ``"raw"`` or ``"qcow2"``.
        luks: The LUKS header, or None if it is not encrypted.
        luks_beside: Whether that lies in the qcow2 image beside the disk.
        cluster_size: Of the qcow2 image, in bytes, or None.
        header_path: File of the detached LUKS header, or None.
        payload_offset: Where the container starts in the file, in bytes.
    """

    path: Path
    size: int
    format: str = "raw"
    luks: Header | None = None
    luks_beside: bool = False
    cluster_size: int | None = None
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
        from blobstore.image.regions import image_regions  # noqa: PLC0415  only to show an image

        return image_regions(self, container)

    def header_regions(self) -> tuple[Region, ...]:
        """Return what every byte of a LUKS header is for that is not in the payload's file."""
        from blobstore.image.regions import luks_regions  # noqa: PLC0415  only to show an image

        return tuple(luks_regions(self)) if self.header_path or self.luks_beside else ()


def runtime_directory() -> Path | None:
    """Return the directory with an entry for each image that has an owner (O2).

    None if there is no place for one. The directory need not exist.
    """
    if not hasattr(os, "geteuid"):
        return None  # Windows, where images have no owners
    chosen = os.environ.get("BLOBSTORE_RUNTIME_DIR")
    if chosen:
        return Path(chosen)
    if os.geteuid() == 0:
        return Path(_OF_ROOT)
    of_user = os.environ.get("XDG_RUNTIME_DIR")
    return Path(of_user, "blobstore") if of_user else None


def entry_of(image: AnyPath) -> Path | None:
    """Return the socket that the owner of an image has, or would have (O3).

    Args:
        image: Path of the image; links are followed.

    Returns:
        None if there is no such file, or no runtime directory.
    """
    directory = runtime_directory()
    if directory is None:
        return None
    try:
        found = Path(image).stat()
    except OSError:
        return None
    return directory / f"{found.st_dev}-{found.st_ino}.sock"


def may_have_owner(image: AnyPath) -> bool:
    """Say whether something has the name of the entry that an owner makes.

    What asks owners is imported only then: most images have none.
    """
    entry = entry_of(image)
    return entry is not None and os.path.lexists(entry)
