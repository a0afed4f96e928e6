"""Showing a secret to the owner of an image without sending it (O222)."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from formats.errors import UnsupportedError
from luks.secret.secrets import view_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import luks


@contextmanager
def shown_to_others(secret: bytes | luks.Secret) -> Iterator[str]:
    """Yield the path of a file in memory with a secret, which this process has for the block.

    Processes of the same user, and of root, can read it: those that can read the memory of this
    process anyway. It is overwritten at the end.

    Raises:
        UnsupportedError: The system has no such files.
    """
    if not hasattr(os, "memfd_create"):
        raise UnsupportedError(
            "this system has no files in memory",
            feature="showing a secret to the owner",
            hint="name a key file that the owner can read",
        )
    content = view_of(secret)
    descriptor = os.memfd_create("blobstore", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield f"/proc/{os.getpid()}/fd/{descriptor}"
    finally:
        os.pwrite(descriptor, bytes(len(content)), 0)
        os.close(descriptor)
