"""HTTP/1.1 with one client: bytes in, bytes out, limits on both (O10 to O12)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import h11

from blobstore.owner.problems import RefusedError
from blobstore.owner.resources import Reply, Request, reply_of
from blobstore.sockets.peers import peer_credentials
from formats.errors import StorageError
from formats.logs import LateLogger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from blobstore.owner.budget import Budget
    from blobstore.owner.routes import Routes

_log = LateLogger(__name__)

_PIECE: Final = 64 << 10
#: Received at once while a head is expected: not much of a body, which h11 would copy.
_HEAD_PIECE: Final = 4 << 10
#: Read and dropped after a refusal, so that a client that is still sending sees the reply.
_DROPPED: Final = 64 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a client may ask of the owner (O11). Sizes in bytes, times in seconds.

    Attributes:
        connections: At the same time.
        head: Of a request, its headers included.
        idle: Waited for a request to begin.
        receiving: Waited for the rest of a head, and as long again for a body.
        sending: Waited for a client to take a reply.
        draining: Waited for what a refused client still sends.
        bodies: Bytes of all bodies, of requests and replies, that are in memory at the same time.
        waiting: Waited for a part of these.
    """

    connections: int = 64
    head: int = 16 << 10
    idle: float = 60
    receiving: float = 30
    sending: float = 30
    draining: float = 2
    bodies: int = 128 << 20
    waiting: float = 10


class Connection:
    """One client. `serve` returns when the connection is over.

    Attributes:
        upgrade: What goes on with the connection then; None if nothing does.
        idle_since: When it began to wait for the head of a request; None while there is one.
    """

    def __init__(self, sock: socket.socket, routes: Routes, limits: Limits, budget: Budget) -> None:
        """Serve ``sock``, which stays the caller's to close; bodies come out of ``budget``."""
        self.upgrade: Callable[[socket.socket], None] | None = None
        self.idle_since: float | None = time.monotonic()
        self._budget = budget
        self._socket = sock
        self._routes = routes
        self._limits = limits
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head)
        self._deadline = 0.0
        self._is_head = False
        # What came after a body that did not go through h11; None if none did.
        self._rest: bytes | None = None

    def serve(self) -> None:
        """Answer requests until the client ends, breaks the rules, or is silent for too long."""
        try:
            while self._serve_one():
                self._begin_next()
        except OSError as error:  # a time-out is one
            _log.debug("a connection ended: %s", error)

    def refuse(self, error: RefusedError) -> None:
        """Answer without a request, and end the connection."""
        try:
            self._end(reply_of(error))
        except OSError as failure:
            _log.debug("a connection ended: %s", failure)

    def _serve_one(self) -> bool:
        """Answer one request; say whether there may be another one."""
        try:
            head = self._receive_head()
            if head is None:
                return False
            limit = self._routes.body_limit(head)
            size = self._body_size(head, limit)
            expected = limit if size is None else size
            with self._budget.taken(expected + self._routes.reply_size(head)):
                request = head._replace(body=self._receive_body(head, limit, size))
                reply = self._routes.answer(request)
                del request
                if reply.upgrade is not None:
                    self._write(
                        h11.InformationalResponse(
                            status_code=reply.status, headers=list(reply.headers)
                        )
                    )
                    self.upgrade = reply.upgrade
                    return False
                complete = self._send(reply)
        except h11.RemoteProtocolError as error:
            self._end(reply_of(RefusedError(error.error_status_hint, str(error), "O12")))
            return False
        except (RefusedError, StorageError, ValueError) as error:
            self._end(reply_of(error))
            return False
        taken = self._http.their_state is h11.DONE or self._rest is not None
        return complete and self._http.our_state is h11.DONE and taken

    def _begin_next(self) -> None:
        """Expect another request on this connection."""
        if self._rest is None:
            self._http.start_next_cycle()
            return
        # h11 still waits for the body of this one.
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head)
        if self._rest:
            self._http.receive_data(self._rest)
        self._rest = None

    # --------------------------------------------------------- receiving

    def _receive_head(self) -> Request | None:
        """Return the head of the next request, or None if there will be none."""
        began, limits = time.monotonic(), self._limits
        self.idle_since = began
        is_begun = bool(self._http.trailing_data[0])  # sent without waiting for the last reply
        self._deadline = began + (limits.receiving if is_begun else limits.idle)
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(self._receive(_HEAD_PIECE))
            if not is_begun:
                is_begun = True
                self._deadline = time.monotonic() + limits.receiving
        self.idle_since = None
        self._is_head = isinstance(event, h11.Request) and event.method == b"HEAD"
        if not isinstance(event, h11.Request):
            return None
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
        return Request(method, target, headers, peer=peer_credentials(self._socket))

    def _body_size(self, head: Request, limit: int) -> int | None:
        """Return how large a body will be; None if nothing says it."""
        size = int(head.headers.get("content-length", 0))
        if size > limit:
            raise self._routes.too_large(head, limit, size)
        return None if "transfer-encoding" in head.headers else size

    def _receive_body(self, head: Request, limit: int, size: int | None) -> bytes:
        """Return the body of a request, which is not larger than it may be."""
        self._deadline = time.monotonic() + self._limits.receiving
        if size:
            return self._receive_sized(size)
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    self._write(h11.InformationalResponse(status_code=100, headers=[]))
                self._http.receive_data(self._receive(_PIECE))
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > limit:
                    raise self._routes.too_large(head, limit, size)
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            else:
                raise RefusedError(400, "the request ends before its body does", "O12")

    def _receive_sized(self, size: int) -> bytes:
        """Return a body of known size, straight from the socket: h11 copies it three times."""
        if self._http.they_are_waiting_for_100_continue:
            self._write(h11.InformationalResponse(status_code=100, headers=[]))
        came, _ = self._http.trailing_data
        body = bytearray(size)  # takes memory as it is filled
        count = min(len(came), size)
        body[:count], self._rest = came[:count], came[count:]
        with memoryview(body) as view:
            while count < size:
                self._socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
                received = self._socket.recv_into(view[count:])
                if not received:
                    raise RefusedError(400, "the request ends before its body does", "O12")
                count += received
        return bytes(body)

    def _receive(self, most: int) -> bytes:
        self._socket.settimeout(max(self._deadline - time.monotonic(), 0.001))
        return self._socket.recv(most)

    # ----------------------------------------------------------- sending

    def _send(self, reply: Reply, *, last: bool = False) -> bool:
        """Send a reply; say whether all of it was there to be sent."""
        headers = [*reply.headers, ("cache-control", "no-store")]
        body = reply.body
        if not isinstance(body, bytes):
            headers.append(("transfer-encoding", "chunked"))
        elif reply.status not in (204, 304):
            headers.append(("content-length", str(len(body))))
        if last:
            headers.append(("connection", "close"))
        response = h11.Response(
            status_code=reply.status,
            headers=[(name.encode(), value.encode()) for name, value in headers],
            reason=HTTPStatus(reply.status).phrase,
        )
        if not isinstance(body, bytes):
            return self._send_pieces(response, body)
        if self._is_head or not body:
            self._write(response, h11.EndOfMessage())
        else:
            self._write(response, h11.Data(data=body), h11.EndOfMessage())
        return True

    def _send_pieces(self, response: h11.Response, pieces: Iterable[bytes]) -> bool:
        try:
            self._write(response)
            for piece in () if self._is_head else pieces:
                self._write(h11.Data(data=piece))
            self._write(h11.EndOfMessage())
        except (StorageError, ValueError) as error:
            # The client sees that the body has no end.
            _log.error("a reply ends early: %s", error)
            return False
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        return True

    def _write(self, *events: h11.Event) -> None:
        # For all of it together, however the client takes it.
        self._socket.settimeout(self._limits.sending)
        pieces: list[bytes] = []
        for event in events:
            if pieces and isinstance(event, h11.EndOfMessage):
                self._socket.sendall(b"".join(pieces))  # h11 ends it while the client reads
                pieces = []
            piece = self._http.send(event)
            if piece:
                pieces.append(piece)
        if pieces:
            self._socket.sendall(b"".join(pieces))

    def _end(self, reply: Reply) -> None:
        """Answer, and take no more requests; see that the client gets the answer."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        self._send(reply, last=True)
        self._socket.shutdown(1)  # SHUT_WR
        deadline = time.monotonic() + self._limits.draining
        dropped = 0
        while dropped < _DROPPED and time.monotonic() < deadline:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            piece = self._socket.recv(_PIECE)
            if not piece:
                return
            dropped += len(piece)
