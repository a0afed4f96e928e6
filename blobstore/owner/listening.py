"""The owner's socket and its entry in the runtime directory (O2 to O6)."""

from __future__ import annotations

import os
import stat
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from blobstore.image.owners import make_runtime_directory
from blobstore.image.place import entry_of
from blobstore.sockets.addresses import UnixAddress
from blobstore.sockets.listening import MadeFile, alone_in, listen
from formats.errors import DeviceError, device_error
from formats.logs import LateLogger

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

    from blobstore.image.place import Place

_log = LateLogger(__name__)


@contextmanager
def listening(image: Place, path: Path | None = None) -> Iterator[socket.socket]:
    """Listen for clients of an image, which the caller has locked for writing.

    What an owner that died has left in the way is replaced. The socket and its entry are
    removed at the end.

    Args:
        image: The image.
        path: Of the socket; None listens at its entry.

    Raises:
        DeviceBusyError: A process listens at ``path``.
        DeviceError: A socket cannot be made there, or there is no runtime directory.
    """
    address = UnixAddress(require_entry(image) if path is None else path)
    prepare_place(image, address)
    with ExitStack() as removing:
        listener = removing.enter_context(listen(address))
        entry = make_entry(image, address)
        if entry is not None:
            removing.callback(entry.remove)
        yield listener.socket


def require_entry(image: Place) -> Path:
    """Return the entry of an image in the runtime directory.

    Raises:
        DeviceError: There is no runtime directory.
    """
    entry = entry_of(image)
    if entry is None:
        raise DeviceError(
            "there is no runtime directory for the socket [O2]",
            hint="name a socket with --socket, or set XDG_RUNTIME_DIR",
        )
    return entry


def prepare_place(image: Place, address: UnixAddress) -> None:
    """Make the runtime directory, if that is where the owner of an image is to listen.

    Raises:
        DeviceError: It cannot be made, or something else than a socket is there.
    """
    if entry_of(image) == address.path:
        make_runtime_directory(address.path.parent)
    _require_socket(address.path)


def make_entry(image: Place, address: UnixAddress) -> MadeFile | None:
    """Make the entry of an image a link to a socket that is elsewhere (O3).

    Whatever has that name is stale: this process has the image. None if the socket is the
    entry, or there is no runtime directory.

    Raises:
        DeviceError: It cannot be made.
    """
    entry, path = entry_of(image), address.path
    if entry is None:
        _log.warning("there is no runtime directory: clients have to name %s", path)
        return None
    if entry == path:
        return None
    make_runtime_directory(entry.parent)
    try:
        with alone_in(entry.parent):
            # One that is right is that of the owner before, which hands it over (O138).
            if not (entry.is_symlink() and entry.readlink() == path.absolute()):
                entry.unlink(missing_ok=True)
                entry.symlink_to(path.absolute())
            return MadeFile(entry)
    except OSError as error:
        raise device_error(error, f"cannot make {entry}") from error


def _require_socket(path: Path) -> None:
    """Refuse a path where there is something else than a socket, or a link (O4)."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # there is nothing, or it shows when it is tried
    if not (stat.S_ISSOCK(mode) or stat.S_ISLNK(mode)):
        raise DeviceError(f"{path} is there, and is not a socket", hint="name another --socket")
