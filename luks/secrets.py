"""Secrets: passphrases, key files, volume keys, and where they come from.

A `Secret` is not shown, not pickled, not copied by accident, and wiped on
request. What is promised ends there: the interpreter, OpenSSL and the operating
system may hold copies that nobody can reach.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, NoReturn, Self

from luks.errors import SecretRequiredError

if TYPE_CHECKING:
    from types import TracebackType

    from formats.device import ReadableBuffer

#: Most bytes of a key file, as in cryptsetup.
MAX_KEY_FILE_SIZE: Final = 8 << 20
#: Most bytes of a passphrase typed at a terminal, as in cryptsetup.
MAX_TERMINAL_SIZE: Final = 512


class Secret:
    """Bytes that must not be seen.

    Leaving a ``with`` block wipes them.
    """

    __slots__ = ("_buffer",)

    def __init__(self, value: ReadableBuffer) -> None:
        """Hold a copy of ``value``."""
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"a secret is made of bytes, not {type(value).__name__}")
        self._buffer: bytearray | None = bytearray(value)

    @classmethod
    def adopt(cls, buffer: bytearray) -> Self:
        """Hold ``buffer`` itself, which becomes the secret's to wipe."""
        secret = cls(b"")
        secret._buffer = buffer
        return secret

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Self:
        """Read a key file as it is: every byte counts, a trailing newline too.

        Raises:
            SecretRequiredError: It cannot be read or has more than
                `MAX_KEY_FILE_SIZE` bytes.
        """
        try:
            fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise SecretRequiredError(f"cannot open key file {path}: {error.strerror}") from error
        try:
            return cls.from_fd(fd, name=f"key file {path}")
        finally:
            os.close(fd)

    @classmethod
    def from_fd(cls, fd: int, *, name: str | None = None) -> Self:
        """Read an open file descriptor to its end, as it is, and leave it open.

        Args:
            fd: Readable file descriptor.
            name: What messages call it.

        Raises:
            SecretRequiredError: It cannot be read or gives more than
                `MAX_KEY_FILE_SIZE` bytes.
        """
        name = name or f"file descriptor {fd}"
        buffer = bytearray()
        try:
            while chunk := os.read(fd, 1 << 16):
                buffer += chunk
                if len(buffer) > MAX_KEY_FILE_SIZE:
                    _wipe(buffer)
                    raise SecretRequiredError(
                        f"{name} has more than {MAX_KEY_FILE_SIZE} bytes: it is no key file"
                    )
        except OSError as error:
            raise SecretRequiredError(f"cannot read {name}: {error.strerror}") from error
        return cls.adopt(buffer)

    @classmethod
    def from_terminal(cls, prompt: str, *, confirm: bool = False) -> Self:
        """Ask at the controlling terminal, without echo; one newline is stripped.

        Args:
            prompt: What to ask, such as ``"Passphrase for disk.img: "``.
            confirm: Ask twice, for a new passphrase.

        Raises:
            SecretRequiredError: There is no terminal, the input ends or is
                longer than `MAX_TERMINAL_SIZE` bytes, or the answers differ.
        """
        from luks.terminal import ask  # noqa: PLC0415  few callers ask

        secret = cls.adopt(ask(prompt))
        if confirm:
            with cls.adopt(ask(f"Again: {prompt}")) as again:
                if again.view() != secret.view():
                    secret.wipe()
                    raise SecretRequiredError("the two entries differ")
        return secret

    def view(self) -> memoryview:
        """Return the bytes, for as long as they are not wiped; do not modify them.

        Raises:
            ValueError: The secret was wiped.
        """
        if self._buffer is None:
            raise ValueError("this secret was wiped")
        return memoryview(self._buffer).toreadonly()

    def wipe(self) -> None:
        """Overwrite the bytes with zeros and forget them; twice is fine."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            _wipe(buffer)

    def __len__(self) -> int:
        return len(self.view())

    def __repr__(self) -> str:
        return "<Secret>"

    def __copy__(self) -> NoReturn:
        raise TypeError("a Secret is not copied by accident: make a new one from its view()")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self.__copy__()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a Secret cannot be pickled")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wipe()


def view_of(secret: bytes | Secret) -> memoryview:
    """Return the bytes of what the API takes as a secret.

    Raises:
        TypeError: It is neither `bytes` nor a `Secret`.
    """
    if isinstance(secret, Secret):
        return secret.view()
    if isinstance(secret, bytes | bytearray | memoryview):
        return memoryview(secret).toreadonly()
    raise TypeError(f"a secret is bytes or a luks.Secret, not {type(secret).__name__}")


def _wipe(buffer: bytearray) -> None:
    buffer[:] = bytes(len(buffer))
