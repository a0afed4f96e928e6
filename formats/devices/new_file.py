"""New files: they appear under their name complete or not at all, and durably."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from formats.devices.file import BINARY, FileDevice
from formats.devices.identity import is_there
from formats.errors import DeviceError, device_error
from formats.process import Owner

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def new_file(
    path: str | os.PathLike[str],
    size: int,
    *,
    overwrite: bool = False,
    existing: FileDevice | None = None,
) -> Iterator[FileDevice]:
    """Make an image file that appears under its name complete or not at all.

    Yields a device over a temporary file beside ``path``, of ``size`` zero
    bytes, mode 0600, locked for writing. When the block ends without an error, the
    file is flushed and takes its name durably, and the device stays open; the caller
    closes it. When the block raises, the file is removed. A child that is forked in
    the block does neither (C64).

    Args:
        path: The name to take; a symbolic link is followed.
        size: Size in bytes; the file is one hole.
        overwrite: Replace an existing file; otherwise a file that appears meanwhile
            is left alone. The existing file is locked until it is replaced: a process
            that writes to it would continue on a file without a name (C65).
        existing: The existing file, if it is open and locked for writing already.

    Raises:
        FileExistsError: ``path`` exists and ``overwrite`` is false.
        DeviceBusyError: Another process uses the file that would be replaced.
        DeviceError: The file cannot be made, or would replace a device, a pipe or a
            directory.
    """
    target = Path(os.path.realpath(path))
    if not overwrite and is_there(target):
        raise FileExistsError(errno.EEXIST, "it exists already", str(target))
    if is_there(target) and not target.is_file():
        # Root could replace even /dev/null, for every process.
        raise DeviceError(f"{path} is not a regular file, and is not replaced by one")
    with ExitStack() as stack:
        if existing is None and overwrite and is_there(target):
            existing = stack.enter_context(FileDevice(target, alone=True))
        temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}.tmp")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | BINARY
        owner = Owner(f"the new file {path}")
        device: FileDevice | None = None
        is_ours = True  # said before it is made: an interrupt may come at once after that
        try:
            try:
                os.close(os.open(temporary, flags, 0o600))
            except OSError as error:
                is_ours = False
                raise device_error(error, f"cannot create {target}") from error
            device = FileDevice(temporary, read_only=False)
            device.resize(size)
            yield device
            device.flush()
            if existing is not None:
                existing.require_name()
            elif overwrite and is_there(target):
                # It appeared meanwhile.
                stack.enter_context(FileDevice(target, alone=True))
            _take_name(temporary, target, overwrite=overwrite)
            device.rename(path)
        except BaseException:
            if not owner.is_other:
                if device is not None:
                    device.close()
                if is_ours:
                    temporary.unlink(missing_ok=True)
            raise


def new_empty_file(path: str | os.PathLike[str]) -> None:
    """Make an empty file, mode 0600, whose name is durable.

    It is for content that says itself whether it is complete.

    Raises:
        DeviceError: There is one already, or it cannot be made.
    """
    target = Path(os.path.realpath(path))
    try:
        os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | BINARY, 0o600))
        synchronise_directory(target.parent)
    except OSError as error:
        raise device_error(error, f"cannot create {target}") from error


def _take_name(temporary: Path, target: Path, *, overwrite: bool) -> None:
    try:
        if overwrite or not hasattr(os, "link"):
            temporary.replace(target)
        else:
            # A link, unlike a rename, never replaces what appeared meanwhile.
            os.link(temporary, target)
            temporary.unlink()
        synchronise_directory(target.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise device_error(error, f"cannot name the new file {target}") from error


def synchronise_directory(path: Path) -> None:
    """Make names just added to or removed from a directory durable."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows has no such thing to open
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
