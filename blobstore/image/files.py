"""Files that are read whole, and files that appear whole: for the rooms above.

What they read and write beside images (the state of other programs, manifests, blobs)
lies where images lie, and is opened, made and compared as images are.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from blobstore.errors import OutputExistsError
from blobstore.image.place import RemotePlace, is_same_place, open_place, place_of
from formats.devices import new_file as local
from formats.devices.new_file import synchronise_directory
from formats.errors import FormatError, UnsupportedError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from formats.devices.device import ReadableBuffer
    from formats.devices.file import FileDevice

    AnyPath = str | os.PathLike[str]

__all__ = [
    "is_same_file",
    "new_file",
    "outputs_kept",
    "read_file",
    "synchronise_directory",
    "write_file",
]


#: Its public name.
is_same_file = is_same_place


@contextmanager
def new_file(
    path: AnyPath, size: int, *, overwrite: bool = False, existing: FileDevice | None = None
) -> Iterator[FileDevice]:
    """Make a file that appears whole or not at all, as `formats.devices.new_file.new_file`.

    Raises:
        UnsupportedError: The path is a place on another machine (P16).
    """
    require_file(path)
    with local.new_file(path, size, overwrite=overwrite, existing=existing) as device:
        yield device


def require_file(path: AnyPath) -> None:
    """Refuse a place on another machine, where a file is to be made that appears whole (P16).

    Raises:
        UnsupportedError: It is one.
    """
    if isinstance(place_of(path), RemotePlace):
        raise UnsupportedError(
            f"a file is to be made, and {path} is a device of another machine [P16]",
            feature="files on devices of other machines",
            hint="./ before the name makes it that of a file",
        )


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
def outputs_kept(path: AnyPath) -> Iterator[None]:
    """Turn the `FileExistsError` of a new file into an `OutputExistsError`."""
    try:
        yield
    except FileExistsError as error:
        raise OutputExistsError(f"{path} exists", hint="overwrite it with --force") from error
