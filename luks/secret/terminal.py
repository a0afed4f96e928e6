"""Asking for a passphrase at the controlling terminal."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from luks.errors import SecretRequiredError
from luks.secret.secret_sources import resized, wipe

if TYPE_CHECKING:
    from collections.abc import Iterator

_TERMINAL = "/dev/tty"

#: Largest size in bytes of a passphrase typed at a terminal, as in cryptsetup.
MAX_TERMINAL_SIZE: Final = 512


def ask(prompt: str) -> bytearray:
    """Return one line typed without echo, less its newline.

    Raises:
        SecretRequiredError: The process has no terminal, the input ended before the
            line did, or the line has more than `MAX_TERMINAL_SIZE` bytes.
    """
    try:
        fd = os.open(_TERMINAL, os.O_RDWR | getattr(os, "O_NOCTTY", 0))
    except OSError as error:
        raise SecretRequiredError(
            f"there is no terminal to ask: {prompt.strip().removesuffix(':')}",
            hint="give a key file or a file descriptor",
        ) from error
    import termios  # noqa: PLC0415  absent on Windows, and so is /dev/tty

    try:
        with _without_echo(fd):
            os.write(fd, prompt.encode())
            try:
                return _line(fd)
            finally:
                os.write(fd, b"\n")  # the user's newline was not echoed
    except (OSError, termios.error) as error:
        raise SecretRequiredError(f"cannot ask at the terminal: {error}") from error
    finally:
        os.close(fd)


@contextmanager
def _without_echo(fd: int) -> Iterator[None]:
    import termios  # noqa: PLC0415  Unix only

    before = termios.tcgetattr(fd)
    quiet = termios.tcgetattr(fd)
    quiet[3] &= ~termios.ECHO
    # Input typed before the question is not an answer to it.
    termios.tcsetattr(fd, termios.TCSAFLUSH, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSAFLUSH, before)


def _line(fd: int) -> bytearray:
    line = bytearray(MAX_TERMINAL_SIZE + 1)
    used = 0
    try:
        while used < len(line) and (got := os.readv(fd, [memoryview(line)[used:]])):
            used += got
            if line[used - 1] == ord("\n"):
                return resized(line, used - 1)
    finally:
        wipe(line)
    if used < len(line):
        raise SecretRequiredError("the terminal closed before a passphrase was complete")
    raise SecretRequiredError(f"a passphrase can have at most {MAX_TERMINAL_SIZE} bytes")
