"""An NBD server in memory that logs what reaches its disk, and breaks on request.

The handshake and the replies are those of this project's server. The disk behind it is the
one of `tests.support.devices`: from `RecordingServer.log`, `crash_states` makes every content
that a power cut of the server could have left.
"""

from __future__ import annotations

import random
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Self

from blobstore.image.remote.nbd_connection import NbdAddress
from formats.nbd.handshake import Handshake
from formats.nbd.model import Begun, Export, ExportWanted
from formats.nbd.numbers import Command, CommandFlag, Errno
from formats.nbd.replies import Replies
from formats.nbd.structures import REQUEST
from tests.support.devices import Flush, ForcedWrite, Mark, Write

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.devices import Event

#: What goes wrong with a request: the server refuses it; the connection is cut before the
#: server carried it out, after it, or in the middle of its data; or the server dies after it, and
#: what was not flushed is lost, each sector or not.
Fault = Literal["refused", "cut before", "cut after", "cut within", "died"]
FAULTS: tuple[Fault, ...] = ("refused", "cut before", "cut after", "cut within", "died")


class _CutError(Exception):
    """The connection ends here."""


@dataclass
class _Request:
    flags: int
    command: int
    cookie: int
    offset: int
    length: int
    data: bytes = b""


@dataclass
class RecordingServer:
    """Serves one disk on a Unix socket.

    Attributes:
        path: Of the socket.
        content: The disk as its readers see it.
        faults: What goes wrong, by the number of the request, counted from 1 over all
            connections.
        log: Writes, flushes and marks, in the order in which the disk was changed.
        count: Requests so far.
        unlucky: Decides what a death leaves of what was not flushed.
        last: Number of the last request that it carries out, and does not answer; 0 goes on.
    """

    path: Path
    content: bytearray
    faults: dict[int, Fault] = field(default_factory=dict)
    log: list[Event] = field(default_factory=list)
    commands: list[int] = field(default_factory=list)
    unlucky: random.Random = field(default_factory=lambda: random.Random(66))
    last: int = 0

    def __post_init__(self) -> None:
        self.before = bytes(self.content)
        self.address = NbdAddress(socket=self.path, timeout=20)
        self._unflushed: list[tuple[int, bytes]] = []
        self._lock = threading.Lock()
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
        self._listening.listen()
        self._clients: list[threading.Thread] = []
        self._connected: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        # A test that failed keeps what it had, with its connections.
        for connected in self._connected:
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
        for client in self._clients:
            client.join()

    @property
    def count(self) -> int:
        return len(self.commands)

    def mark(self, label: object) -> None:
        with self._lock:
            self.log.append(Mark(label))

    # ---------------------------------------------------------- internal

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                serving = threading.Thread(target=self._serve, args=(client,))
                self._connected.append(client)
                self._clients.append(serving)
                serving.start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError, _CutError):
            if self.last and self.count >= self.last:
                return
            begun = greet(client, len(self.content))
            replies = Replies(structured=begun.structured)
            while True:
                request = _Request(*REQUEST.unpack(_exactly(client, REQUEST.size))[1:])
                if request.command == Command.DISC:
                    return
                with self._lock:
                    answer = self._answer(client, request, replies)
                client.sendall(answer)

    def _answer(self, client: socket.socket, request: _Request, replies: Replies) -> bytes:
        """Carry out a request; return the bytes of the reply."""
        self.commands.append(request.command)
        if self.last and self.count > self.last:
            raise _CutError
        fault = self.faults.get(self.count)
        if request.command == Command.WRITE:
            if fault == "cut within":
                half = _exactly(client, request.length // 2)
                self._write(request.offset, half, forced=False)
                raise _CutError
            request.data = _exactly(client, request.length)
        if fault == "refused":
            return replies.failed(request.cookie, Errno.EIO, "as the test wants it")
        if fault in ("cut before", "cut within"):
            raise _CutError
        answer = self._carry_out(request, replies)
        if fault == "died":
            self._die()
        if fault in ("cut after", "died") or self.count == self.last:
            raise _CutError
        return answer

    def _carry_out(self, request: _Request, replies: Replies) -> bytes:
        start, end = request.offset, request.offset + request.length
        if request.command == Command.READ:
            head = replies.read(request.cookie, start, request.length)
            return head + bytes(self.content[start:end])
        if request.command == Command.WRITE:
            self._write(start, request.data, forced=bool(request.flags & CommandFlag.FUA))
        elif request.command == Command.WRITE_ZEROES:
            self._write(start, bytes(request.length), forced=False)
        elif request.command == Command.FLUSH:
            self.log.append(Flush())
            self._unflushed.clear()
        else:
            return replies.failed(request.cookie, Errno.EINVAL, "not known here")
        return replies.done(request.cookie)

    def _write(self, offset: int, data: bytes, *, forced: bool) -> None:
        end = offset + len(data)
        if forced:
            # A part of it may be there, from a connection that was cut.
            others = [at for at, _ in self._unflushed if not offset <= at < end]
            assert not others, "N77: FUA says nothing of what was written before"
            self._unflushed.clear()
            self.log.append(ForcedWrite(offset, data))
        else:
            # What was there before, in sectors, for a death that loses them.
            for at in range(offset, end, 512):
                self._unflushed.append((at, bytes(self.content[at : min(at + 512, end)])))
            self.log.append(Write(offset, data))
        self.content[offset:end] = data

    def _die(self) -> None:
        """Lose sectors that were not flushed, each or not."""
        lost = [one for one in self._unflushed if self.unlucky.random() < 0.5]
        for offset, before in reversed(lost):
            self.content[offset : offset + len(before)] = before
            self.log.append(Write(offset, before))
        self._unflushed.clear()
        self.log.append(Flush())  # what is there when it starts again stays


def greet(client: socket.socket, size: int) -> Begun:
    """Do the handshake for an export of so many bytes."""
    handshake = Handshake()
    while True:
        event = handshake.next_event()
        client.sendall(handshake.outgoing())
        if isinstance(event, ExportWanted):
            handshake.tell_export(Export("", size, read_only=False))
        elif isinstance(event, Begun):
            return event
        elif event is None:
            data = client.recv(4096)
            if not data:
                raise _CutError
            handshake.receive(data)
        else:
            raise _CutError


def serving(content: bytes, path: Path) -> RecordingServer:
    """Serve a disk that begins with these bytes."""
    return RecordingServer(path, bytearray(content))


def _exactly(client: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = client.recv(size - len(data))
        if not piece:
            raise _CutError
        data += piece
    return bytes(data)
