"""Holes in files: Linux's `fallocate`, which Python does not offer.

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

    Blocks of the file system that lie only partly in the range are zeroed. A block
    device is unmapped where the drive promises that unmapped blocks read as zeros.

    Raises:
        OSError: It failed. `errno.EOPNOTSUPP` means that the system, the file system or
            the drive cannot do it.
    """
    _call(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, size)


def fill_holes(fd: int, offset: int, size: int) -> None:
    """Allocate the space of a range; its content and the size of the file do not change.

    Raises:
        OSError: It failed, as in `punch_hole`; part of the range may have space now.
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
    # The first name is glibc's, whose `fallocate` may take 32 bits; musl's takes 64.
    function = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if function is None:
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = function
    return found
