"""HTTP/1.1 with one client: a request, its reply, and the next one (O10 to O12)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from blobstore.owner.problems import RefusedError
from blobstore.owner.receiving import Receiving
from blobstore.owner.replies import END_OF_BODY, chunk, head_of, sends_body
from blobstore.owner.resources import Reply, Request, reply_of
from formats.errors import StorageError
from formats.logs import LateLogger

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable

    from blobstore.owner.budget import Budget
    from blobstore.owner.limits import Limits
    from blobstore.owner.routes import Routes

_log = LateLogger(__name__)

#: Read and dropped after a refusal, so that a client that is still sending sees the reply.
_DROPPED: Final = 64 << 20
_PIECE: Final = 64 << 10


class Connection:
    """One client. `serve` returns when the connection is over.

    Attributes:
        upgrade: What goes on with the connection then; None if nothing does.
    """

    def __init__(self, sock: socket.socket, routes: Routes, limits: Limits, budget: Budget) -> None:
        """Serve ``sock``, which stays the caller's to close; bodies come out of ``budget``."""
        self.upgrade: Callable[[socket.socket], None] | None = None
        self._budget = budget
        self._socket = sock
        self._routes = routes
        self._limits = limits
        self._receiving = Receiving(sock, limits)
        self._is_answered = False

    @property
    def idle_since(self) -> float | None:
        """When it began to wait for the head of a request; None while there is one."""
        return self._receiving.idle_since

    def serve(self) -> None:
        """Answer requests until the client ends, breaks the rules, or is silent for too long."""
        try:
            while self._serve_one():
                pass
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
        self._is_answered = False
        try:
            head = self._receiving.head()
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
                    self._write(head_of(reply))
                    self.upgrade = reply.upgrade
                    return False
                last = _is_last(head)
                return self._send(reply, last=last) and not last
        except (RefusedError, StorageError, ValueError) as error:
            self._end(reply_of(error))
            return False

    def _body_size(self, head: Request, limit: int) -> int | None:
        """Return how large a body will be; None if nothing says it."""
        size = int(head.headers.get("content-length", 0))
        if size > limit:
            raise self._routes.too_large(head, limit, size)
        return None if "transfer-encoding" in head.headers else size

    def _receive_body(self, head: Request, limit: int, size: int | None) -> bytes | bytearray:
        """Return the body of a request, which is not larger than it may be."""
        if size is not None:
            return self._receiving.sized_body(size) if size else b""
        return self._receiving.chunked_body(
            limit, lambda: self._routes.too_large(head, limit, None)
        )

    def _send(self, reply: Reply, *, last: bool = False) -> bool:
        """Send a reply; say whether all of it was there to be sent."""
        head, body = head_of(reply, last=last), reply.body
        self._is_answered = True
        if not isinstance(body, bytes):
            return self._send_pieces(head, body)
        self._write(head, body if sends_body(reply) and not self._receiving.is_head else b"")
        return True

    def _send_pieces(self, head: bytes, pieces: Iterable[bytes]) -> bool:
        try:
            self._write(head)
            if not self._receiving.is_head:
                for piece in pieces:
                    if piece:
                        self._write(chunk(piece))
                self._write(END_OF_BODY)
        except (StorageError, ValueError) as error:
            # The client sees that the body has no end.
            _log.error("a reply ends early: %s", error)
            return False
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        return True

    def _write(self, head: bytes, body: bytes = b"") -> None:
        # For all of it together, however the client takes it.
        self._socket.settimeout(self._limits.sending)
        if not body:
            self._socket.sendall(head)
            return
        sent = self._socket.sendmsg((head, body))
        if sent < len(head):
            self._socket.sendall(head[sent:] + body)
        elif sent < len(head) + len(body):
            self._socket.sendall(memoryview(body)[sent - len(head) :])

    def _end(self, reply: Reply) -> None:
        """Answer, and take no more requests; see that the client gets the answer."""
        if self._is_answered:
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


def _is_last(head: Request) -> bool:
    """Say whether the client sends no request after this one (RFC 9112, 9.3)."""
    asked = head.headers.get("connection", "")
    return "close" in (option.strip().lower() for option in asked.split(",")) if asked else False
