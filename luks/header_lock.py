"""Keeping other programs from changing a header at the same time.

cryptsetup takes ``flock`` on an image file while it changes a LUKS2 header, and
so do we. It has nothing to do with the lock on the image (`formats.locks`): keys
are changed while a volume is in use.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from luks.errors import DeviceBusyError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DeviceError(f"cannot open {path}: {error.strerror}") from error
    try:
        _lock(fd, path, time.monotonic() + timeout)
        yield
    finally:
        os.close(fd)  # which gives the lock back


def _lock(fd: int, path: str | os.PathLike[str], end: float) -> None:
    import fcntl  # noqa: PLC0415  not on Windows

    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise DeviceBusyError(f"another program is changing {path}") from None
            time.sleep(_POLL)
        except OSError as error:
            raise DeviceError(f"cannot lock {path}: {error.strerror}") from error
        else:
            return
