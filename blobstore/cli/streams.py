"""The standard streams of the command line: what does not arrive is an error with a name.

Python's own let `OSError` escape from wherever something is printed, lose what is
printed to a closed stdout without a word, and leave a closed descriptor to the next
file that is opened: an image, to which everything goes that is meant for stderr.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import TYPE_CHECKING

from formats.errors import DeviceError, DeviceFullError, device_error

if TYPE_CHECKING:
    from typing import Any, TextIO


class ReaderGoneError(Exception):
    """The reader of the pipe that stdout is went away."""


def secure() -> None:
    """Replace the standard streams by ones with the errors of this package.

    Reading stdin and writing to stdout raise `DeviceError`, or `ReaderGoneError`, where
    they fail; also where the descriptor was closed. After a first failure stdout takes
    everything, so that it is reported once. What cannot be written to stderr is lost:
    there is nowhere to say so, and the exit code remains.
    """
    if os.name != "posix":
        return  # consoles of Windows take no bytes
    for descriptor in range(3):
        _keep_taken(descriptor)
    if _is_standard(sys.stdin, 0):
        sys.stdin = _text(io.BufferedReader(_named(_Input(0, "r", closefd=False))), sys.stdin)
    if _is_standard(sys.stdout, 1):
        sys.stdout = _text(io.BufferedWriter(_named(_Output(1, "w", closefd=False))), sys.stdout)
    if _is_standard(sys.stderr, 2):
        messages = io.BufferedWriter(_named(_Messages(2, "w", closefd=False)))
        sys.stderr = _text(messages, sys.stderr, lines=True)


def _keep_taken(descriptor: int) -> None:
    """Open a descriptor that was closed, so that no image gets it; using it still fails."""
    try:
        os.fstat(descriptor)
    except OSError:
        import socket  # noqa: PLC0415  only a closed descriptor needs it

        # It can be neither read nor written, nor opened again as /dev/stdout.
        socket.socket(socket.AF_UNIX).detach()


def _is_standard(stream: TextIO | None, descriptor: int) -> bool:
    """Say whether Python made this stream of its descriptor; none if that was closed."""
    if stream is None:
        return True
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):
        return False  # another one was put there, as tests do


def _named(stream: io.FileIO) -> io.FileIO:
    """Name a stream as Python does, by which verbs know it."""
    stream.name = ("<stdin>", "<stdout>", "<stderr>")[stream.fileno()]
    return stream


def _text(binary: Any, old: TextIO | None, *, lines: bool = False) -> TextIO:
    return io.TextIOWrapper(
        binary,
        encoding=(old and old.encoding) or "utf-8",
        errors=(old and old.errors) or "backslashreplace",
        line_buffering=lines or binary.isatty(),
    )


def _failed(what: str, error: OSError, kind: type[DeviceError] = DeviceError) -> DeviceError:
    """Return the error to raise; of ``kind`` if the descriptor was closed."""
    if error.errno == errno.ENOTCONN:  # see `_keep_taken`
        return kind(f"{what}: it is closed")
    return device_error(error, what, writing=False)


class _Input(io.FileIO):
    """Standard input."""

    def readinto(self, buffer: Any, /) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise _failed("cannot read stdin", error) from error

    def readall(self) -> bytes:
        try:
            return super().readall()
        except OSError as error:
            raise _failed("cannot read stdin", error) from error


class _Output(io.FileIO):
    """Standard output."""

    _broken = False

    def write(self, data: Any, /) -> int:
        if self._broken:
            return len(memoryview(data).cast("B"))
        try:
            return _write_all(super().write, data, self)
        except OSError as error:
            self._broken = True
            if error.errno == errno.EPIPE:
                raise ReaderGoneError from error
            # Full or closed, scripts need to know the same: nothing takes the output.
            raise _failed("cannot write stdout", error, DeviceFullError) from error


class _Messages(io.FileIO):
    """Standard error."""

    def write(self, data: Any, /) -> int:
        try:
            return _write_all(super().write, data, self)
        except OSError:
            return len(memoryview(data).cast("B"))


def _write_all(write: Any, data: Any, stream: io.FileIO) -> int:
    """Write something at least, also where the descriptor does not wait."""
    while (written := write(data)) is None:
        import select  # noqa: PLC0415  only a pipe that does not wait needs it

        select.select([], [stream], [])
    return int(written)
