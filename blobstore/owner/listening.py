"""The owner's socket and its entry in the runtime directory (O2 to O6)."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from blobstore.image.image import entry_of
from formats.errors import DeviceBusyError, DeviceError, device_error
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = LateLogger(__name__)

#: Connections that wait in the kernel while others are taken.
_BACKLOG = 64


@contextmanager
def listening(image: Path, path: Path | None = None) -> Iterator[socket.socket]:
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
    entry = entry_of(image)
    with ExitStack() as removing:
        if path is None:
            if entry is None:
                raise DeviceError(
                    "there is no runtime directory for the socket [O2]",
                    hint="name a socket with --socket, or set XDG_RUNTIME_DIR",
                )
            _make_directory(entry.parent)
            yield _listen(removing, entry)
            return
        listener = _listen(removing, path)
        if entry is None:
            _log.warning("there is no runtime directory: clients have to name %s", path)
        else:
            _make_directory(entry.parent)
            _link(removing, entry, path)
        yield listener


def _make_directory(directory: Path) -> None:
    """Make the runtime directory, or see that no other user can put sockets there."""
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


def _listen(removing: ExitStack, path: Path) -> socket.socket:
    try:
        with _alone_in(path.parent):
            _remove_stale(path)
            listener = removing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            before = os.umask(0o177)
            try:
                listener.bind(os.fspath(path))
            finally:
                os.umask(before)
            removing.callback(_remove, path, os.lstat(path))
            listener.listen(_BACKLOG)
    except OSError as error:
        message = f"cannot listen at {path}"
        if error.errno is None:  # Python itself says that the path is too long
            raise DeviceError(f"{message}: {error}", hint="a path has at most 107 bytes") from error
        raise device_error(error, message) from error
    return listener


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep out other owners that look, at the same time, whether a socket is stale."""
    import fcntl  # noqa: PLC0415  absent on Windows

    fd = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_stale(path: Path) -> None:
    """Remove the socket, or the link to one, of an owner that is dead; nothing else (O4)."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not (stat.S_ISSOCK(found.st_mode) or stat.S_ISLNK(found.st_mode)):
        raise DeviceError(f"{path} is there, and is not a socket", hint="name another --socket")
    if is_alive(path):
        raise DeviceBusyError(f"a process listens at {path} [O4]", hint="name another --socket")
    _log.info("replaced %s, which a dead owner left", path)
    path.unlink()


def is_alive(path: Path) -> bool:
    """Say whether a process listens at a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except BlockingIOError:
            return True  # its queue is full
        except OSError:
            return False
    return True


def _link(removing: ExitStack, entry: Path, path: Path) -> None:
    """Make the entry of an image a link to the socket that was asked for (O3).

    Whatever has that name is stale: this process has the image.
    """
    try:
        with _alone_in(entry.parent):
            entry.unlink(missing_ok=True)
            entry.symlink_to(path.absolute())
            removing.callback(_remove, entry, os.lstat(entry))
    except OSError as error:
        raise device_error(error, f"cannot make {entry}") from error


def _remove(path: Path, made: os.stat_result) -> None:
    """Remove what was made, unless another one has its name by now."""
    try:
        if os.path.samestat(os.lstat(path), made):
            path.unlink()
    except OSError as error:
        _log.debug("%s is gone already: %s", path, error)
