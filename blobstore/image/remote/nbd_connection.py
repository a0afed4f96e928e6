"""One connection to an NBD server: requests in flight, and the replies to them (N60 to N65)."""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from formats.errors import DeviceError, DeviceFullError, FormatError, ReadOnlyError
from formats.nbd import asking
from formats.nbd.numbers import Chunk, Command, Errno
from formats.process import closed_in_children

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blobstore.image.remote.tls import ClientTls
    from formats.nbd.asking import Served

#: Requests of one caller that are on their way at a time.
IN_FLIGHT: Final = 8
#: Most bytes of an error, or of the extents, of one reply.
_MOST_DETAIL: Final = 1 << 20

#: Linger or not, and for how many seconds.
_LINGER: Final = struct.Struct("HH" if sys.platform == "win32" else "ii")

_CLASSES: Final[dict[int, type[DeviceError]]] = {
    Errno.EPERM: ReadOnlyError,
    Errno.ENOSPC: DeviceFullError,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdAddress:
    """Where an export is.

    Attributes:
        socket: Path of a Unix socket, or host and port of TCP.
        export: Its name; empty is the server's default.
        tls: What to encrypt the connection with; None does not.
        timeout: Seconds that the server may be silent when it is expected to answer.
    """

    socket: Path | tuple[str, int]
    export: str = ""
    tls: ClientTls | None = None
    timeout: float = 30

    def __str__(self) -> str:
        """Return the place as a message names it."""
        where = self.socket if isinstance(self.socket, Path) else "{}:{}".format(*self.socket)
        return f"NBD export {self.export!r} at {where}"

    @property
    def identity(self) -> str:
        """The export, however it is reached: by TLS or not (P12)."""
        if isinstance(self.socket, Path):
            return f"nbd+unix:{os.path.realpath(self.socket)}:{self.export}"
        host, port = self.socket
        return f"nbd:{host.lower()}:{port}:{self.export}"


@dataclass(slots=True)
class Ask:
    """One request, and what has come of it.

    Attributes:
        command: What to do.
        offset: Where, in bytes.
        length: How many bytes.
        flags: Of `CommandFlag`.
        data: Those to write.
        into: Where those that are read go.
        extents: Lengths, and whether each is known to be zeros.
        error: What the server said; 0 is success.
        message: Why, as the server says it.
        received: How many bytes that were read have come.
    """

    command: Command
    offset: int = 0
    length: int = 0
    flags: int = 0
    data: memoryview | None = None
    into: memoryview | None = None
    extents: list[tuple[int, bool]] = field(default_factory=list)
    error: int = 0
    message: str = ""
    received: int = 0


class NbdConnection:
    """A connection whose handshake is done. One thread uses it at a time.

    What breaks, it raises as `OSError` (the connection is of no more use), or as
    `FormatError` (the server broke the protocol; likewise).

    Attributes:
        served: What the server tells of the export.
        is_at_rest: Whether it is open, and no request is under way: what was sent was answered.
            If it is not when a use has ended, it must not be used again (N80).
    """

    def __init__(self, address: NbdAddress) -> None:
        """Connect.

        Raises:
            OSError: No server answers there, or it went away.
            DeviceError, FormatError, UnsupportedError: As `formats.nbd.asking.negotiate`.
        """
        self._cookie = 0
        self._encrypted = address.tls is not None
        self.is_at_rest = False
        self._socket = _connect(address)
        try:
            self.served: Served = self._negotiate(address)
        except BaseException:
            self._socket.close()
            raise
        self.is_at_rest = True

    def close(self) -> None:
        """Say good-bye, and close the connection."""
        self.is_at_rest = False
        with suppress(OSError):
            _let_close_send(self._socket)
            self._socket.settimeout(0.1)
            self._socket.sendall(asking.request(Command.DISC, 0, 0, 0))
        self._socket.close()

    def release(self) -> None:
        """Let go of the connection in a child; it stays its parent's."""
        self._socket.close()

    def wait_at_most(self, seconds: float) -> None:
        """Bound how long the server may be silent from now on, when it is expected to answer."""
        self._socket.settimeout(seconds)

    def abandon(self) -> None:
        """Close the connection, in whatever state it is; nothing more of it reaches the server.

        What was sent, and is sent again on another connection, must not arrive once more, over
        later writes (N79): it is reset, since it was told to linger for no time (P60).
        """
        self.is_at_rest = False
        self._socket.close()

    def carry_out(self, asks: Iterable[Ask]) -> None:
        """Send requests, several at a time, and wait for all replies.

        Raises:
            DeviceError: The server refused one; the others were carried out, or refused too.
            OSError, FormatError: See the class.
        """
        left = iter(asks)
        pending: dict[int, Ask] = {}
        failed: Ask | None = None
        self.is_at_rest = False
        try:
            while True:
                while len(pending) < IN_FLIGHT and (ask := next(left, None)) is not None:
                    self._cookie += 1
                    pending[self._cookie] = ask
                    self._send(self._cookie, ask)
                if not pending:
                    break
                done = self._receive(pending)
                if done is not None and done.error:
                    failed = failed or done
        except BaseException:
            self.abandon()  # half of something is on its way
            raise
        self.is_at_rest = True
        if failed is not None:
            raise _failure(failed)

    # ---------------------------------------------------------- internal

    def _negotiate(self, address: NbdAddress) -> Served:
        steps = asking.negotiate(address.export, encrypted=address.tls is not None)
        step = next(steps)
        try:
            while True:
                if isinstance(step, bytes):
                    self._socket.sendall(step)
                    step = next(steps)
                elif isinstance(step, int):
                    step = steps.send(self._exactly(step))
                else:
                    self._encrypt(address)
                    step = next(steps)
        except StopIteration as end:
            served: Served = end.value
            return served

    def _encrypt(self, address: NbdAddress) -> None:
        assert address.tls is not None, "asked for by `_negotiate`"
        name = address.socket[0] if isinstance(address.socket, tuple) else None
        encrypted = address.tls.wrap(self._socket, name)
        self._socket = encrypted
        encrypted.do_handshake()

    def _exactly(self, size: int) -> bytes:
        data = self._socket.recv(size) if size else b""
        if len(data) == size:  # as nearly always
            return data
        if not data:
            raise ConnectionResetError("the NBD server closed the connection")
        rest = bytearray(size - len(data))
        self._fill(memoryview(rest))
        return data + rest

    def _fill(self, view: memoryview) -> None:
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise ConnectionResetError("the NBD server closed the connection")
            view = view[count:]

    def _send(self, cookie: int, ask: Ask) -> None:
        head = asking.request(ask.command, cookie, ask.offset, ask.length, ask.flags)
        if ask.data is None:
            self._socket.sendall(head)
        elif self._encrypted:
            self._socket.sendall(b"".join((head, ask.data)))
        else:
            sent = self._socket.sendmsg((head, ask.data)) - len(head)
            if sent < 0:
                self._socket.sendall(head[sent:])
            self._socket.sendall(ask.data[max(sent, 0) :])

    def _receive(self, pending: dict[int, Ask]) -> Ask | None:
        """Take one reply, or a part of one; return its request if that is the last part."""
        start = self._exactly(asking.REPLY_HEAD)
        if asking.is_chunk(start):
            start += self._exactly(asking.MORE_OF_CHUNK)
        head = asking.decode_head(start)
        ask = pending.get(head.cookie)
        if ask is None:
            raise FormatError("the NBD server answers a request that was not made [N63]")
        if head.kind is None:
            ask.error = head.error
            if ask.into is not None and not head.error:
                self._fill(ask.into)
                ask.received = ask.length
        else:
            self._receive_chunk(ask, head.kind, head.length)
        if not head.is_last:
            return None
        del pending[head.cookie]
        if ask.into is not None and not ask.error and ask.received != ask.length:
            raise FormatError(
                f"the NBD server answers a read of {ask.length} bytes with {ask.received} [N63]"
            )
        return ask

    def _receive_chunk(self, ask: Ask, kind: int, length: int) -> None:
        if kind == Chunk.OFFSET_DATA and ask.into is not None and length > 8:
            view = _part(ask, asking.decode_offset(self._exactly(8)), length - 8)
            self._fill(view)
            return
        if length > _MOST_DETAIL:
            raise FormatError(f"the NBD server sent {length} bytes that were not asked for [N63]")
        content = self._exactly(length)
        if kind == Chunk.NONE and not length:
            return
        if kind == Chunk.OFFSET_HOLE and ask.into is not None:
            view = _part(ask, *asking.decode_hole(content))
            view[:] = bytes(len(view))
        elif kind == Chunk.BLOCK_STATUS and ask.command is Command.BLOCK_STATUS:
            ask.extents += asking.decode_extents(content, self.served.allocation) or []
        elif asking.is_failure(kind):
            ask.error, ask.message = asking.decode_failure(content)
        else:
            raise FormatError(f"the NBD server sent a reply of type {kind} [N63]")


def _part(ask: Ask, offset: int, length: int) -> memoryview:
    """Return the part of a read's memory that a chunk fills."""
    start = offset - ask.offset
    if ask.into is None or start < 0 or not length or start + length > ask.length:
        raise FormatError(f"the NBD server sent bytes {offset} to {offset + length} unasked [N63]")
    ask.received += length
    return ask.into[start : start + length]


def _connect(address: NbdAddress) -> socket.socket:
    if isinstance(address.socket, Path):
        return _connected(socket.AF_UNIX, os.fspath(address.socket), address.timeout)
    host, port = address.socket
    failure: OSError | None = None
    for family, _, _, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            connected = _connected(family, place, address.timeout)
        except OSError as error:
            failure = failure or error
            continue
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # When it is given up, or this process dies, the system is to send nothing more: writes
        # that arrive after those of the next connection would undo them (P60).
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(1, 0))
        return connected
    raise failure or OSError(errno.EHOSTUNREACH, f"{host} has no address")


def _connected(family: int, place: str | tuple[object, ...], timeout: float) -> socket.socket:
    connected = closed_in_children(lambda: socket.socket(family, socket.SOCK_STREAM))
    try:
        connected.settimeout(timeout)
        connected.connect(place)
    except BaseException:
        connected.close()
        raise
    return connected


def _let_close_send(connected: socket.socket) -> None:
    """Have the end of a connection in order wait for what was sent."""
    if connected.family != getattr(socket, "AF_UNIX", None):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER.pack(0, 0))


def _failure(ask: Ask) -> DeviceError:
    names = {number.value: number.name for number in Errno}
    kind = _CLASSES.get(ask.error, DeviceError)
    said = f": {ask.message}" if ask.message else ""
    return kind(
        f"the NBD server refuses {ask.command.name} of {ask.length} bytes at byte {ask.offset}"
        f" with {names.get(ask.error, ask.error)}{said}"
    )
