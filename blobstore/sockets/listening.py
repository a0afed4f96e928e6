"""Sockets that listen, and their names in the file system (O120 to O122)."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Self

from blobstore.sockets.addresses import InheritedAddress, TcpAddress, UnixAddress
from formats.errors import DeviceBusyError, DeviceError, device_error
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from blobstore.sockets.addresses import Address

_log = LateLogger(__name__)

#: Connections that wait in the kernel while others are taken.
BACKLOG: Final = 64
#: Seconds within which another process is to have ended looking at a directory.
_PATIENCE: Final = 10.0
_PAUSE: Final = 0.01
#: The private mode that each socket has first.
_PRIVATE: Final = 0o600


class MadeFile:
    """A name in the file system that this process made, and removes."""

    def __init__(self, path: Path) -> None:
        """Be what ``path`` names now, a link itself and not its target."""
        self.path: Final = path
        self._made: Final = _identity(path)

    def remove(self) -> None:
        """Remove it, unless another file has its name by now."""
        try:
            if _identity(self.path) == self._made:
                self.path.unlink()
        except OSError as error:
            _log.debug("%s is gone already: %s", self.path, error)


def _identity(path: Path) -> tuple[int, ...]:
    """Return what tells a file from others, also from one that gets its number later."""
    found = os.lstat(path)
    return found.st_dev, found.st_ino, stat.S_IFMT(found.st_mode), found.st_mtime_ns


class Listener:
    """A socket that listens, and the name that goes with it.

    Attributes:
        address: Where.
        socket: The socket.
    """

    def __init__(self, address: Address, sock: socket.socket, name: MadeFile | None = None) -> None:
        """Own a socket, and its name if this process is to remove that."""
        self.address = address
        self.socket: Final = sock
        self._name = name

    @property
    def has_name(self) -> bool:
        """Whether a name is removed at the end."""
        return self._name is not None

    def leave_name(self) -> None:
        """Leave the name where it is at the end: another process has the socket as well."""
        self._name = None

    def take_name(self) -> None:
        """Remove the name at the end: the process that made it has passed the socket on."""
        if isinstance(self.address, UnixAddress):
            with suppress(FileNotFoundError):
                self._name = MadeFile(self.address.path)

    def close(self) -> None:
        """Stop listening and remove the name. Twice is fine."""
        # In this order: a socket that listens is not taken for stale.
        if self._name is not None:
            self._name.remove()
            self._name = None
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def listen(address: Address, *, backlog: int = BACKLOG) -> Listener:
    """Listen there. A socket at which no process listens any more is replaced.

    Args:
        address: Where; a descriptor is taken over.
        backlog: Connections that wait.

    Raises:
        DeviceBusyError: A process listens there, or something else is there.
        DeviceError: The socket cannot be made.
    """
    try:
        if isinstance(address, UnixAddress):
            return _listen_unix(address, backlog)
        if isinstance(address, TcpAddress):
            return _listen_tcp(address, backlog)
        return _inherit(address)
    except OSError as error:
        message = f"cannot listen at {_place(address)}"
        if error.errno == errno.EADDRINUSE:
            raise DeviceBusyError(f"{message}: {error.strerror}") from error
        if error.errno is None:  # Python itself says that the path is too long
            raise DeviceError(f"{message}: {error}", hint="a path has at most 107 bytes") from error
        raise device_error(error, message) from error


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Keep out other processes that look, at the same time, whether a socket is stale.

    Raises:
        DeviceBusyError: A process does not stop looking.
        OSError: There is no such directory.
    """
    import fcntl  # noqa: PLC0415  absent on Windows

    try:
        fd = os.open(directory, os.O_RDONLY)
    except PermissionError:
        # A directory that may be written to but not read cannot be locked.
        _log.debug("%s cannot be locked", directory)
        yield
        return
    try:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise DeviceBusyError(
                        f"another process keeps the directory {directory} locked [O120]",
                        hint="see with lslocks which one it is, or name another place",
                    ) from None
            time.sleep(_PAUSE)
        yield
    finally:
        os.close(fd)


def is_stale(path: Path) -> bool:
    """Say whether a socket, or a link to one, is there where no process listens (O121).

    Raises:
        OSError: It cannot be looked at; there may be nothing.
        DeviceBusyError: A process listens there.
    """
    is_link = stat.S_ISLNK(os.lstat(path).st_mode)
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return False
    except FileNotFoundError:
        return is_link
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        found = probe.connect_ex(os.fspath(path))
    # Anything else is a process that listens, whatever it thinks of this one: its queue is
    # full, it takes other connections, or it takes none of this user's.
    if found not in (errno.ECONNREFUSED, errno.ENOENT):
        raise DeviceBusyError(
            f"cannot listen at {path}: a process listens there [O121]", hint="name another socket"
        )
    return True


def _listen_unix(address: UnixAddress, backlog: int) -> Listener:
    path = address.path
    with alone_in(path.parent):
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        name = None
        try:
            _bind_privately(sock, path)
            name = MadeFile(path)
            if (address.user, address.group) != (-1, -1):
                os.chown(path, address.user, address.group, follow_symlinks=False)
            path.chmod(address.mode)
            sock.listen(backlog)
        except BaseException:
            if name is not None:
                name.remove()
            sock.close()
            raise
    return Listener(address, sock, name)


def _remove_stale(path: Path) -> None:
    try:
        if not is_stale(path):
            raise DeviceBusyError(
                f"cannot listen at {path}: it is there, and is not a socket [O121]",
                hint="name another socket",
            )
    except FileNotFoundError:
        return
    _log.info("replaced %s, which a dead process left", path)
    path.unlink()


def _bind_privately(sock: socket.socket, path: Path) -> None:
    """Bind, so that the file never permits more than its user to connect.

    Linux makes it with the mode that the socket has. Where sockets have none, the mask of
    the process has to do, which other threads see, too.
    """
    try:
        os.fchmod(sock.fileno(), _PRIVATE)
    except OSError:
        mask = os.umask(0o777 & ~_PRIVATE)
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(mask)
    else:
        sock.bind(os.fspath(path))


def _listen_tcp(address: TcpAddress, backlog: int) -> Listener:
    # Not to depend on what a resolver thinks of it.
    host = "127.0.0.1" if address.host == "localhost" else address.host
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host,
            address.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE,
        )[0]
    except socket.gaierror as error:
        raise DeviceError(f"cannot listen at {_place(address)}: {error.strerror}") from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return Listener(address, sock)


def _inherit(address: InheritedAddress) -> Listener:
    return Listener(address, socket.socket(fileno=address.descriptor))


def _place(address: Address) -> str:
    if isinstance(address, TcpAddress):
        return f"port {address.port} of {address.host}"
    return str(address)
