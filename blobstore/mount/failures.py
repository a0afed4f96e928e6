"""Errors of the store in the words of files (M50)."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from blobstore.errors import (
    BlobNotFoundError,
    BlobTooLargeError,
    NoSpaceError,
    SectionExistsError,
    SectionMismatchError,
    StoreBusyError,
)
from formats.errors import (
    ArgumentError,
    DeviceBusyError,
    DeviceFullError,
    ReadOnlyError,
    StorageError,
    UnsupportedError,
)
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Iterator

_log = LateLogger(__name__)

# The first that fits. Whatever is not here is EIO.
_NUMBERS: Final[tuple[tuple[type[Exception], int], ...]] = (
    (BlobNotFoundError, errno.ENOENT),
    (BlobTooLargeError, errno.EFBIG),
    (NoSpaceError, errno.ENOSPC),
    (DeviceFullError, errno.ENOSPC),
    (SectionExistsError, errno.EEXIST),
    (SectionMismatchError, errno.EPERM),
    (ReadOnlyError, errno.EROFS),
    (DeviceBusyError, errno.EBUSY),
    (StoreBusyError, errno.EBUSY),
    (UnsupportedError, errno.EOPNOTSUPP),
    (ArgumentError, errno.EINVAL),
    # The store's other ValueErrors say that a section is in use, or the store closed.
    (ValueError, errno.EBUSY),
)


def failure(number: int, name: object = None) -> OSError:
    """Return the error with this number, of a file of this name."""
    if name is None:
        return OSError(number, os.strerror(number))
    return OSError(number, os.strerror(number), str(name))


def number_of(error: Exception) -> int:
    """Return the error number for an error of the store."""
    for kind, number in _NUMBERS:
        if isinstance(error, kind):
            return number
    return errno.EIO


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Let errors of the store be those of a file in the block, and log the unexpected ones.

    Args:
        what: What is being done, for the log.

    Raises:
        OSError: In place of a `StorageError` or `ValueError`.
    """
    try:
        yield
    except (StorageError, ValueError) as error:
        number = number_of(error)
        if number not in (errno.ENOENT, errno.EEXIST):
            _log.error("%s: %s", what, error)
        raise failure(number) from error
