"""Sockets, and the streams of bytes between them."""

from __future__ import annotations

import socket as real_socket
import struct
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from greenlet import getcurrent

from tests.simulation.scheduler import KilledError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.simulation.network import Address, Network
    from tests.simulation.scheduler import Process, Task

    Readable = bytes | bytearray | memoryview

#: `SO_LINGER` of zero seconds.
_RESETS = struct.pack("ii", 1, 0)
#: As in `network`: bytes of a stream that are on their way or were not read yet.
_CAPACITY = 64 << 10


class Stream:
    """One direction of a connection.

    Attributes:
        sender: Its host.
        receiver: Its host.
        ended: Whether all that was sent has arrived, and nothing follows.
        broken: Whether the connection was reset, as the reader sees it.
    """

    def __init__(self, network: Network, sender: str, receiver: str) -> None:
        self.network = network
        self.sender, self.receiver = sender, receiver
        self.buffer = bytearray()
        self.ended = self.broken = self.closed = False
        self.is_deaf = False  # its reader is gone: whoever writes learns of it
        self.is_lost = False  # its host lost power: nothing arrives, and nothing says so
        self._flight: deque[tuple[float, bytes | None]] = deque()
        self._in_flight = 0
        self.readers: list[Task] = []
        self.writers: list[Task] = []

    @property
    def room(self) -> int:
        return max(_CAPACITY - len(self.buffer) - self._in_flight, 0)

    @property
    def is_readable(self) -> bool:
        return bool(self.buffer) or self.ended or self.broken

    def send(self, data: bytes | None) -> None:
        """Send data, or the end; it arrives later, unless both are on one host."""
        scheduler = self.network.scheduler
        if self.sender == self.receiver:
            self._arrive(data)
            return
        draw = scheduler.random
        pieces: list[bytes | None] = [data]
        if data is not None and len(data) > 1 and draw.random() < self.network.pieces:
            middle = draw.randrange(1, len(data))
            pieces = [data[:middle], data[middle:]]
        for piece in pieces:
            delay = draw.expovariate(1 / self.network.latency)
            if draw.random() < self.network.loss:
                delay += 0.2
            time = scheduler.now + delay
            if self._flight:
                time = max(time, self._flight[-1][0])
            self._flight.append((time, piece))
            self._in_flight += len(piece or b"")
            scheduler.at(time, "message", self.deliver)

    def deliver(self) -> None:
        """Have arrive what is due, if the link permits."""
        now = self.network.scheduler.now
        if self._flight and self.network.is_cut(self.sender, self.receiver):
            self.network.hold(self)
            return
        while self._flight and self._flight[0][0] <= now:
            _, piece = self._flight.popleft()
            self._in_flight -= len(piece or b"")
            self._arrive(piece)

    def _arrive(self, data: bytes | None) -> None:
        if self.broken or self.is_lost:
            return
        if data is None:
            self.ended = True
        else:
            self.buffer += data
        self.wake(self.readers)

    def drop(self) -> None:
        """Lose what is on its way: its sender does not send it again."""
        self._flight.clear()
        self._in_flight = 0

    def scheduled_break(self, delay: float) -> None:
        """Reset it, for its reader, after some time."""
        self.network.scheduler.after(delay, "reset", self.break_now)

    def break_now(self) -> None:
        self.broken = True
        self.wake(self.readers)
        self.wake(self.writers)

    def wake(self, tasks: list[Task]) -> None:
        for task in tasks:
            self.network.scheduler.wake(task)
        tasks.clear()


class SimulatedSocket:
    """A socket of a simulated process."""

    type = real_socket.SOCK_STREAM

    def __init__(self, network: Network, process: Process, *, is_local: bool) -> None:
        self.network, self.process, self.is_local = network, process, is_local
        self.family = real_socket.AF_UNIX if is_local else real_socket.AF_INET
        self.accepting: list[SimulatedSocket] | None = None
        self.outgoing: Stream | None = None
        self.incoming: Stream | None = None
        self._timeout: float | None = None
        self._acceptors: list[Task] = []
        self._resets = False  # when it is closed, whatever is on its way
        self._no_more = False  # of what is received: SHUT_RD
        self._number = network.add(self)

    def connected(self, *, outgoing: Stream, incoming: Stream) -> None:
        self.outgoing, self.incoming = outgoing, incoming

    # ------------------------------------------------------- making, ending

    def connect(self, address: Address) -> None:
        self._require_open()
        self.network.connect(self, address, self._timeout)

    def accept(self) -> tuple[SimulatedSocket, object]:
        self._require_open()
        if not self.accepting:
            raise BlockingIOError("nothing to accept")
        return self.accepting.pop(0), None

    def shutdown(self, how: int) -> None:
        self._require_open()
        if self.outgoing is None or self.incoming is None:
            raise OSError("not connected")
        if how in (real_socket.SHUT_RD, real_socket.SHUT_RDWR):
            self._no_more = True
            self.incoming.wake(self.incoming.readers)
        if how in (real_socket.SHUT_WR, real_socket.SHUT_RDWR):
            self._end_sending()

    def close(self) -> None:
        if self._number < 0:
            return
        self.network.forget(self, self._number)
        self._number = -1
        if self.accepting is not None:
            for waiting in self.accepting:
                waiting.close()
        if self.incoming is not None and self.outgoing is not None:
            if self._resets:
                self.outgoing.drop()
                if not self.network.is_cut(self.outgoing.sender, self.outgoing.receiver):
                    self.outgoing.scheduled_break(0.0)
            self._end_sending()
            self.incoming.is_deaf = True
            self.incoming.wake(self.incoming.writers)
            self.incoming.wake(self.incoming.readers)

    def die(self) -> None:
        """Be closed by the host of a process that died."""
        self.close()

    def vanish(self, outage: float) -> None:
        """Lose the host for a while: what is sent here is lost, and the other end gives up."""
        if self._number < 0:
            return
        self.network.forget(self, self._number)
        self._number = -1
        for waiting in self.accepting or ():
            waiting.vanish(outage)
        if self.incoming is not None and self.outgoing is not None:
            self.incoming.is_lost = True
            self.outgoing.scheduled_break(outage * self.network.scheduler.random.random())

    def _end_sending(self) -> None:
        if self.outgoing is not None and not self.outgoing.closed:
            self.outgoing.closed = True
            self.outgoing.send(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self._number

    # ------------------------------------------------------------ settings

    def settimeout(self, seconds: float | None) -> None:
        self._require_open()
        self._timeout = seconds

    def setblocking(self, blocking: bool) -> None:
        self._timeout = None if blocking else 0.0

    def setsockopt(self, _level: int, option: int, value: object) -> None:
        self._require_open()
        if option == real_socket.SO_LINGER:
            self._resets = value == _RESETS

    def getsockopt(self, _level: int, _option: int, _size: int) -> bytes:
        return struct.pack("3i", 1, 0, 0)

    def getpeername(self) -> tuple[str, int]:
        assert self.incoming is not None
        return self.incoming.sender, 1

    def getsockname(self) -> tuple[str, int]:
        return self.process.host, 1

    # ----------------------------------------------------------- receiving

    @property
    def is_readable(self) -> bool:
        if self.accepting is not None:
            return bool(self.accepting)
        return self.incoming is not None and (self._no_more or self.incoming.is_readable)

    @property
    def has_ended(self) -> bool:
        """Whether the other end is known to send no more, whatever was not read yet."""
        return self.incoming is not None and (self.incoming.ended or self.incoming.broken)

    def add_reader(self, task: Task) -> None:
        if self.accepting is not None:
            self._acceptors.append(task)
        elif self.incoming is not None:
            self.incoming.readers.append(task)

    def remove_reader(self, task: Task) -> None:
        """Wake it no more: it was woken by another socket."""
        for tasks in (self._acceptors, self.incoming.readers if self.incoming else []):
            if task in tasks:
                tasks.remove(task)

    def wake_readers(self) -> None:
        tasks, self._acceptors = self._acceptors, []
        for task in tasks:
            self.network.scheduler.wake(task)

    def recv(self, most: int, flags: int = 0) -> bytes:
        stream = self._wait_readable(self._deadline())
        data = bytes(stream.buffer[:most])
        if not flags & real_socket.MSG_PEEK:
            self._taken(stream, len(data))
        return data

    def recv_into(self, view: memoryview) -> int:
        stream = self._wait_readable(self._deadline())
        count = min(len(view), len(stream.buffer))
        view[:count] = stream.buffer[:count]
        self._taken(stream, count)
        return count

    def _taken(self, stream: Stream, count: int) -> None:
        del stream.buffer[:count]
        if count and stream.writers:
            stream.wake(stream.writers)

    def _deadline(self) -> float | None:
        return None if self._timeout is None else self.network.scheduler.now + self._timeout

    def _wait_readable(self, deadline: float | None) -> Stream:
        self._require_open()
        stream = self.incoming
        if stream is None:
            raise OSError("not connected")
        if not stream.buffer:
            self.network.scheduler.pause()
        while not stream.buffer:
            if stream.broken:
                raise ConnectionResetError("connection reset by peer")
            if stream.ended or self._no_more:
                break
            self._require_open()
            self._wait_for(stream.readers, deadline)
        return stream

    def _wait_for(self, tasks: list[Task], deadline: float | None) -> None:
        if self._timeout == 0:
            raise BlockingIOError("would wait")
        left = None if deadline is None else deadline - self.network.scheduler.now
        if left is not None and left <= 0:
            raise TimeoutError("timed out")
        me: Any = getcurrent()
        tasks.append(me)
        if not self.network.scheduler.wait(left) and me in tasks:
            tasks.remove(me)

    # ------------------------------------------------------------- sending

    def send(self, data: Readable, flags: int = 0) -> int:
        return self._send(bytes(data), self._deadline(), flags)

    def sendall(self, data: Readable) -> None:
        rest, deadline = bytes(data), self._deadline()
        while rest:
            rest = rest[self._send(rest, deadline) :]

    def sendmsg(
        self, pieces: Iterable[Readable], ancillary: Iterable[object] = (), flags: int = 0
    ) -> int:
        del ancillary
        return self._send(b"".join(pieces), self._deadline(), flags)

    def _send(self, data: bytes, deadline: float | None, flags: int = 0) -> int:
        self._require_open()
        stream = self.outgoing
        if stream is None:
            raise OSError("not connected")
        self.network.scheduler.pause()
        while True:
            self._require_open()
            if self.incoming is not None and self.incoming.broken:
                raise ConnectionResetError("connection reset by peer")
            if stream.is_deaf or stream.closed or stream.broken:
                raise BrokenPipeError("the other end is closed")
            sent = data[: stream.room]
            if sent or not data:
                stream.send(sent)
                return len(sent)
            if flags & real_socket.MSG_DONTWAIT:
                raise BlockingIOError("would wait")
            self._wait_for(stream.writers, deadline)

    def _require_open(self) -> None:
        if not self.process.alive:
            raise KilledError
        if self._number < 0:
            raise OSError(9, "bad file descriptor")
