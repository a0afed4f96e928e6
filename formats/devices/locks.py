"""Image locks as QEMU takes them, so that QEMU and this project keep each other out.

QEMU (docs: "Image locking") locks single bytes of the image file with open
file description (OFD) locks, all of them shared. Byte 100+i means "I use
permission i", byte 200+i "I do not share permission i". A process takes an image
by locking its own bytes first and then looking for a conflict: another process
that does not share a permission it uses, or uses one it does not share.

OFD locks belong to the open file and not to the process: they end with its last
descriptor, and a second open of the same file in the same process has its own.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

from formats.errors import DeviceBusyError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

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
        exclusive: Lock for writing: no other process may write or resize the image,
            or rely on reading it. Otherwise share it with other readers.

    Raises:
        DeviceBusyError: Another process uses the image in a way that this excludes.
    """
    if sys.platform == "win32":
        return  # Windows: images are only read and packed there, never shared with QEMU
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
    """Release the locks of an open image; it stays open."""
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

    The system does not report the holder of an OFD lock. Linux reports which processes
    have a file open, for the processes that the caller may inspect.

    No file of another process is looked at itself: one on a network or FUSE file system
    that does not answer would hold up the message for as long, or for ever.
    """
    from pathlib import Path  # noqa: PLC0415  needed only if another process has the lock

    wanted = _Opened.of(Path("/proc/self"), str(fd))
    own = str(os.getpid())
    for process in Path("/proc").glob("[1-9]*"):
        try:
            names = os.listdir(process / "fd")  # noqa: PTH208  names only, for two directories
            command = (process / "comm").read_text().strip()
        except OSError:
            continue  # it ended meanwhile, or belongs to another user
        if process.name != own and any(wanted.is_of(process, name) for name in names):
            yield f"{command} (process {process.name})"


class _Opened(NamedTuple):
    """What Linux says of an open file, without asking its file system."""

    path: str
    mount: str | None
    inode: str | None

    @classmethod
    def of(cls, process: Path, name: str) -> _Opened:
        """Return what a descriptor of a process is.

        Raises:
            OSError: It was closed, or the process ended.
        """
        fields = dict(
            line.split(":", 1)
            for line in (process / "fdinfo" / name).read_text().splitlines()
            if ":" in line
        )
        path = os.readlink(process / "fd" / name)  # noqa: PTH115  a text, which may not be a path
        return cls(path, fields.get("mnt_id"), fields.get("ino"))

    def is_of(self, process: Path, name: str) -> bool:
        """Say whether a descriptor of another process is of the same file.

        In another mount namespace the same file has another mount, and most often the same
        path. Linux tells inodes since 5.14.
        """
        try:
            other = self.of(process, name)
        except OSError:
            return False  # closed since the process's descriptors were listed
        return self.inode == other.inode and (
            self.path == other.path or (self.inode is not None and self.mount == other.mount)
        )
