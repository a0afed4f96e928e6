"""Replies as the bytes that HTTP/1.1 has for them (RFC 9112).

What comes from clients is h11's to judge. What is sent is our own: it needs no checks, and they
would take longer than all the rest of sending.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from blobstore.owner.resources import Reply

_BEGINNINGS: Final = {
    int(status): f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus
}
#: That have no body, whatever their headers say.
_BARE: Final = frozenset({101, 204, 304})
#: What each reply has: nothing of it is kept by programs between us and the client.
_EACH: Final = "cache-control: no-store\r\n"
END_OF_BODY: Final = b"0\r\n\r\n"


def head_of(reply: Reply, *, last: bool = False) -> bytes:
    """Return the head of a reply, which says how long its body is.

    Args:
        reply: Its headers have no line breaks.
        last: Whether the connection ends after it.
    """
    head = _BEGINNINGS[reply.status]
    for name, value in reply.headers:
        head += f"{name}: {value}\r\n"
    head += _EACH
    if not isinstance(reply.body, bytes):
        head += "transfer-encoding: chunked\r\n"
    elif sends_body(reply):
        head += f"content-length: {len(reply.body)}\r\n"
    if last:
        head += "connection: close\r\n"
    return (head + "\r\n").encode()


def sends_body(reply: Reply) -> bool:
    """Say whether there is a body, of 0 bytes or more."""
    return reply.status not in _BARE


def chunk(piece: bytes) -> bytes:
    """Return a piece of a body of which nothing says how long it is; no pieces are empty."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)
