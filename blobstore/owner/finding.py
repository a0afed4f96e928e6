"""Where owners are: the runtime directory and its entries (O2, O3)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    AnyPath = str | os.PathLike[str]

_OF_ROOT: Final = "/run/blobstore"


def runtime_directory() -> Path | None:
    """Return the directory with an entry for each image that has an owner (O2).

    None where there is no place for one. It need not exist.
    """
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
