"""Where the server listens (N28, N36)."""

from __future__ import annotations

import errno
import ipaddress
import os
import re
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from formats.errors import ArgumentError, DeviceBusyError, DeviceError

if TYPE_CHECKING:
    from blobstore.nbd.credentials import NbdTls

#: A Unix socket's path, or host and port of TCP.
Address = Path | tuple[str, int]

_BACKLOG: Final = 64
_TCP: Final = re.compile(r"(?:\[(?P<v6>[^\]/]*)\]|(?P<v4>[^:/]*)):(?P<port>[0-9]+)")
_CREDENTIALS: Final = struct.Struct("3i")


def parse_nbd_address(text: str, tls: NbdTls | None = None) -> Address:
    """Return the address that a text names: ``HOST:PORT``, ``[HOST]:PORT``, or a path.

    Args:
        text: The address.
        tls: What the server there will be given; other machines may reach it if that
            identifies clients (N36).

    Raises:
        ArgumentError: It is not one to listen at.
    """
    found = _TCP.fullmatch(text)
    if found is None:
        if not text or "\0" in text:
            raise ArgumentError(f"{text!r} is not a path of a socket")
        return Path(text)
    address = found["v6"] or found["v4"] or "localhost", int(found["port"])
    require_address(address, tls)
    return address


def require_address(address: tuple[str, int], tls: NbdTls | None = None) -> None:
    """Refuse to be reachable from other machines unless every client is identified.

    Raises:
        ArgumentError: The address is not of the loopback interface, or not an address.
    """
    host, port = address
    try:
        found = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        found = None
    if found is None or not (found.is_loopback or (tls is not None and tls.identifies_clients)):
        raise ArgumentError(
            f"NBD is not served at {host!r}: without TLS that identifies its clients, only at"
            " loopback addresses, such as 127.0.0.1, and on Unix sockets [N28, N36]"
        )
    if not 0 <= port < 1 << 16:
        raise ArgumentError(f"{port} is not a port")


def shown(address: Address) -> str:
    """Return an address as `parse_nbd_address` reads it."""
    if isinstance(address, Path):
        return str(address)
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(address: Address) -> socket.socket:
    """Return a socket that listens there.

    Raises:
        DeviceBusyError: A process listens there.
        DeviceError: The socket cannot be made.
    """
    try:
        return _listen_unix(address) if isinstance(address, Path) else _listen_tcp(*address)
    except OSError as error:
        where = address if isinstance(address, Path) else f"port {address[1]} of {address[0]}"
        kind = DeviceBusyError if error.errno == errno.EADDRINUSE else DeviceError
        # Paths that are too long have no number, and a text of Python's own.
        raise kind(f"cannot listen at {where}: {error.strerror or error}") from error


def peer(client: socket.socket) -> str:
    """Return who is at the other end, for the log."""
    try:
        if client.family == socket.AF_UNIX and hasattr(socket, "SO_PEERCRED"):
            size = _CREDENTIALS.size
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            process, user, _ = _CREDENTIALS.unpack(credentials)
            return f"process {process} of user {user}"
        return f"a client at {client.getpeername()[0]}"
    except OSError:
        return "a client that has gone"


def _listen_unix(path: Path) -> socket.socket:
    _remove_left_over(path)
    listening = socket.socket(socket.AF_UNIX)
    try:
        # So that no other user connects before the mode is set; where the system does
        # not take the mode of a socket without a name, only afterwards.
        with suppress(OSError):
            os.fchmod(listening.fileno(), 0o600)
        listening.bind(os.fspath(path))
        path.chmod(0o600)
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _remove_left_over(path: Path) -> None:
    """Remove a socket on which no process listens any more, and nothing else."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as client:
        if client.connect_ex(os.fspath(path)) == errno.ECONNREFUSED:
            path.unlink()


def _listen_tcp(host: str, port: int) -> socket.socket:
    if host == "localhost":
        host = "127.0.0.1"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening
