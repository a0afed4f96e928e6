"""How commands reach an image: its header, its secret, and what they permit.

A passphrase comes from a key file, a file descriptor or the terminal, never
from the command line, where everybody could read it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blobstore.stack import is_luks, open_store
from luks.secrets import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from blobstore.store import Store

#: A file or device that a command reads or writes.
PATH = click.Path(path_type=Path)


@dataclass(frozen=True)
class Access:
    """What the options of `access_options` say."""

    key_file: Path | None
    key_fd: int | None
    header: Path | None
    allow_unprotected: bool

    def secret(self) -> Secret | None:
        """Return the secret that the options name, or None if they name none.

        Raises:
            click.UsageError: They name two.
            SecretRequiredError: It cannot be read.
        """
        if self.key_file and self.key_fd is not None:
            raise click.UsageError("--key-file and --key-fd exclude each other")
        if self.key_file:
            return Secret.from_file(self.key_file)
        if self.key_fd is not None:
            return Secret.from_fd(self.key_fd)
        return None

    def open(self, image: Path, *, read_only: bool = True) -> Store:
        """Open an image's store; ask for the passphrase if it needs one."""
        secret = self.secret()
        if secret is None and (self.header or is_luks(image)):
            secret = Secret.from_terminal(f"Passphrase for {image}: ")
        try:
            return open_store(
                image,
                secret,
                header=self.header,
                read_only=read_only,
                allow_unprotected=self.allow_unprotected,
            )
        finally:
            if secret is not None:
                secret.wipe()

    def new_secret(self, image: Path) -> Secret:
        """Return the secret for a new image; ask for it twice if none is named."""
        return self.secret() or Secret.from_terminal(f"New passphrase for {image}: ", confirm=True)


def secret_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where the secret and the header are."""
    for option in (
        click.option(
            "--header", type=PATH, metavar="FILE", help="The detached LUKS header of the image."
        ),
        click.option(
            "--key-fd", type=int, metavar="N", help="Read the passphrase from this descriptor."
        ),
        click.option(
            "--key-file", type=PATH, metavar="FILE", help="Read the passphrase from this file."
        ),
    ):
        function = option(function)
    return function


def access_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `Access`; the function gets them as ``access``."""

    @functools.wraps(function)
    def wrapped(
        *,
        key_file: Path | None,
        key_fd: int | None,
        header: Path | None,
        allow_unprotected: bool,
        **rest: Any,
    ) -> Any:
        return function(access=Access(key_file, key_fd, header, allow_unprotected), **rest)

    option = click.option(
        "--allow-unprotected",
        is_flag=True,
        help="Accept an image less protected than it should be.",
    )
    return secret_options(option(wrapped))
