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

_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2


def punch_hole(fd: int, offset: int, size: int) -> None:
    """Give back the space of a range, which then reads as zeros; the file keeps its size.

    Blocks of the file system that lie only partly in the range are zeroed. On a
    block device, this zeroes by unmapping, where the drive promises zeros.

    Raises:
        OSError: It failed; with `errno.EOPNOTSUPP`, this system, file system or
            drive cannot do it.
    """
    _call(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, size)


def fill_holes(fd: int, offset: int, size: int) -> None:
    """Give a range of a file space of its own; it reads as before, and the file keeps its size.

    Raises:
        OSError: It failed, and part of the range may have space now; errors as `punch_hole`.
    """
    _call(fd, _KEEP_SIZE, offset, size)


def _call(fd: int, mode: int, offset: int, size: int) -> None:
    function = _fallocate()
    if function is None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    while function(fd, mode, offset, size) != 0:
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
