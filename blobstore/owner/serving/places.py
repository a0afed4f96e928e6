"""The sockets of an owner, whichever way it got them (O126, O127, O136)."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from blobstore.sockets.addresses import TcpAddress, UnixAddress
from blobstore.sockets.inherited import inherited_descriptors
from blobstore.sockets.listening import Listener, listen
from formats.errors import ArgumentError, DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from blobstore.sockets.addresses import Address


class Places:
    """Makes listening sockets, or finds them among those that this process was given."""

    def __init__(self, inherited: Mapping[str, int] | None = None) -> None:
        """Use these descriptors, by name; None takes those of systemd (O127).

        Raises:
            ArgumentError: What systemd says contradicts itself.
        """
        self._inherited = dict(inherited_descriptors() if inherited is None else inherited)
        self._offered: list[tuple[str, Listener]] = []

    def offer(self, listeners: Iterable[tuple[str, Listener]]) -> None:
        """Have these used where they are wanted: another process listened there (O136)."""
        self._offered.extend(listeners)

    def has(self, name: str) -> bool:
        """Say whether there is a descriptor with this name."""
        return name in self._inherited

    def require_known(self, names: Iterable[str]) -> None:
        """Refuse descriptors that no front wants.

        Raises:
            ArgumentError: One has another name.
        """
        unknown = sorted(self._inherited.keys() - set(names))
        if unknown:
            raise ArgumentError(
                f"no front wants the descriptor {unknown[0]!r} [O127]: FileDescriptorName="
                f" in the socket unit must be one of {', '.join(sorted(names))}"
            )

    def take(self, name: str, address: Address | None) -> Listener:
        """Return the socket with this name, which is the caller's to close.

        Raises:
            DeviceBusyError: A process listens there.
            DeviceError: There is none, and it cannot be made.
            ArgumentError: The descriptor is not a socket of the right kind.
        """
        if name in self._inherited:
            found = self._inherited.pop(name)
            _require_listening(name, found)
            return adopt(found)
        for offered, listener in self._offered:
            wanted = offered == name if address is None else _is_at(listener, address)
            if wanted:
                self._offered.remove((offered, listener))
                if isinstance(address, UnixAddress):
                    set_mode(address)
                return listener
        if address is None:
            raise DeviceError(
                f"{name}: there is no address to listen at, and no descriptor of that name [O127]",
                hint="say where it listens, or set FileDescriptorName= in a socket unit",
            )
        return listen(address)

    def close(self) -> None:
        """Close what was not taken. The process that made it removes its name."""
        for _, listener in self._offered:
            listener.close()
        self._offered.clear()
        for descriptor in self._inherited.values():
            os.close(descriptor)
        self._inherited.clear()


def place_of(address: Address) -> str:
    """Return where an address is; the same for all ways to write it."""
    if isinstance(address, UnixAddress):
        return str(address.path.absolute())
    if isinstance(address, TcpAddress) and address.host == "localhost":
        return str(TcpAddress("127.0.0.1", address.port))
    return str(address)


def _is_at(listener: Listener, address: Address) -> bool:
    return place_of(listener.address) == place_of(address)


def path_of_socket(sock: socket.socket) -> Path | None:
    """Return the path of a Unix socket, if it has one."""
    found = sock.getsockname() if sock.family == socket.AF_UNIX else b""
    return Path(found) if isinstance(found, str) and found else None


def adopt(descriptor: int) -> Listener:
    """Return a socket that another process opened and passed on; its name stays at the end.

    Args:
        descriptor: Is taken over.

    Raises:
        OSError: It is not a socket.
    """
    sock = socket.socket(fileno=descriptor)
    path = path_of_socket(sock)
    if path is None:
        host, port = sock.getsockname()[:2]
        return Listener(TcpAddress(host, port), sock)
    return Listener(UnixAddress(path.absolute()), sock)


def set_mode(address: UnixAddress) -> None:
    """Give a socket that is there its mode and group.

    Raises:
        DeviceError: It cannot be done.
    """
    try:
        if address.group != -1:
            os.chown(address.path, -1, address.group)
        address.path.chmod(address.mode)
    except OSError as error:
        raise DeviceError(f"cannot set the mode of {address}: {error.strerror}") from error


def _require_listening(name: str, descriptor: int) -> None:
    try:
        with socket.socket(fileno=os.dup(descriptor)) as sock:
            listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            kind = sock.type
    except OSError:
        listens, kind = 0, socket.SOCK_STREAM
    if not (listens and kind == socket.SOCK_STREAM):
        raise ArgumentError(f"descriptor {name!r} is not a stream socket that listens [O127]")
