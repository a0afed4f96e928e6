"""The sockets of the two channels (V57, V58)."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blobstore.sockets.addresses import InheritedAddress, TcpAddress, UnixAddress
from blobstore.sockets.listening import listen
from formats.errors import DeviceError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from blobstore.sockets.addresses import Address
    from blobstore.sockets.listening import Listener


_log = LateLogger(__name__)

_BACKLOG: Final = 8
#: Seconds to wait after a connection that could not be accepted.
_PAUSE: Final = 0.1
_MOST_DESCRIPTORS: Final = 8
_PIECE: Final = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """Where a channel is; one of path, port, listening or connected descriptor.

    Attributes:
        path: Of a Unix socket to listen at.
        mode: Of that socket.
        owner: User and group of that socket; -1 leaves one as it is.
        port: Of TCP, to listen at.
        address: To listen at.
        interface: Of a link-local IPv6 address.
        listening: A descriptor that listens.
        connected: A descriptor that is a connection.
        disconnect: Close a connection after each response.
        terminate: End when a connection ends.
    """

    path: Path | None = None
    mode: int = 0o770
    owner: tuple[int, int] = (-1, -1)
    port: int | None = None
    address: str = "127.0.0.1"
    interface: str | None = None
    listening: int | None = None
    connected: int | None = None
    disconnect: bool = False
    terminate: bool = False


def address_of(channel: Channel) -> Address | None:
    """Return where a channel listens; None if it is a connection already."""
    if channel.path is not None:
        return UnixAddress(channel.path, channel.mode, *channel.owner)
    if channel.port is not None:
        interface = "" if channel.interface is None else f"%{channel.interface}"
        return TcpAddress(channel.address + interface, channel.port)
    return None if channel.listening is None else InheritedAddress(channel.listening)


def listener(channel: Channel) -> Listener | None:
    """Listen, or return None if the channel is a connection already.

    Raises:
        DeviceBusyError: A process listens there.
        DeviceError: The socket cannot be made.
    """
    address = address_of(channel)
    return None if address is None else listen(address, backlog=_BACKLOG)


def connection(descriptor: int) -> socket.socket:
    """Return the socket of a descriptor, which it takes; a terminal gets one (V109).

    Raises:
        DeviceError: It is neither a socket nor a character device.
    """
    try:
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            return _connected_to(descriptor)
        return socket.socket(fileno=descriptor)
    except OSError as error:
        raise DeviceError(f"descriptor {descriptor} is not a socket: {error.strerror}") from error


def _connected_to(device: int) -> socket.socket:
    """Return one end of a connection whose other end is copied to and from a device."""
    ours, theirs = socket.socketpair()

    def copy_out() -> None:
        with suppress(OSError):
            while piece := theirs.recv(_PIECE):
                view = memoryview(piece)
                while view:
                    view = view[os.write(device, view) :]

    def copy_in() -> None:
        with suppress(OSError):
            while piece := os.read(device, _PIECE):
                theirs.sendall(piece)
        with suppress(OSError):
            theirs.shutdown(socket.SHUT_WR)

    for work in (copy_out, copy_in):
        threading.Thread(target=work, name="tpm-device", daemon=True).start()
    return ours


def accept(listening: socket.socket) -> socket.socket | None:
    """Return the next connection; None if there is none after all."""
    try:
        return listening.accept()[0]
    except OSError as error:
        _log.warning("a connection cannot be accepted: %s", error.strerror)
        time.sleep(_PAUSE)  # where there are no descriptors left, it would be tried at once
        return None


def receive(client: socket.socket, size: int) -> bytes:
    """Return what came, up to so many bytes; nothing at the end of the connection."""
    try:
        return client.recv(size)
    except OSError as error:
        _log.warning("a connection broke: %s", error.strerror)
        return b""


def receive_with_descriptor(client: socket.socket, size: int) -> tuple[bytes, int | None]:
    """Return what came, and the first descriptor that came with it; the caller closes it."""
    try:
        piece, descriptors, _, _ = socket.recv_fds(client, size, _MOST_DESCRIPTORS)
    except OSError as error:
        _log.warning("a connection broke: %s", error.strerror)
        return b"", None
    for unwanted in descriptors[1:]:
        os.close(unwanted)
    return piece, descriptors[0] if descriptors else None


def send(client: socket.socket, data: bytes, ended: Callable[[], bool] = lambda: False) -> bool:
    """Send all of it; return whether the client was there to take it.

    Args:
        client: Where to.
        data: What.
        ended: Asked whenever the client takes nothing for as long as its timeout is:
            whether to give up.
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[client.send(rest) :]
        except OSError as error:
            if isinstance(error, TimeoutError) and not ended():
                continue
            _log.warning("a client does not take an answer: %s", error.strerror or error)
            return False
    return True
