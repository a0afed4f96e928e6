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
import os
import struct
import sys
from typing import TYPE_CHECKING

from formats.errors import DeviceBusyError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Permissions, by their bit in QEMU's BLK_PERM_*.
_CONSISTENT_READ, _WRITE, _RESIZE = 0, 1, 3
_USED_BASE, _UNSHARED_BASE = 100, 200

# struct flock on Linux: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")


def lock_image(fd: int, path: str, *, exclusive: bool) -> None:
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
        unlock_image(fd)
        raise _busy(fd, path)


def unlock_image(fd: int) -> None:
    """Give up the locks of an open image; it stays open."""
    if sys.platform == "win32":
        return
    import fcntl  # noqa: PLC0415  absent on Windows

    if sys.platform != "linux":
        fcntl.flock(fd, fcntl.LOCK_UN)
        return
    length = _UNSHARED_BASE + 100 - _USED_BASE
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, 0, _USED_BASE, length, 0))


def _set_shared(fd: int, path: str, bytes_: Iterable[int]) -> None:
    import fcntl  # noqa: PLC0415  absent on Windows

    for byte in bytes_:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, byte, 1, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                unlock_image(fd)
                raise _busy(fd, path) from error
            raise DeviceError(f"cannot lock {path}: {error.strerror}") from error


def _is_taken(fd: int, path: str, byte: int) -> bool:
    import fcntl  # noqa: PLC0415  absent on Windows

    question = _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0)
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, question)
    except OSError as error:
        raise DeviceError(f"cannot query the locks of {path}: {error.strerror}") from error
    kind: int = _FLOCK.unpack(answer)[0]
    return kind != fcntl.F_UNLCK


def _lock_whole(fd: int, path: str, *, exclusive: bool) -> None:
    """Lock the file as a whole, where the system has no OFD locks."""
    import fcntl  # noqa: PLC0415  absent on Windows

    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _busy(fd, path) from error


def _busy(fd: int, path: str) -> DeviceBusyError:
    holders = ", ".join(_holders(fd))
    return DeviceBusyError(
        f"{path} is in use by {holders or 'another process'}",
        hint="stop the machine or tool that uses the image, or wait for it",
    )


def _holders(fd: int) -> Iterator[str]:
    """Yield name and id of the other processes that have the file open.

    The system does not say who holds an OFD lock. Who has the file open it says
    on Linux, of processes that the caller may look at.
    """
    wanted = os.fstat(fd)
    own = str(os.getpid())
    from pathlib import Path  # noqa: PLC0415  only where somebody else has the lock

    for process in Path("/proc").glob("[1-9]*"):
        try:
            opened = [link.stat() for link in (process / "fd").iterdir()]
            name = (process / "comm").read_text().strip()
        except OSError:
            continue  # gone meanwhile, or somebody else's
        if process.name != own and any(os.path.samestat(wanted, found) for found in opened):
            yield f"{name} (process {process.name})"
