"""Requests of one client, out of the bytes that it sends, with limits on both (O10 to O12)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NoReturn

import h11

from blobstore.owner.heads import KnownHeads
from blobstore.owner.problems import RefusedError
from blobstore.owner.resources import Request
from blobstore.sockets.peers import peer_credentials

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from blobstore.owner.limits import Limits

_PIECE: Final = 64 << 10
#: Received at once while a head is expected: not much of a body, which is copied once more then.
_HEAD_PIECE: Final = 4 << 10
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Receiving:
    """Receives requests: `head`, then `sized_body` or `chunked_body`, and so on.

    h11 judges what is HTTP, in a new connection for each request: what was sent before says
    nothing about it. A body of known size does not go through h11, which would copy it three times.

    Attributes:
        idle_since: When it began to wait for the head of a request; None while there is one.
        is_head: Whether the method of the last request is HEAD.
    """

    def __init__(self, sock: socket.socket, limits: Limits) -> None:
        """Receive from ``sock``, which stays the caller's."""
        self.idle_since: float | None = time.monotonic()
        self.is_head = False
        self._socket = sock
        self._peer = peer_credentials(sock)
        self._limits = limits
        self._deadline = 0.0
        # What came after the last request, or after the head of this one.
        self._came = b""
        self._known: KnownHeads[tuple[str, str]] = KnownHeads()
        # What reads the body of this request, if its head was not known.
        self._http: h11.Connection | None = None

    def head(self) -> Request | None:
        """Return the head of the next request, or None if there will be none.

        Raises:
            RefusedError: It is not HTTP/1.1, or too large.
            OSError: It does not come in time, or the connection broke.
        """
        limits = self._limits
        self.idle_since = time.monotonic()
        if not self._came:
            self._deadline = self.idle_since + limits.idle
            self._came = self._receive(_HEAD_PIECE)
            if not self._came:
                return None
        self._deadline = time.monotonic() + limits.receiving
        known = self._known.find(self._came)
        if known is None:
            return self._new_head()
        self.idle_since = None
        self._http = None
        self._came = self._came[known.size :]
        method, target = known.start
        self.is_head = method == "HEAD"
        return Request(method, target, known.headers, peer=self._peer)

    def sized_body(self, size: int) -> bytes | bytearray:
        """Return a body of known size; errors as `head`."""
        self._begin_body()
        came = self._came
        self._came = came[size:]
        if len(came) >= size:
            return came[:size]
        body = bytearray(size)  # takes memory as it is filled
        count = len(came)
        body[:count] = came
        with memoryview(body) as view:
            while count < size:
                self._socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
                received = self._socket.recv_into(view[count:])
                if not received:
                    _refuse_half()
                count += received
        return body

    def chunked_body(self, limit: int, too_large: Callable[[], Exception]) -> bytes:
        """Return a body whose size its end shows; errors as `head`.

        Args:
            limit: Bytes that it may have.
            too_large: Returns the error for more than that.
        """
        self._begin_body()
        http = self._http
        assert http is not None, "such a head is not remembered"
        body = bytearray()
        try:
            while not isinstance(event := http.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    http.receive_data(self._receive(_PIECE))
                elif isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > limit:
                        raise too_large()
                else:
                    _refuse_half()
        except h11.RemoteProtocolError as error:
            raise RefusedError(error.error_status_hint, str(error), "O12") from error
        self._came = http.trailing_data[0]
        return bytes(body)

    def _new_head(self) -> Request | None:
        """Have h11 read a head of which the first bytes came."""
        http = self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head)
        came = self._came
        http.receive_data(came)
        try:
            while (event := http.next_event()) is h11.NEED_DATA:
                piece = self._receive(_HEAD_PIECE)
                http.receive_data(piece)
                came += piece
        except h11.RemoteProtocolError as error:
            # It stays idle: it gives way while what it still sends is dropped (O73).
            raise RefusedError(error.error_status_hint, str(error), "O12") from error
        self.idle_since = None
        if not isinstance(event, h11.Request):
            return None
        self._came = http.trailing_data[0]
        request = self._checked(event)
        if not {"transfer-encoding", "expect"} & request.headers.keys():
            head = came[: len(came) - len(self._came)]
            self._known.remember(head, (request.method, request.target), request.headers)
        return request

    def _checked(self, event: h11.Request) -> Request:
        """Return the head of a request, if it is one of HTTP/1.1 and not too large."""
        self.is_head = event.method == b"HEAD"
        headers: dict[str, str] = {}
        for name, value in event.headers:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            # What comes several times is a list (RFC 9110, 5.3).
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        size = len(event.target) + sum(len(name) + len(value) for name, value in event.headers)
        if size > self._limits.head:
            # h11 has this limit for heads that arrive in pieces only.
            raise RefusedError(431, f"the head has more than {self._limits.head} bytes", "O11")
        if event.http_version != b"1.1":
            raise RefusedError(505, "this is not HTTP/1.1", "O10")
        method, target = event.method.decode("latin-1"), event.target.decode("latin-1")
        return Request(method, target, headers, peer=self._peer)

    def _begin_body(self) -> None:
        """Have as much time for a body as for a head, and ask a client for it that waits."""
        self._deadline = time.monotonic() + self._limits.receiving
        if self._http is not None and self._http.they_are_waiting_for_100_continue:
            self._socket.settimeout(self._limits.sending)
            self._socket.sendall(_CONTINUE)

    def _receive(self, most: int) -> bytes:
        self._socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
        return self._socket.recv(most)


def _refuse_half() -> NoReturn:
    raise RefusedError(400, "the request ends before its body does", "O12")
