"""Files that are read whole, and files that appear whole: for the rooms above.

What they read and write beside images (the state of other programs, manifests, blobs)
lies where images lie, and is opened, made and compared as images are.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from blobstore.errors import OutputExistsError
from blobstore.image.layers import open_place
from formats.devices.identity import is_same_file
from formats.devices.new_file import new_empty_file, new_file, synchronise_directory
from formats.errors import FormatError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

    from formats.devices.device import ReadableBuffer

    AnyPath = str | os.PathLike[str]

__all__ = [
    "is_same_file",
    "new_empty_file",
    "new_file",
    "outputs_kept",
    "read_file",
    "synchronise_directory",
    "write_file",
]


def read_file(path: AnyPath, *, lock: bool = True, largest: int | None = None) -> bytes:
    """Return all that a file or block device holds.

    Args:
        path: It must not be a pipe.
        lock: Refuse a file that another process writes to.
        largest: Bytes from which on it is refused; None reads files of any size.

    Raises:
        FormatError: It is larger than ``largest``.
        DeviceBusyError: Another process uses it.
        DeviceError: It cannot be read.
    """
    with open_place(path, lock=lock) as device:
        if largest is not None and device.size > largest:
            raise FormatError(f"{path} has {device.size} bytes; at most {largest} are read")
        return device.read(0, device.size)


def write_file(path: AnyPath, data: ReadableBuffer, *, overwrite: bool = False) -> None:
    """Write a file that appears under its name whole or not at all, and is durable then.

    Args:
        path: Its name; the file gets mode 0600.
        data: All its bytes.
        overwrite: Replace a file that exists.

    Raises:
        OutputExistsError: The file exists, and not ``overwrite``.
        DeviceBusyError: Another process uses the file that would be replaced.
        DeviceError: It cannot be written, or ``path`` is a device, a pipe or a directory.
    """
    with outputs_kept(path), new_file(path, len(data), overwrite=overwrite) as device:
        device.write(0, data)
    device.close()


@contextmanager
def outputs_kept(path: AnyPath | Path) -> Iterator[None]:
    """Turn the `FileExistsError` of a new file into an `OutputExistsError`."""
    try:
        yield
    except FileExistsError as error:
        raise OutputExistsError(f"{path} exists", hint="overwrite it with --force") from error
