"""Which process owns an image (O93), and the directory where owners are found (O2)."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from formats.errors import DeviceBusyError, DeviceError, device_error

if TYPE_CHECKING:
    AnyPath = str | os.PathLike[str]


def busy_error(image: AnyPath, entry: Path | None, error: DeviceBusyError) -> DeviceBusyError:
    """Return an error that names the owner of an image that is in use (O93).

    Args:
        image: Its place.
        entry: Where its owner would listen (O3).
        error: What opening it raised, which is returned where no owner answers.
    """
    process = None if entry is None else _owner_process(entry)
    if process is None:
        return error
    name = _name_of(process)
    return DeviceBusyError(
        f"process {process}{f' ({name})' if name else ''} owns {os.fspath(image)} [O93]",
        hint="ask the owner, as most verbs and blobstore.open do by themselves, or stop it",
    )


def _owner_process(entry: Path) -> int | None:
    """Return the process that listens at the entry of an image, if one does."""
    import socket  # noqa: PLC0415  only for images that are in use

    from blobstore.sockets.peers import peer_credentials  # noqa: PLC0415  likewise

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(entry))
        except OSError:
            return None
        credentials = peer_credentials(probe)
    return None if credentials is None else credentials.process


def _name_of(process: int) -> str:
    """Return what a process is, such as ``blobstore serve``, where the system tells."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
        called = Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""
    for place, word in enumerate(words):
        if Path(word).name in ("blobstore", "__main__.py"):
            verbs = [one for one in words[place + 1 :] if one and not one.startswith("-")]
            return f"blobstore {verbs[0]}" if verbs else "blobstore"
    return called


def make_runtime_directory(directory: Path) -> None:
    """Make the runtime directory, or see that no other user can write to it (O2).

    Raises:
        DeviceError: It cannot be made, or others can.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise device_error(error, f"cannot make the runtime directory {directory}") from error
    private = found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if not private:
        raise DeviceError(
            f"others can write to the runtime directory {directory} [O2]",
            hint="make it yours, with mode 0700",
        )
