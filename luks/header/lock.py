"""Keeping other programs from changing a header at the same time.

cryptsetup takes ``flock`` on an image file while it changes a LUKS2 header, and
so does this module. It is independent of the lock on the image
(`formats.devices.locks`): keys can be changed while a volume is in use.
"""

from __future__ import annotations

import gc
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

from formats.devices.file import FileDevice
from luks.errors import DeviceBusyError, DeviceError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

#: Seconds to wait for another program.
TIMEOUT: Final = 10.0
#: Seconds between two tries.
_POLL: Final = 0.02


@contextmanager
def exclusive(path: str | os.PathLike[str], timeout: float = TIMEOUT) -> Iterator[FileDevice]:
    """Hold the lock of an image file or block device; yield the file that the path names.

    Args:
        path: The file or device, which is opened a second time for the lock.
        timeout: Seconds to wait for the holder of the lock.

    Raises:
        DeviceBusyError: Another program held it all the time.
        DeviceError: It cannot be opened or locked.
    """
    end = time.monotonic() + timeout
    while True:
        with ExitStack() as stack:
            # A separate open file: the lock belongs to it, and ends with it.
            file = stack.enter_context(FileDevice(path, lock=False))
            if sys.platform != "win32":  # no cryptsetup there
                # Unlock before the file is closed, which an interrupt may prevent.
                stack.callback(_unlock, file.fileno())
                _lock(file.fileno(), path, end)
            if file.has_name():
                yield file
                return
            # Replaced while waiting: the lock is on a file that the path no longer names.


def _unlock(fd: int) -> None:
    import fcntl  # noqa: PLC0415  not on Windows

    fcntl.flock(fd, fcntl.LOCK_UN)


def _lock(fd: int, path: str | os.PathLike[str], end: float) -> None:
    import fcntl  # noqa: PLC0415  not on Windows

    collected = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not collected:
                # An interrupted call in this process may still hold it: its frames refer
                # to each other, and only the garbage collector releases them.
                gc.collect()
                collected = True
                continue
            if time.monotonic() > end:
                raise DeviceBusyError(
                    f"another program is changing the LUKS header of {path}",
                    hint="try again when it has finished",
                ) from None
            time.sleep(_POLL)
        except OSError as error:
            raise DeviceError(f"cannot lock {path}: {error.strerror}") from error
        else:
            return
