"""Secrets: passphrases, key files, volume keys, and where they come from.

A `Secret` is not shown, not pickled, not copied by accident, and wiped on
request. No more is promised: the interpreter, OpenSSL and the operating system
may hold copies that cannot be reached (``docs/secrets.md``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Self

from luks.errors import SecretRequiredError
from luks.secret.secret_sources import (
    MAX_KEY_FILE_SIZE,
    read_credential,
    read_descriptor,
    read_file,
    run_command,
    wipe,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from types import TracebackType

    from formats.devices.device import ReadableBuffer

__all__ = ["MAX_KEY_FILE_SIZE", "Secret", "view_of"]


class Secret:
    """Bytes that must not become visible.

    Leaving a ``with`` block wipes them.
    """

    __slots__ = ("_buffer",)

    def __init__(self, value: ReadableBuffer) -> None:
        """Hold a copy of ``value``."""
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"a secret must be made of bytes, not {type(value).__name__}")
        self._buffer: bytearray | None = bytearray(value)

    @classmethod
    def adopt(cls, buffer: bytearray) -> Self:
        """Hold ``buffer`` itself; the secret wipes it."""
        secret = cls(b"")
        secret._buffer = buffer
        return secret

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], *, offset: int = 0, size: int | None = None
    ) -> Self:
        """Read a key file as it is: every byte counts, a trailing newline too.

        Args:
            path: A file, a device or a pipe.
            offset: Bytes to skip first.
            size: Bytes to read; by default all.

        Raises:
            SecretRequiredError: It cannot be read, has fewer bytes than that, or
                more than `MAX_KEY_FILE_SIZE`.
        """
        return cls.adopt(read_file(path, f"key file {path}", offset=offset, size=size))

    @classmethod
    def from_fd(
        cls, fd: int, *, name: str | None = None, offset: int = 0, size: int | None = None
    ) -> Self:
        """Read an open file descriptor to its end, as it is, and leave it open.

        Args:
            fd: Readable file descriptor.
            name: Its name in messages.
            offset: Bytes to skip first, from the descriptor's current position.
            size: Bytes to read; by default all.

        Raises:
            SecretRequiredError: As `from_file`.
        """
        name = name or f"file descriptor {fd}"
        return cls.adopt(read_descriptor(fd, name, offset=offset, size=size))

    @classmethod
    def from_credential(cls, name: str) -> Self:
        """Read a credential of systemd's ``$CREDENTIALS_DIRECTORY``, as it is.

        Raises:
            SecretRequiredError: No credentials were passed, or it is not among them.
            ValueError: ``name`` is not a possible name of a credential.
        """
        return cls.adopt(read_credential(name))

    @classmethod
    def from_keyring(cls, key: int | str) -> Self:
        """Read a key of the kernel's keyrings, as it is.

        Args:
            key: Its serial number, or the description of a key of type ``user``.

        Raises:
            SecretRequiredError: The key does not exist, or must not be read.
            UnsupportedError: The kernel has no keyrings, or libkeyutils is missing.
            ValueError: ``key`` is not the number of a key.
        """
        from luks.secret.keyring import find_key, read_key  # noqa: PLC0415  brings ctypes

        return cls.adopt(read_key(find_key(key) if isinstance(key, str) else key))

    @classmethod
    def from_command(cls, command: Sequence[str]) -> Self:
        """Run a command without a shell; its output, less one newline, is the secret.

        Args:
            command: Program and arguments, which other users can see.

        Raises:
            SecretRequiredError: It cannot be run, fails or prints nothing.
            ValueError: ``command`` is empty.
        """
        return cls.adopt(run_command(command))

    @classmethod
    def from_terminal(cls, prompt: str, *, confirm: bool = False) -> Self:
        """Ask at the controlling terminal, without echo; one newline is stripped.

        Args:
            prompt: The question, such as ``"Passphrase for disk.img: "``.
            confirm: Ask twice, for a new passphrase.

        Raises:
            SecretRequiredError: The process has no terminal, the input ends or is
                longer than 512 bytes, or the answers differ.
        """
        from luks.secret.terminal import ask  # noqa: PLC0415  few callers ask

        secret = cls.adopt(ask(prompt))
        if confirm:
            with cls.adopt(ask(f"Again: {prompt}")) as again:
                if again.view() != secret.view():
                    secret.wipe()
                    raise SecretRequiredError("the two entries differ")
        return secret

    def view(self) -> memoryview:
        """Return the bytes, which are valid until they are wiped; do not modify them.

        Raises:
            ValueError: The secret was wiped.
        """
        if self._buffer is None:
            raise ValueError("the secret was wiped")
        return memoryview(self._buffer).toreadonly()

    def wipe(self) -> None:
        """Overwrite the bytes with zeros and drop them. It may be called twice."""
        buffer, self._buffer = self._buffer, None
        if buffer is not None:
            wipe(buffer)

    def __len__(self) -> int:
        return len(self.view())

    def __repr__(self) -> str:
        return "<Secret>"

    def __copy__(self) -> NoReturn:
        raise TypeError("a Secret cannot be copied: make a new one from its view()")

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
    """Return the bytes of an argument that is a secret.

    Raises:
        TypeError: It is neither `bytes` nor a `Secret`.
    """
    if isinstance(secret, Secret):
        return secret.view()
    if isinstance(secret, bytes | bytearray | memoryview):
        return memoryview(secret).toreadonly()
    raise TypeError(f"a secret must be bytes or a luks.Secret, not {type(secret).__name__}")
