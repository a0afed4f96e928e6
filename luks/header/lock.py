"""Keeping other programs from changing a header at the same time.

cryptsetup takes ``flock`` on an image file while it changes a LUKS2 header, and
so do we. It has nothing to do with the lock on the image (`formats.devices.locks`): keys
are changed while a volume is in use.
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
    """Hold the lock of an image file or block device; yield what the path names then.

    Args:
        path: It; it is opened once more for this.
        timeout: Seconds to wait for whoever holds the lock.

    Raises:
        DeviceBusyError: Another program holds it all the time.
        DeviceError: It cannot be opened or locked.
    """
    end = time.monotonic() + timeout
    while True:
        with ExitStack() as stack:
            # A file of its own: the lock belongs to that, and ends with it.
            file = stack.enter_context(FileDevice(path, lock=False))
            if sys.platform != "win32":  # no cryptsetup there
                # Given back before the file is closed, which an interrupt may prevent.
                stack.callback(_unlock, file.fileno())
                _lock(file.fileno(), path, end)
            if file.has_name():
                yield file
                return
            # Renamed over while we waited: the lock is on what nobody finds any more.


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
                # It may be held by a call that was interrupted in this process: its
                # frames refer to each other, and nothing else lets go of them.
                gc.collect()
                collected = True
                continue
            if time.monotonic() > end:
                raise DeviceBusyError(f"another program is changing {path}") from None
            time.sleep(_POLL)
        except OSError as error:
            raise DeviceError(f"cannot lock {path}: {error.strerror}") from error
        else:
            return
