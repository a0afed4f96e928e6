"""Image files and block devices: the only module that opens them.

Reads and writes are positional, flushes reach the medium, and an open image is locked
against QEMU and against other processes of this project (`formats.devices.locks`). New
files are made by `formats.devices.new_file`. It is one class that shares a descriptor and
its lock, which is why the module is longer than most.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from formats.devices.device import SharedDevice
from formats.devices.locks import lock_image, unlock_image
from formats.errors import (
    DeviceError,
    DeviceFullError,
    ImageReplacedError,
    ReadOnlyError,
    UnsupportedError,
)
from formats.errors import device_error as _translate
from formats.process import Owned, Owner, close_descriptor, open_descriptor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from formats.devices.device import ReadableBuffer, WritableBuffer

_NOT_THERE = {errno.EOPNOTSUPP, errno.ENOSYS}
#: A flag to open with; Windows only.
BINARY: int = getattr(os, "O_BINARY", 0)

#: How often to reopen a file that lost its name before it was locked.
_OPEN_ATTEMPTS = 20


class FileDevice(Owned, SharedDevice):
    """An open image file or block device.

    Reading and writing are safe from several threads at once. In a child of the
    process that opened it, everything except `close` is refused (C64).

    Attributes:
        read_only: Whether writing is refused.
        observer: Called with the offset and bytes of each read, if it is set.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        read_only: bool = True,
        lock: bool = True,
        alone: bool = False,
    ) -> None:
        """Open ``path``, which must exist.

        Args:
            path: A regular file or a block device.
            read_only: Open for reading; several processes may at once.
            lock: Take the image lock until `close`, shared for reading and exclusive
                for writing. Without it no other process is kept out.
            alone: Let the lock keep out readers too, although nothing is written.

        Raises:
            DeviceBusyError: Another process holds the image.
            ImageReplacedError: Other files took its name again and again.
            ReadOnlyError: It is opened for writing without the permission to write.
            DeviceError: It does not exist or cannot be opened.
        """
        self._name = os.fspath(path)
        self.read_only = read_only
        self._alone = alone or not read_only
        self._place = _absolute(self._name)  # does not depend on the working directory later
        self._owner = Owner(f"the image {self._name}")
        self._locked = False
        for attempt in range(1, _OPEN_ATTEMPTS + 1):
            try:
                self._open(lock)
            except ImageReplacedError:
                # Replaced between opening and locking: open the file that has the name now.
                self.close()
                if attempt == _OPEN_ATTEMPTS:
                    raise
            except BaseException:
                self.close()
                raise
            else:
                return

    def _open(self, lock: bool) -> None:
        # A pipe is refused later; without this flag, opening one would wait for its other end.
        flags = (os.O_RDONLY if self.read_only else os.O_RDWR) | getattr(os, "O_NONBLOCK", 0)
        try:
            self._fd = open_descriptor(self._name, flags | BINARY)
        except OSError as error:
            raise _translate(
                error, f"cannot open {self._name}", writing=not self.read_only
            ) from error
        self._adopt(lock)

    @property
    def path(self) -> Path:
        """Name of the file; `new_file` changes it at the end."""
        from pathlib import Path  # noqa: PLC0415  3 ms that opening a volume does not need

        return Path(self._name)

    def _adopt(self, lock: bool) -> None:
        mode = os.fstat(self._fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise DeviceError(f"{self._name} is neither a regular file nor a block device")
        self._resizable = stat.S_ISREG(mode)
        # Without positional I/O, threads share the file position and need a lock.
        self._position = None if hasattr(os, "pread") else threading.Lock()
        if lock:
            self.lock()
        else:
            self.measure()

    def rename(self, path: str | os.PathLike[str]) -> None:
        """Record that the file has this name now."""
        self._name = os.fspath(path)
        self._place = _absolute(self._name)

    def lock(self) -> None:
        """Take the image lock, and note the size that the file has now (C65).

        Raises:
            DeviceBusyError: Another process holds the image.
            ImageReplacedError: The path names another file now, or none: the lock would
                be on a file that no other program can find. It is not held.
        """
        self._owner.require()
        try:
            lock_image(self._fd, self._name, exclusive=self._alone)
            self._locked = True
            self.require_name()
            self.measure()
        except BaseException:
            self.unlock()
            raise

    def has_name(self) -> bool:
        """Say whether the path still names this very file.

        Raises:
            DeviceError: It could not be determined.
        """
        self._owner.require()
        if sys.platform == "win32":
            return True  # an open file cannot be replaced there
        try:
            named = os.stat(self._place)  # noqa: PTH116  see path
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _translate(error, f"cannot look for {self._name}", writing=False) from error
        return _is_one(os.fstat(self._fd), named)

    def require_name(self) -> None:
        """Refuse to continue if the path names another file now, or none (C65).

        Raises:
            ImageReplacedError: It does: data written here would be lost.
            DeviceError: It could not be determined.
        """
        if not self.has_name():
            raise ImageReplacedError(
                f"{self._name} was replaced, renamed or removed since it was opened [C65]",
                hint="close it, and open the file that has the name now",
            )

    def fileno(self) -> int:
        """Return the file's descriptor, for operations that this class does not have."""
        self._owner.require()
        return self._fd

    def measure(self) -> None:
        """Note the size that the file has now, if another process may have changed it."""
        self._owner.require()
        self._size = os.lseek(self._fd, 0, os.SEEK_END)

    def unlock(self) -> None:
        """Give up the image lock; the file stays open."""
        self._owner.require()
        unlock_image(self._fd)
        self._locked = False

    @property
    def size(self) -> int:
        return self._size

    @property
    def block_size(self) -> int:
        return 512

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self._owner.require()
        self._check_range(offset, len(buffer))
        view = memoryview(buffer)
        start = offset
        while view:
            try:
                count = self._pread(view, offset)
            except OSError as error:
                raise _translate(
                    error, f"cannot read {self._name} at byte {offset}", writing=False
                ) from error
            if not count:
                raise DeviceError(
                    f"{self._name} ends at byte {offset}: it shrank while it was open"
                )
            view = view[count:]
            offset += count
        if self.observer is not None:
            self.observer(start, memoryview(buffer))

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self._owner.require()
        self._check_range(offset, len(data))
        if self.read_only:
            raise ReadOnlyError(f"{self._name} is open for reading only")
        view = memoryview(data)
        while view:
            try:
                count = self._pwrite(view, offset)
            except OSError as error:
                raise _translate(error, f"cannot write {self._name} at byte {offset}") from error
            view = view[count:]
            offset += count

    def flush(self) -> None:
        """Make all writes durable: `fdatasync`, or `F_FULLFSYNC` on macOS."""
        self._owner.require()
        try:
            _synchronise(self._fd)
        except OSError as error:
            raise _translate(error, f"cannot flush {self._name}") from error

    def resize(self, size: int, /) -> None:
        self._owner.require()
        if not self._resizable:
            super().resize(size)
        if self.read_only:
            raise ReadOnlyError(f"{self._name} is open for reading only")
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise _translate(error, f"cannot resize {self._name} to {size} bytes") from error
        self._size = size

    def discard(self, offset: int, size: int, /) -> None:
        """Make a hole in the file, or unmap a range of the block device."""
        self._owner.require()
        self._check_range(offset, size)
        if self.read_only:
            raise ReadOnlyError(f"{self._name} is open for reading only")
        if not size:
            return
        from formats.devices.holes import punch_hole  # noqa: PLC0415  ctypes is rarely needed

        try:
            punch_hole(self._fd, offset, size)
        except OSError as error:
            if error.errno in _NOT_THERE:
                raise UnsupportedError(
                    f"the file system or device of {self._name} gives no space back",
                    feature="discard",
                ) from error
            raise _translate(
                error, f"cannot discard {size} bytes of {self._name} at byte {offset}"
            ) from error

    def data_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield offset and length of the parts of a range that are not holes, in order.

        Where the system cannot tell, all of the range counts as data.

        Raises:
            DeviceError: It failed.
        """
        self._owner.require()
        self._check_range(offset, size)
        end = offset + size
        if not hasattr(os, "SEEK_DATA"):
            yield offset, size
            return
        while offset < end:
            try:
                start = os.lseek(self._fd, offset, os.SEEK_DATA)
                stop = min(os.lseek(self._fd, start, os.SEEK_HOLE), end)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return  # a hole up to the end
                if error.errno == errno.EINVAL:
                    yield offset, end - offset
                    return
                raise _translate(
                    error, f"cannot look for holes in {self._name}", writing=False
                ) from error
            if start >= end:
                return
            yield start, stop - start
            offset = stop

    def backed_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of a range that are not holes, as `data_ranges` does."""
        return self.data_ranges(offset, size)

    def reserve(self, offset: int, size: int, /) -> None:
        """Allocate the holes of a range, or check that the file system has enough space."""
        self._owner.require()
        self._check_range(offset, size)
        if self.read_only:
            raise ReadOnlyError(f"{self._name} is open for reading only")
        if not self._resizable:
            return  # a block device has its space
        holes = list(self._holes(offset, size))
        self.require_space(sum(length for _, length in holes))
        from formats.devices.holes import fill_holes, punch_hole  # noqa: PLC0415  ctypes is rarely needed

        try:
            for start, length in holes:
                fill_holes(self._fd, start, length)
        except OSError as error:
            if error.errno in _NOT_THERE:
                return
            # The space was compared before; another process has used it since.
            with suppress(OSError):
                for start, length in holes:
                    punch_hole(self._fd, start, length)
            raise _translate(error, f"cannot reserve {size} bytes of {self._name}") from error

    def require_space(self, size: int) -> None:
        """Check that the file system has space for ``size`` more bytes.

        Raises:
            DeviceFullError: It has less than ``size`` bytes left.
        """
        self._owner.require()
        if not (self._resizable and hasattr(os, "fstatvfs")):
            return
        found = os.fstatvfs(self._fd)
        free = found.f_bavail * found.f_frsize
        if size > free:
            raise DeviceFullError(
                f"{self._name} needs {size} bytes more; its file system has {free} left"
            )

    def _holes(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        end = offset + size
        for start, length in self.data_ranges(offset, size):
            if offset < start:
                yield offset, start - offset
            offset = start + length
        if offset < end:
            yield offset, end - offset

    def __del__(self) -> None:
        """Release the file and its lock, if the code that opened it was interrupted."""
        self._locked = False  # closing drops it, and an ending interpreter cannot import `locks`
        self.close()

    def close(self) -> None:
        """Close the file and drop its lock; nothing is flushed. In a child, do nothing."""
        fd = getattr(self, "_fd", -1)
        if fd < 0 or self._owner.is_other:
            return
        if self._locked:
            # Unlock first: the steps after it can be interrupted, and a copy of the
            # descriptor in a child that did not close it would keep the lock.
            with suppress(OSError):
                unlock_image(fd)
            self._locked = False
        self._fd = -1
        close_descriptor(fd)

    def _pread(self, view: memoryview, offset: int) -> int:
        if self._position is None:
            return os.preadv(self._fd, [view], offset)
        with self._position:
            os.lseek(self._fd, offset, os.SEEK_SET)
            chunk = os.read(self._fd, len(view))
        view[: len(chunk)] = chunk
        return len(chunk)

    def _pwrite(self, view: memoryview, offset: int) -> int:
        if self._position is None:
            return os.pwrite(self._fd, view, offset)
        with self._position:
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.write(self._fd, view)


def _absolute(name: str) -> str:
    return os.path.abspath(name)  # noqa: PTH100  see FileDevice.path


def _is_one(opened: os.stat_result, named: os.stat_result) -> bool:
    """Say whether two results of `os.stat` belong to one file or device."""
    if stat.S_ISBLK(opened.st_mode) and stat.S_ISBLK(named.st_mode):
        return opened.st_rdev == named.st_rdev
    return os.path.samestat(opened, named)


def _synchronise(fd: int) -> None:
    if sys.platform == "darwin":
        import fcntl  # noqa: PLC0415  absent on Windows

        # fsync only reaches the drive's cache there.
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    elif hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)
