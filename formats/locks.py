"""Image locks, the ones QEMU takes, so that QEMU and we keep each other out.

QEMU (docs: "Image locking") locks single bytes of the image file with open
file description (OFD) locks, all of them shared. Byte 100+i means "I use
permission i", byte 200+i "I do not share permission i". Taking an image means
setting one's own bytes first and then looking for a conflict: somebody who
does not share what one uses, or uses what one does not share.

OFD locks belong to the open file, not to the process: they end with its last
descriptor and do not collide with a second open of the same process by chance.
"""

from __future__ import annotations

import errno
import struct
import sys
from typing import TYPE_CHECKING

from formats.errors import DeviceBusyError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# Permissions, by their bit in QEMU's BLK_PERM_*.
_CONSISTENT_READ, _WRITE, _RESIZE = 0, 1, 3
_USED_BASE, _UNSHARED_BASE = 100, 200

# struct flock on Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")


def lock_image(fd: int, path: Path, *, exclusive: bool) -> None:
    """Lock an open image until its last descriptor is closed.

    Args:
        fd: Open for reading, and for writing too if ``exclusive``.
        path: For the message only.
        exclusive: Use it for writing, and let nobody else write or resize it
            or rely on reading it; otherwise share it with other readers.

    Raises:
        DeviceBusyError: Somebody uses it in a way that this excludes.
    """
    if sys.platform == "win32":
        return  # reads and packs there; nothing else shares images with QEMU
    if sys.platform != "linux":
        _lock_whole(fd, path, exclusive=exclusive)
        return
    used = {_CONSISTENT_READ, _WRITE, _RESIZE} if exclusive else {_CONSISTENT_READ}
    unshared = {_WRITE, _RESIZE}
    own = [_USED_BASE + i for i in used] + [_UNSHARED_BASE + i for i in unshared]
    conflicting = [_UNSHARED_BASE + i for i in used] + [_USED_BASE + i for i in unshared]
    _set_shared(fd, path, own)
    if any(_is_taken(fd, path, byte) for byte in conflicting):
        raise _busy(path)


def _set_shared(fd: int, path: Path, bytes_: Iterable[int]) -> None:
    import fcntl  # noqa: PLC0415  absent on Windows

    for byte in bytes_:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, byte, 1, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise _busy(path) from error
            raise DeviceError(f"cannot lock {path}: {error.strerror}") from error


def _is_taken(fd: int, path: Path, byte: int) -> bool:
    import fcntl  # noqa: PLC0415  absent on Windows

    question = _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question)
    except OSError as error:
        raise DeviceError(f"cannot query the locks of {path}: {error.strerror}") from error
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def _lock_whole(fd: int, path: Path, *, exclusive: bool) -> None:
    """Lock the file as a whole, where the system has no OFD locks."""
    import fcntl  # noqa: PLC0415  absent on Windows

    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _busy(path) from error


def _busy(path: Path) -> DeviceBusyError:
    return DeviceBusyError(
        f"{path} is in use by another process",
        hint="stop the machine or tool that uses the image, or wait for it",
    )
