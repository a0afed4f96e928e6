"""Holes in files: Linux's `fallocate`, which Python does not have.

Source: fallocate(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_MODE: Final = _KEEP_SIZE | _PUNCH_HOLE


def punch_hole(fd: int, offset: int, size: int) -> None:
    """Give back the space of a range, which then reads as zeros; the file keeps its size.

    Blocks of the file system that lie only partly in the range are zeroed. On a
    block device, this zeroes by unmapping, where the drive promises zeros.

    Raises:
        OSError: It failed; with `errno.EOPNOTSUPP`, this system, file system or
            drive cannot do it.
    """
    function = _fallocate()
    if function is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    while function(fd, _MODE, offset, size) != 0:
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))


@cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    if os.name != "posix":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    # The first is glibc's, whose `fallocate` may take 32 bits; musl's takes 64.
    function = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = function
    return found
