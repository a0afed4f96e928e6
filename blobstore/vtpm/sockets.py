"""The sockets of the two channels (V57, V58)."""

from __future__ import annotations

import errno
import os
import socket
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from formats.errors import DeviceBusyError, DeviceError
from formats.logs import LateLogger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


_log = LateLogger(__name__)

_BACKLOG: Final = 8
#: Seconds to wait after a connection that could not be accepted.
_PAUSE: Final = 0.1
_MOST_DESCRIPTORS: Final = 8


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


def listener(channel: Channel) -> socket.socket | None:
    """Return a socket that listens, or None if the channel is a connection already.

    Raises:
        DeviceBusyError: A process listens there.
        DeviceError: The socket cannot be made.
    """
    try:
        if channel.path is not None:
            return _unix_listener(channel.path, channel)
        if channel.port is not None:
            return _tcp_listener(channel.port, channel)
        if channel.listening is not None:
            return socket.socket(fileno=channel.listening)
    except OSError as error:
        where: object = channel.path
        if channel.port is not None:
            where = f"port {channel.port} of {channel.address}"
        elif channel.listening is not None:
            where = f"descriptor {channel.listening}"
        kind = DeviceBusyError if error.errno == errno.EADDRINUSE else DeviceError
        raise kind(f"cannot listen at {where}: {error.strerror or error}") from error
    return None


def connection(descriptor: int) -> socket.socket:
    """Return the socket of a descriptor, which it takes.

    Raises:
        DeviceError: It is not a socket.
    """
    try:
        return socket.socket(fileno=descriptor)
    except OSError as error:
        raise DeviceError(f"descriptor {descriptor} is not a socket: {error.strerror}") from error


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


def remove(channel: Channel | None) -> None:
    """Remove the name of a Unix socket."""
    if channel is not None and channel.path is not None:
        with suppress(OSError):
            channel.path.unlink()


def _unix_listener(path: Path, channel: Channel) -> socket.socket:
    _remove_left_over(path)
    listening = socket.socket(socket.AF_UNIX)
    try:
        mask = os.umask(0o177)  # so that no other user connects before the mode is set
        try:
            listening.bind(os.fspath(path))
        finally:
            os.umask(mask)
        if channel.owner != (-1, -1):
            os.chown(path, *channel.owner)
        path.chmod(channel.mode)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _remove_left_over(path: Path) -> None:
    """Remove a socket on which no process listens any more, and nothing else."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as client:
        if client.connect_ex(os.fspath(path)) == errno.ECONNREFUSED:
            path.unlink()


def _tcp_listener(port: int, channel: Channel) -> socket.socket:
    host = channel.address
    if channel.interface is not None:
        host = f"{host}%{channel.interface}"
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening
