"""HTTP/1.1 with the owner, from the client's end."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import h11

from blobstore.owner.heads import KnownHeads
from blobstore.owner.resources import LINES
from blobstore.sockets.peers import peer_credentials
from formats.errors import DeviceError, FormatError, device_error

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping
    from pathlib import Path

_PIECE: Final = 256 << 10
#: Received at once while a reply begins. Most are not longer, and more memory takes longer.
_HEAD_PIECE: Final = 16 << 10
#: Has no body, and no header that says so.
_NO_CONTENT: Final = 204
_ANY_REQUEST: Final = h11.Request(method="GET", target="/", headers=[("host", "localhost")])


class Answer(NamedTuple):
    """What came back: status, headers by their names in lower case, body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Exchange:
    """One connection to an owner, made again when it ended between two requests.

    Several threads may use it; one request is on its way at a time.

    Attributes:
        path: Of the socket.
        peer: Process, user and group of the owner, where the system tells.
    """

    def __init__(self, path: Path, *, timeout: float | None = None) -> None:
        """Connect to the owner's socket.

        Args:
            path: Of the socket.
            timeout: Seconds that the owner may be silent; None waits as long as it takes.

        Raises:
            DeviceError: No process listens there; `__cause__` has the OS error.
        """
        self.path = path
        self._timeout = timeout
        self._lock = threading.Lock()
        self._closed = False
        self._known: KnownHeads[int] = KnownHeads()
        self._connect()

    def ask(
        self,
        method: str,
        target: str,
        body: bytes | memoryview = b"",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request and return what it is answered with.

        Args:
            method: Such as ``"GET"``.
            target: Path and query, with all escapes that they need.
            body: All of it; bytes in one dimension.
            headers: By their names in lower case, beside those that each request has.

        Raises:
            ValueError: This was closed.
            DeviceError: The owner went away. What was asked for may have been done.
            FormatError: What answers does not speak HTTP.
        """
        status, found, content = 0, {"": ""}, bytearray()
        with self._connected():
            came = self._begin(method, target, body, headers or {})
            known = self._known.find(came)
            if known is not None:
                size = int(known.headers.get("content-length", 0))
                return Answer(known.start, known.headers, self._rest(came[known.size :], size))
            for event in self._events(came):
                if isinstance(event, h11.Response):
                    status, found = event.status_code, _headers(event)
                elif isinstance(event, h11.Data):
                    content += event.data
        return Answer(status, found, bytes(content))

    def stream(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Generator[Answer, None, None]:
        """Send a request, and yield each line of the reply when it comes, with its status.

        A reply that does not consist of lines is one. Others wait until the end. Errors as `ask`.
        """
        status, found, content, in_lines = 0, {"": ""}, bytearray(), False
        with self._connected():
            for event in self._events(self._begin(method, target, body, headers or {})):
                if isinstance(event, h11.Response):
                    status, found = event.status_code, _headers(event)
                    in_lines = found.get("content-type") == LINES[1]
                elif isinstance(event, h11.Data):
                    content += event.data
                    if in_lines:
                        *lines, content = content.split(b"\n")
                        for line in lines:
                            yield Answer(status, found, bytes(line))
        if content:
            yield Answer(status, found, bytes(content))

    def require_open(self) -> None:
        """Raise `ValueError` if this was closed."""
        if self._closed:
            raise ValueError("this store was closed")

    def interrupt(self) -> None:
        """Have a request that is on its way in another thread fail, as if the owner went away."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._closed = True
            self._socket.close()

    def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(self._timeout)
            deadline = time.monotonic() + (self._timeout or 0)
            while True:
                try:
                    self._socket.connect(os.fspath(self.path))
                    break
                except BlockingIOError:  # the owner's queue is full, where there is a time-out
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.01)
        except OSError as error:
            self._socket.close()
            raise device_error(error, f"no owner answers at {self.path}", writing=False) from error
        self.peer = peer_credentials(self._socket)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def _has_ended(self) -> bool:
        """Say whether the owner has closed the connection, as it does with silent ones."""
        return self._socket.fileno() < 0 or bool(self._poll.poll(0))

    def _end(self) -> None:
        self._socket.close()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Have a connection for one request; what fails ends it."""
        with self._lock:
            self.require_open()
            if self._has_ended():
                self._socket.close()
                self._connect()
            try:
                yield
            except h11.RemoteProtocolError as error:
                self._end()
                raise FormatError(f"the owner at {self.path} breaks HTTP: {error}") from error
            except OSError as error:
                self._end()
                raise _gone(self.path) from error
            except BaseException:
                self._end()  # half of something is on its way
                raise

    def _begin(
        self, method: str, target: str, body: bytes | memoryview, headers: Mapping[str, str]
    ) -> bytes:
        """Send a request, and return the first bytes of its reply."""
        head = f"{method} {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        for name, value in headers.items():
            head += f"{name}: {value}\r\n"
        request = (head + "\r\n").encode("latin-1")
        if not send_all(self._socket, request, body) and not self._socket.recv(1, socket.MSG_PEEK):
            # The owner had closed this connection, as it does for others, and read nothing.
            self._socket.close()
            self._connect()
            send_all(self._socket, request, body)
        came = self._socket.recv(_HEAD_PIECE)
        if not came:
            raise _gone(self.path)
        return came

    def _rest(self, content: bytes, size: int) -> bytes:
        """Return a body of known size, of which ``content`` came."""
        if len(content) > size:
            raise FormatError(f"the owner at {self.path} sends more than a reply")
        if len(content) == size:
            return content
        body = bytearray(size)
        count = len(content)
        body[:count] = content
        with memoryview(body) as view:
            while count < size:
                received = self._socket.recv_into(view[count:])
                if not received:
                    raise _gone(self.path)
                count += received
        return bytes(body)

    def _events(self, came: bytes) -> Iterator[h11.Event]:
        """Have h11 read a reply of which the first bytes came; yield its events as they come."""
        http = h11.Connection(h11.CLIENT)
        # What was asked for does not change how a reply is read.
        http.send(_ANY_REQUEST)
        http.send(h11.EndOfMessage())
        http.receive_data(came)
        while not isinstance(event := http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                piece = self._socket.recv(_PIECE)
                if not piece:
                    raise _gone(self.path)
                http.receive_data(piece)
                came = b""
            elif isinstance(event, h11.Event):
                if isinstance(event, h11.Response) and came:
                    self._remember(came[: len(came) - len(http.trailing_data[0])], event)
                yield event
        if http.our_state is h11.DONE and http.their_state is h11.DONE:
            http.start_next_cycle()
        else:
            self._end()  # the owner takes no more requests here

    def _remember(self, head: bytes, response: h11.Response) -> None:
        """Remember the head of a reply that says how long its body is, or has none."""
        headers = _headers(response)
        if response.http_version != b"1.1" or {"transfer-encoding", "connection"} & headers.keys():
            return
        if ("content-length" in headers) != (response.status_code == _NO_CONTENT):
            self._known.remember(head, response.status_code, headers)


def _headers(response: h11.Response) -> dict[str, str]:
    return {k.decode("latin-1"): v.decode("latin-1") for k, v in response.headers}


def send_all(sock: socket.socket, head: bytes, body: bytes | memoryview) -> bool:
    """Send a head and its body, without a copy of both; say whether any of it was taken."""
    try:
        sent = sock.sendmsg([head, body])
    except BrokenPipeError:
        return False
    # Refused before it was sent as a whole? The answer says why.
    with suppress(BrokenPipeError):
        if sent < len(head):
            sock.sendall(head[sent:])
            sent = len(head)
        if sent < len(head) + len(body):
            sock.sendall(memoryview(body)[sent - len(head) :])
    return True


def _gone(path: Path) -> DeviceError:
    return DeviceError(
        f"the owner at {path} went away before it answered",
        hint="what was asked for may have been done: look before you ask again",
    )
