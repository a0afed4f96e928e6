"""Keeping other programs from changing a header at the same time.

cryptsetup takes ``flock`` on an image file while it changes a LUKS2 header, and
so do we. It has nothing to do with the lock on the image (`formats.locks`): keys
are changed while a volume is in use.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final

from luks.errors import DeviceBusyError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Seconds to wait for another program.
TIMEOUT: Final = 10.0
#: Seconds between two tries.
_POLL: Final = 0.02


@contextmanager
def exclusive(path: str | os.PathLike[str], timeout: float = TIMEOUT) -> Iterator[None]:
    """Hold the lock of an image file or block device.

    Args:
        path: It; it is opened once more for this.
        timeout: Seconds to wait for whoever holds the lock.

    Raises:
        DeviceBusyError: Another program holds it all the time.
        DeviceError: It cannot be opened or locked.
    """
    if sys.platform == "win32":
        yield  # no cryptsetup there
        return
    lock = _Lock(path)
    try:
        lock.acquire(time.monotonic() + timeout)
        yield
    finally:
        lock.close()


class _Lock:
    """The lock of a file, which goes with the last reference to it.

    An interrupt can keep any `finally` from doing its work. A descriptor that is
    left open by that would keep the lock until the process ends.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = path
        self._fd = -1
        self._unlock: Callable[[], None] | None = None
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DeviceError(f"cannot open {path}: {error.strerror}") from error

    def acquire(self, end: float) -> None:
        import fcntl  # noqa: PLC0415  not on Windows

        self._unlock = partial(fcntl.flock, self._fd, fcntl.LOCK_UN)
        collected = False
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not collected:
                    # It may be held by a call that was interrupted in this process: its
                    # frames refer to each other, and nothing else lets go of them.
                    gc.collect()
                    collected = True
                    continue
                if time.monotonic() > end:
                    raise DeviceBusyError(f"another program is changing {self._path}") from None
                time.sleep(_POLL)
            except OSError as error:
                raise DeviceError(f"cannot lock {self._path}: {error.strerror}") from error
            else:
                return

    def close(self) -> None:
        if self._fd >= 0:
            if self._unlock is not None:
                self._unlock()  # first: what comes next can be interrupted
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        self.close()
