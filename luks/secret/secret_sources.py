"""Reading secrets from descriptors, files, systemd's credentials and commands.

The bytes are read directly into memory that is wiped when it grows and when
reading fails: a traceback that shows local variables shows zeros.
Rules: S10 to S17 of ``spec/secrets.md``.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from formats.errors import ArgumentError
from luks.errors import SecretRequiredError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Largest size of a key file in bytes, as in cryptsetup.
MAX_KEY_FILE_SIZE: Final = 8 << 20
#: Where systemd puts the credentials of a service.
CREDENTIALS_DIRECTORY: Final = "CREDENTIALS_DIRECTORY"

_CHUNK: Final = 4096


def wipe(buffer: bytearray) -> None:
    """Overwrite a buffer with zeros; its size stays."""
    buffer[:] = bytes(len(buffer))


def read_descriptor(fd: int, name: str, *, offset: int = 0, size: int | None = None) -> bytearray:
    """Read an open descriptor from its current position, and leave it open.

    Args:
        fd: Readable file descriptor.
        name: Its name in messages.
        offset: Bytes to skip first.
        size: Bytes to read; by default all.

    Raises:
        SecretRequiredError: It cannot be read, has fewer bytes than that, or
            more than `MAX_KEY_FILE_SIZE`.
        ValueError: ``offset`` or ``size`` is not possible for a secret.
    """
    if offset < 0 or (size is not None and not 0 < size <= MAX_KEY_FILE_SIZE):
        raise ArgumentError(f"offset must be at least 0, and size 1 to {MAX_KEY_FILE_SIZE} bytes")
    try:
        _skip(fd, offset)
        read = _read(fd, MAX_KEY_FILE_SIZE + 1 if size is None else size)
    except OSError as error:
        raise SecretRequiredError(f"cannot read {name}: {error.strerror}") from error
    count = len(read)
    if count > MAX_KEY_FILE_SIZE:
        wipe(read)
        raise SecretRequiredError(
            f"{name} has more than {MAX_KEY_FILE_SIZE} bytes: it is not a key file"
        )
    if size is not None and count < size:
        wipe(read)
        raise SecretRequiredError(f"{name} has {count} bytes at offset {offset}, not {size}")
    if offset and not count:
        raise SecretRequiredError(f"{name} ends at or before offset {offset}")
    return read


def read_file(
    path: str | os.PathLike[str], name: str, *, offset: int = 0, size: int | None = None
) -> bytearray:
    """Read a file as `read_descriptor` does.

    Raises:
        SecretRequiredError: Also if it cannot be opened.
        ValueError: As `read_descriptor`.
    """
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise SecretRequiredError(f"cannot open {name}: {error.strerror}") from error
    try:
        return read_descriptor(fd, name, offset=offset, size=size)
    finally:
        os.close(fd)


def read_credential(name: str) -> bytearray:
    """Read a credential that the service manager passed.

    Args:
        name: As in ``LoadCredential=NAME:…`` of the service.

    Raises:
        SecretRequiredError: No credentials were passed, or it is not among them.
        ValueError: ``name`` is not a possible name of a credential.
    """
    if not name or name in {".", ".."} or "/" in name or "\0" in name:
        raise ArgumentError(f"{name!r} is not the name of a credential")
    directory = os.environ.get(CREDENTIALS_DIRECTORY)
    if not directory:
        raise SecretRequiredError(
            f"no credentials were passed: ${CREDENTIALS_DIRECTORY} is not set",
            hint="the service needs LoadCredential= or LoadCredentialEncrypted=",
        )
    return read_file(os.path.join(directory, name), f"credential {name}")  # noqa: PTH118  a str for messages


def run_command(command: Sequence[str]) -> bytearray:
    """Run a command without a shell, and return its output, less one newline.

    It gets no standard input, which may be a blob; it shares the standard error of
    this process. Messages name only the program, because its arguments may contain
    secrets.

    Args:
        command: Program and arguments.

    Raises:
        SecretRequiredError: It cannot be run, fails, prints nothing, or prints more
            than `MAX_KEY_FILE_SIZE` bytes; or SIGCHLD is ignored (S14).
        ValueError: ``command`` is empty.
    """
    import signal  # noqa: PLC0415  few run commands
    import subprocess  # noqa: PLC0415  likewise

    if not command:
        raise ArgumentError("the command is empty")
    name = f"the command {command[0]}"
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
        # The system then drops the exit status of children, and `subprocess` assumes success.
        raise SecretRequiredError(
            f"cannot run {name}: this process ignores SIGCHLD and so cannot detect a failure",
            hint="set SIGCHLD to its default first",
        )
    try:
        process = subprocess.Popen(  # noqa: S603  the caller asked to run it
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0
        )
    except OSError as error:
        raise SecretRequiredError(f"cannot run {name}: {error.strerror}") from error
    # Leaving the block waits for it; an early end of reading closes its pipe.
    with process:
        assert process.stdout is not None
        printed = read_descriptor(process.stdout.fileno(), f"what {name} prints")
    count = len(printed) - printed.endswith(b"\n")
    if process.returncode or count <= 0:
        wipe(printed)
        status = process.returncode
        said = f"failed with status {status}" if status else "printed nothing"
        raise SecretRequiredError(f"{name} {said}")
    return resized(printed, count)


def resized(buffer: bytearray, size: int) -> bytearray:
    """Return a buffer's first bytes in one of another size, and wipe the old one.

    Growing a bytearray in place may leave a copy of its bytes in memory.
    """
    if size == len(buffer):
        return buffer
    moved = bytearray(size)
    count = min(size, len(buffer))
    memoryview(moved)[:count] = memoryview(buffer)[:count]
    wipe(buffer)
    return moved


def _skip(fd: int, count: int) -> None:
    """Skip bytes, by reading them if the descriptor cannot seek."""
    if not count:
        return
    try:
        os.lseek(fd, count, os.SEEK_CUR)
    except OSError as error:
        if error.errno != errno.ESPIPE:
            raise
    else:
        return
    passed = bytearray(_CHUNK)
    try:
        while count:
            got = os.readv(fd, [memoryview(passed)[: min(count, _CHUNK)]])
            if not got:
                return
            count -= got
    finally:
        wipe(passed)


def _read(fd: int, limit: int) -> bytearray:
    """Read to the end, or ``limit`` bytes."""
    buffer = bytearray(min(limit, _CHUNK))
    used = 0
    try:
        while used < limit:
            if used == len(buffer):
                buffer = resized(buffer, min(2 * used, limit))
            got = os.readv(fd, [memoryview(buffer)[used:]])
            if not got:
                break
            used += got
    except BaseException:
        wipe(buffer)
        raise
    return resized(buffer, used)
