"""Who is at the other end of a connection."""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid


class Peer(NamedTuple):
    """A process as it was when it connected, or when it began to listen."""

    process: int
    user: int
    group: int


def peer_credentials(sock: socket.socket) -> Peer | None:
    """Return process, user and group of the other end, where the system tells."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None or sock.family != socket.AF_UNIX:
        return None
    found = sock.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    return Peer(*_CREDENTIALS.unpack(found))


def describe_peer(sock: socket.socket) -> str:
    """Say who is at the other end, for the log."""
    try:
        if sock.family != socket.AF_UNIX:
            return f"a client at {sock.getpeername()[0]}"
        found = peer_credentials(sock)
    except OSError:
        return "a client that has gone"
    if found is None:
        return "a process that the system does not name"
    return f"process {found.process} of user {found.user}, group {found.group}"
