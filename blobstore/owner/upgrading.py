"""Asking an owner to make a connection something else than HTTP (O136, O145)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11

from formats.errors import DeviceError, FormatError

if TYPE_CHECKING:
    import socket

_MOST_BYTES: Final = 64 << 10


def upgrade(sock: socket.socket, target: str, protocol: str) -> bytes:
    """Make HTTP into messages, on a socket that is connected to an owner.

    Args:
        sock: The connection.
        target: What is asked for by POST.
        protocol: What the connection is to become.

    Returns:
        What came after the reply.

    Raises:
        OSError: The connection ended, or it took too long.
        DeviceError: The owner refuses.
        FormatError: What answers breaks HTTP.
    """
    http = h11.Connection(h11.CLIENT)
    headers = [("host", "localhost"), ("upgrade", protocol), ("connection", "upgrade")]
    request = h11.Request(method="POST", target=target, headers=headers)
    sock.sendall((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
    try:
        while (event := http.next_event()) is h11.NEED_DATA:
            http.receive_data(sock.recv(_MOST_BYTES))
    except h11.RemoteProtocolError as error:
        raise FormatError(f"what listens there breaks HTTP: {error}", rule="O136") from error
    if isinstance(event, h11.Response):
        raise DeviceError(
            f"the owner does not do this: it answers with {event.status_code}",
            hint="it may be of an older version, or a part of another program: stop it first",
        )
    return http.trailing_data[0]
