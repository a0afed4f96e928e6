"""The errors of all packages have one root here.

    StorageError                      1
    ├── DeviceError                  20   the operating system or a device failed
    │   ├── DeviceFullError          21
    │   ├── ReadOnlyError            22
    │   ├── DeviceBusyError          23
    │   └── ImageReplacedError       25   another file has the image's name now
    ├── ForkedProcessError           24   the object belongs to the parent process
    ├── FormatError                  30   bytes break a format's rules
    │   ├── EmptyImageError          31
    │   ├── ForeignImageError        32
    │   ├── TruncatedImageError      33
    │   ├── ContainerError           34   no sound container header is left
    │   ├── FieldError               37   a field's value breaks a limit of its format
    │   ├── CorruptImageError        38   a qcow2 image contradicts itself
    │   └── LeakedClustersError      39   a qcow2 image has lost some of its space
    ├── SnapshotNotFoundError        41   the image has no such snapshot
    ├── SnapshotExistsError          42   a snapshot has that name already
    ├── AmbiguousSnapshotError       43   several snapshots match
    └── UnsupportedError             40   valid, but not implemented here

`luks.errors` (35, 36, 50 to 59) and `blobstore.errors` (60 to 70) add theirs. The
numbers are the exit codes of the command line; README lists them all.

The class of an error tells whose fault it is: a fault of the bytes or the machine is
a `StorageError`; a mistake of the caller is a `TypeError` or `ValueError`. Among these,
an `ArgumentError` says that a checked argument is impossible; the command line reports
it as wrong usage, which it does with no other `ValueError`.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}


class ArgumentError(ValueError):
    """An argument is impossible, or does not fit the other arguments or the image.

    Raised only where arguments are checked, before anything is done, so the caller can
    correct it. Never caused by damaged or hostile bytes: any other `ValueError` that
    reaches a user is a defect of this program and is reported as one.
    """


class StorageError(Exception):
    """Root of every error that storage, its formats or its keys can cause.

    Attributes:
        exit_code: Exit status of the command line.
        hint: What the user can do, in one sentence, or None.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class DeviceError(StorageError):
    """A read, write, flush or open failed in the system; `__cause__` has the OS error."""

    exit_code = 20


class DeviceFullError(DeviceError):
    """The file system or device has no space left."""

    exit_code = 21


class ReadOnlyError(DeviceError):
    """Writing was requested where only reading is opened or permitted."""

    exit_code = 22


class DeviceBusyError(DeviceError):
    """Another process holds the image."""

    exit_code = 23


class ImageReplacedError(DeviceError):
    """Another file has taken the name of the open image: data written to it would be lost."""

    exit_code = 25


class ForkedProcessError(StorageError):
    """The object was opened before a fork, and this is the child: nothing was done (C64)."""

    exit_code = 24


def refuse_unknown(function: str, keywords: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keywords that a function does not know, before it does anything.

    For those that hand keywords on: a misspelled one is found here, and not deep inside
    when files are open already.

    Args:
        function: Its public name, for the message.
        keywords: That it was given.
        known: That it knows.

    Raises:
        TypeError: One is unknown, as Python itself says of keywords.
    """
    names = list(known)
    for keyword in keywords:
        if keyword not in names:
            from difflib import get_close_matches  # noqa: PLC0415  only for mistakes

            close = get_close_matches(keyword, names, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"{function}() does not take {keyword!r}{meant}")


def device_error(error: OSError, what: str, *, writing: bool = True) -> DeviceError:
    """Return the `DeviceError` for an error of the operating system.

    Args:
        error: The cause; the caller raises the result from it.
        what: The failure, such as ``"cannot open disk.img"``.
        writing: Whether a missing permission means that writing was refused.
    """
    kind = DeviceError
    if error.errno in _FULL:
        kind = DeviceFullError
    elif writing and error.errno in _READ_ONLY:
        kind = ReadOnlyError
    return kind(f"{what}: {error.strerror}")


class FormatError(StorageError):
    """Bytes break the rules of their format.

    Attributes:
        offset: Byte offset of the offending bytes in their device, or None.
        rule: The specification's name for the broken rule, or None.
    """

    exit_code = 30

    def __init__(
        self,
        message: str,
        *,
        offset: int | None = None,
        rule: str | None = None,
        hint: str | None = None,
    ) -> None:
        place = "" if offset is None else f" at byte {offset}"
        reason = "" if rule is None else f" [{rule}]"
        super().__init__(f"{message}{place}{reason}", hint=hint)
        self.offset = offset
        self.rule = rule


class EmptyImageError(FormatError):
    """The image is empty: it has no bytes, or only zeros."""

    exit_code = 31


class ForeignImageError(FormatError):
    """The image holds data in a format that is not the expected one."""

    exit_code = 32


class TruncatedImageError(FormatError):
    """The image ends earlier than its own headers say."""

    exit_code = 33


class ContainerError(FormatError):
    """It is a container, but neither copy of its header is sound."""

    exit_code = 34


class FieldError(FormatError):
    """The value of a field cannot be written in its format.

    Attributes:
        path: Which field, such as ``board.custom[2]``; empty for the whole.
        problem: The reason, without the path.
    """

    exit_code = 37

    def __init__(self, path: str, problem: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path}: {problem}" if path else problem, hint=hint)
        self.path = path
        self.problem = problem


class UnsupportedError(StorageError):
    """The bytes are valid but need a feature that is not implemented here.

    Attributes:
        feature: Name of the missing feature.
    """

    exit_code = 40

    def __init__(self, message: str, *, feature: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.feature = feature


class CorruptImageError(FormatError):
    """The tables of an image contradict each other, or it is marked as corrupt."""

    exit_code = 38


class LeakedClustersError(FormatError):
    """An image has unused space that counts as used; nothing else is wrong."""

    exit_code = 39


class SnapshotNotFoundError(StorageError):
    """The image has no such snapshot."""

    exit_code = 41


class SnapshotExistsError(StorageError):
    """The image has a snapshot with that name, or that ID."""

    exit_code = 42


class AmbiguousSnapshotError(StorageError):
    """Several snapshots match: one by ID and one by name, or several with one name."""

    exit_code = 43
