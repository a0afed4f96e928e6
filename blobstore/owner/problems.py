"""Errors as documents (``application/problem+json``, RFC 9457), and back (O30 to O34)."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import msgspec

import blobstore.errors
import formats.errors
import luks.errors
from blobstore.errors import (
    BlobNotFoundError,
    BlobTooLargeError,
    GenerationMismatchError,
    ImageExistsError,
    NoPreviousBlobError,
    NoSpaceError,
    SectionExistsError,
    SectionMismatchError,
    StoreBusyError,
    UnwrittenBlobError,
)
from formats.errors import (
    AmbiguousSnapshotError,
    ArgumentError,
    DeviceBusyError,
    DeviceFullError,
    FormatError,
    ReadOnlyError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    StorageError,
    UnsupportedError,
)
from luks.errors import NoReencryptionError, UnfinishedReencryptionError

CONTENT_TYPE: Final = "application/problem+json"

#: Bytes of a message in a field of a head (O151).
_MOST_OF_MESSAGE: Final = 700
#: What cannot be asked for is wrong usage, as on the command line.
_USAGE: Final = 2

# The first that an error is an instance of says its status (O32).
_STATUSES: Final[tuple[tuple[type[Exception], int], ...]] = (
    (BlobNotFoundError, 404),
    (UnwrittenBlobError, 404),
    (NoPreviousBlobError, 404),
    (GenerationMismatchError, 412),
    (BlobTooLargeError, 413),
    (SnapshotNotFoundError, 404),
    (SectionExistsError, 409),
    (ImageExistsError, 409),
    (SnapshotExistsError, 409),
    (AmbiguousSnapshotError, 409),
    (SectionMismatchError, 409),
    (NoReencryptionError, 409),
    (UnfinishedReencryptionError, 409),
    (ReadOnlyError, 403),
    (UnsupportedError, 501),
    (DeviceBusyError, 503),
    (StoreBusyError, 503),
    (NoSpaceError, 507),
    (DeviceFullError, 507),
    (StorageError, 500),
    (ArgumentError, 400),
    (ValueError, 409),
)


class RefusedError(Exception):
    """A request that HTTP or ``spec/owner.md`` does not permit.

    Attributes:
        status: Of the reply.
        rule: That it breaks.
        headers: Of the reply, beside those that each has.
    """

    def __init__(
        self, status: int, message: str, rule: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(f"{message} [{rule}]")
        self.status = status
        self.rule = rule
        self.headers = headers


def problem_of(error: StorageError | ValueError | RefusedError) -> tuple[int, bytes]:
    """Return the status and the document of an error (O31)."""
    document = _document(error)
    return document["status"], msgspec.json.encode(document)


def summary_of(error: StorageError | ValueError | RefusedError) -> str:
    """Return an error as one line: exit code, class and message (O151)."""
    document = _document(error)
    message = "".join(c if c.isprintable() else " " for c in document["detail"])
    cut = message.encode(errors="replace")[:_MOST_OF_MESSAGE].decode(errors="ignore").strip()
    return f"{document['exit_code']} {document['class']} {cut or '-'}"


def _document(error: StorageError | ValueError | RefusedError) -> dict[str, Any]:
    kind: type[Exception] = type(error)
    known: dict[str, str | int | None] = {}
    if isinstance(error, RefusedError):
        # The request breaks its format, or the owner has too much to do: clients raise that.
        busy = error.status == HTTPStatus.SERVICE_UNAVAILABLE
        cause = DeviceBusyError if busy else FormatError
        kind, status, known = cause, error.status, {"rule": error.rule}
        exit_code = cause.exit_code
    else:
        status = next(status for cause, status in _STATUSES if isinstance(error, cause))
        exit_code = _USAGE if isinstance(error, ArgumentError) else 1
        if isinstance(error, StorageError):
            exit_code = error.exit_code
            known = {
                name: value
                for name, value in vars(error).items()
                if isinstance(value, str | int | None)
            }
        else:
            kind = ArgumentError if isinstance(error, ArgumentError) else ValueError
    return {
        "type": f"urn:blobstore:{kind.__name__}",
        "title": (kind.__doc__ or "").partition("\n")[0],
        "status": status,
        "detail": str(error),
        "class": kind.__name__,
        "exit_code": exit_code,
        "hint": None,
        **known,
    }


def error_of(status: int, document: bytes) -> StorageError | ValueError:
    """Return the error that a client raises for a reply (O33).

    Its class, message and fields are those that the owner's had.
    """
    try:
        known = msgspec.json.decode(document, type=dict[str, Any])
        name, detail, exit_code = str(known["class"]), str(known["detail"]), int(known["exit_code"])
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
        return FormatError(f"the owner replies with status {status}, and does not say why")
    if name in ("ArgumentError", "ValueError"):
        return (ArgumentError if name == "ArgumentError" else ValueError)(detail)
    kind = _classes().get(name, StorageError)
    # The message has its place and rule already: no constructor adds them again.
    error = kind.__new__(kind, detail)
    error.__dict__.update(
        (key, value)
        for key, value in known.items()
        if key not in ("type", "title", "status", "detail", "class", "exit_code")
    )
    for field in ("offset", "rule"):
        if isinstance(error, FormatError):
            error.__dict__.setdefault(field, None)
    error.__dict__.setdefault("hint", None)
    if kind.exit_code != exit_code:
        error.exit_code = exit_code  # of a class that this version does not know
    return error


def told_error(document: bytes) -> StorageError | ValueError | None:
    """Return the error that a line of a reply describes; None if it is something else."""
    try:
        status = int(msgspec.json.decode(document, type=dict[str, Any])["status"])
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError):
        return None
    return error_of(status, document)


def _classes() -> dict[str, type[StorageError]]:
    return {
        name: value
        for module in (formats.errors, luks.errors, blobstore.errors)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, StorageError)
    }
