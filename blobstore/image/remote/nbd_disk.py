"""An export of an NBD server as a block device (``spec/nbd.md``, N60 to N69).

Writes that the server answered are durable only after a flush, and a server that dies before
takes them along. They are kept until then: when the connection breaks, a new one is made,
and they are sent once more, in their order, before anything else. What was flushed is never
written again, so a server that lost it is not papered over. What an earlier user of the export
wrote is made durable before anything is read (P62).
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from blobstore.image.remote.host_lock import HostLock
from blobstore.image.remote.nbd_connection import Ask, NbdConnection
from blobstore.image.remote.nbd_connections import NbdConnections
from blobstore.image.remote.unflushed import LIMIT, Unflushed, writes
from formats.devices.device import SharedDevice
from formats.errors import (
    DeviceError,
    FormatError,
    ReadOnlyError,
    UnsupportedError,
    device_error,
)
from formats.logs import LateLogger
from formats.nbd.numbers import Command, CommandFlag, TransmissionFlag
from formats.process import Owned, OwnedLock, Owner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from blobstore.image.remote.nbd_connection import NbdAddress
    from formats.devices.device import ReadableBuffer, WritableBuffer
    from formats.nbd.asking import Served

_log = LateLogger(__name__)

_Result = TypeVar("_Result")

#: Most bytes of one request; several are on their way at a time.
_PIECE: Final = 1 << 20
#: Seconds between two tries to connect again: first, and at most.
_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
#: Bytes that one BLOCK_STATUS asks about.
_STATUS: Final = 1 << 30


class NbdDisk(Owned, SharedDevice):
    """An export as a device. It may be used by several threads.

    Attributes:
        address: Where it is.
        read_only: Whether writing is refused.
    """

    def __init__(
        self,
        address: NbdAddress,
        *,
        read_only: bool = True,
        reconnecting: float = 10,
        lock: bool = True,
        lock_file: Path | None = None,
    ) -> None:
        """Connect to the server.

        Args:
            address: Where the export is.
            read_only: Permit no writing.
            reconnecting: Seconds to try to connect again when the connection broke; 0 does not.
            lock: Take the lock of ``lock_file`` until `close`, if it is to be written.
            lock_file: Keeps other processes of this machine out: NBD has no lock (P17).

        Raises:
            DeviceBusyError: Another process of this machine holds that lock.
            ReadOnlyError: It is to be written, and the export takes no writes.
            UnsupportedError: It is to be written, and the server cannot make that durable.
            DeviceError: No server answers, or it does not serve this export.
            FormatError: What answers breaks the protocol.
        """
        self.address = address
        self.read_only = read_only
        self._reconnecting = reconnecting
        self._owner = Owner(f"the {address}")
        self._closed = False
        self._host_lock = HostLock(lock_file)
        #: Held while something writes, flushes or connects again; reads need it for the last only.
        self._lock = OwnedLock(self._owner)
        self._unflushed = Unflushed()
        try:
            first = NbdConnection(address)
        except TimeoutError as error:
            raise DeviceError(f"the {address} does not answer in {address.timeout:g} s") from error
        except OSError as error:
            raise device_error(error, f"cannot reach the {address}", writing=False) from error
        try:
            self._served = first.served
            if not read_only:
                self._require_writable()
        except BaseException:
            first.abandon()
            raise
        self._most = min(_PIECE, self._served.most)
        self._can_force = self._served.can(TransmissionFlag.SEND_FUA)
        #: Those of today: others take their place when one of them breaks.
        self._connections = self._connected(first)
        if lock and not read_only:
            try:
                self.lock()
            except BaseException:
                self.close()
                raise

    @property
    def size(self) -> int:
        return self._served.size

    @property
    def block_size(self) -> int:
        return max(512, self._served.least)

    def lock(self) -> None:
        """Keep other processes of this machine out; no other host is (P5, P17).

        Raises:
            DeviceError: What the last writer wrote cannot be made durable; the lock is free.
        """
        self._owner.require()
        self._host_lock.acquire(f"the {self.address}")
        try:
            # What its last writer left in the server's cache is read next. If the server lost it
            # after that, this would connect again and not notice (P62).
            self.flush()
        except BaseException:
            self._host_lock.release()
            raise

    def unlock(self) -> None:
        """Let other processes of this machine have it."""
        self._owner.require()
        self._host_lock.release()

    def measure(self) -> None:
        """Do nothing: a server tells the size only once for each connection."""
        self._owner.require()

    def read_into(self, offset: int, buffer: WritableBuffer, /) -> None:
        self._owner.require()
        self._check_range(offset, len(buffer))
        view = memoryview(buffer)
        if not view:
            return
        start, end = self._aligned(offset, len(view))
        whole = view if end - start == len(view) else memoryview(bytearray(end - start))

        def pieces() -> Iterator[Ask]:
            for at in range(start, end, self._most):
                length = min(self._most, end - at)
                into = whole[at - start : at - start + length]
                yield Ask(Command.READ, at, length, into=into)

        self._attempt(lambda connection: connection.carry_out(pieces()))
        if whole is not view:
            view[:] = whole[offset - start : offset - start + len(view)]
        if self.observer is not None:
            self.observer(offset, view)

    def write(self, offset: int, data: ReadableBuffer, /) -> None:
        self._owner.require()
        self._check_range(offset, len(data))
        self._require_open_for_writing()
        view = memoryview(data).cast("B")
        if not view:
            return
        with self._lock:
            start, end = self._aligned(offset, len(view))
            if end - start != len(view):
                block = bytearray(end - start)
                self.read_into(start, block)
                block[offset - start : offset - start + len(view)] = view
                view = memoryview(block)
            for at in range(start, end, LIMIT // 2):
                self._write(at, view[at - start : at - start + LIMIT // 2])

    def write_durably(self, offset: int, data: ReadableBuffer, /) -> None:
        self._owner.require()
        self._check_range(offset, len(data))
        self._require_open_for_writing()
        view = memoryview(data).cast("B")
        with self._lock:
            if not self._may_force(offset, len(view)):
                self.write(offset, view)
                self.flush()
                return
            ask = Ask(Command.WRITE, offset, len(view), CommandFlag.FUA, data=view)
            self._attempt(lambda connection: connection.carry_out([ask]))

    def flush(self) -> None:
        self._owner.require()
        if self.read_only:
            return
        with self._lock:
            self._attempt(lambda connection: connection.carry_out([Ask(Command.FLUSH)]))
            self._unflushed.clear()

    def discard(self, offset: int, size: int, /) -> None:
        """Have the server fill a range with zeros, and give its space back if it can."""
        self._owner.require()
        self._check_range(offset, size)
        self._require_open_for_writing()
        if not self._served.can(TransmissionFlag.SEND_WRITE_ZEROES):
            super().discard(offset, size)
        start, end = offset + -offset % self._served.least, offset + size
        end -= end % self._served.least
        with self._lock:
            if start >= end:
                self.write(offset, bytes(size))
                return
            self.write(offset, bytes(start - offset))
            self.write(end, bytes(offset + size - end))
            for at in range(start, end, self._served.most):
                length = min(self._served.most, end - at)
                self._zero(at, length)

    def data_ranges(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield offset and length of the parts that are not known to be zeros, in order.

        Where the server cannot tell, all of the range counts as data.

        Raises:
            DeviceError: It failed.
        """
        self._owner.require()
        self._check_range(offset, size)
        end = offset + size
        least = self._served.least
        while offset < end:
            if self._served.allocation is None:
                yield offset, end - offset
                return
            start = offset - offset % least
            stop = min(end + -end % least, self.size, start + _STATUS)
            ask = Ask(Command.BLOCK_STATUS, start, stop - start)

            def status(connection: NbdConnection, ask: Ask = ask) -> None:
                ask.extents.clear()
                connection.carry_out([ask])

            self._attempt(status)
            if not ask.extents:
                yield offset, end - offset
                return
            for length, is_zero in ask.extents:
                reached = min(start + length, end)
                if not is_zero and reached > offset:
                    yield offset, reached - offset
                offset, start = max(offset, reached), start + length

    def close(self) -> None:
        """Close all connections; nothing is flushed. In a child, do nothing but that."""
        self._closed = True
        self._connections.close()
        self._host_lock.release()

    # ------------------------------------------------------------ writing

    def _write(self, offset: int, view: memoryview) -> None:
        self._make_room(len(view))
        most = self._most
        self._attempt(lambda connection: connection.carry_out(writes(offset, view, most)))
        self._unflushed.add(Command.WRITE, offset, len(view), bytes(view))

    def _may_force(self, offset: int, length: int) -> bool:
        """Say whether one write that is durable when it is answered does as well as a flush.

        It says nothing of earlier writes, so there must be none that were not flushed (N77).
        """
        return (
            not self._unflushed
            and self._can_force
            and 0 < length <= self._most
            and (offset, offset + length) == self._aligned(offset, length)
        )

    def _zero(self, offset: int, length: int) -> None:
        ask = Ask(Command.WRITE_ZEROES, offset, length)
        self._make_room(0)
        self._attempt(lambda connection: connection.carry_out([ask]))
        self._unflushed.add(ask.command, offset, length)

    def _make_room(self, size: int) -> None:
        """Flush now if too much would be kept otherwise."""
        if not self._unflushed.has_room(size):
            self.flush()

    def _require_open_for_writing(self) -> None:
        if self.read_only:
            raise ReadOnlyError(f"the {self.address} is open for reading only")

    def _require_writable(self) -> None:
        if self._served.can(TransmissionFlag.READ_ONLY):
            raise ReadOnlyError(f"the {self.address} takes no writes")
        if not self._served.can(TransmissionFlag.SEND_FLUSH):
            raise UnsupportedError(
                f"the {self.address} takes writes, and cannot make them durable [N64]",
                feature="an NBD server without FLUSH",
            )

    def _aligned(self, offset: int, length: int) -> tuple[int, int]:
        least = self._served.least
        end = offset + length
        return offset - offset % least, min(end + -end % least, self.size)

    # -------------------------------------------------------- connections

    def _attempt(self, action: Callable[[NbdConnection], _Result]) -> _Result:
        """Return what ``action`` returns, on a new connection if the one in use breaks (N66)."""
        deadline: float | None = None
        while True:
            connections = self._connections
            try:
                return connections.use(action)
            except (OSError, FormatError) as error:
                # For all tries together: a server may take connections, and break each.
                deadline = deadline or time.monotonic() + self._reconnecting
                with self._lock:
                    if self._connections is connections:
                        self._reconnect(error, deadline)

    def _connected(self, first: NbdConnection) -> NbdConnections:
        """Return the connections that begin with one."""
        return NbdConnections(
            self.address,
            first,
            several=self._served.can(TransmissionFlag.CAN_MULTI_CONN),
            owner=self._owner,
            all_is_durable=self._all_is_durable,
        )

    @contextmanager
    def _all_is_durable(self) -> Iterator[bool]:
        """Say whether all that was written is durable, and have nothing written meanwhile."""
        with self._lock.within(0) as is_mine:
            yield is_mine and not self._unflushed

    def _reconnect(self, cause: OSError | FormatError, deadline: float) -> None:
        """Connect again, and send once more what was not flushed.

        Raises:
            DeviceError: That was not possible in time; what was written since the last
                flush may be lost.
        """
        pause = _PAUSE
        error: Exception = cause
        while (left := deadline - time.monotonic()) > 0:
            _log.warning("%s: %s; connecting again", self.address, error)
            try:
                # Not longer than there is time: nothing answers from a host that is cut off.
                connection = NbdConnection(
                    replace(self.address, timeout=min(self.address.timeout, left))
                )
            except (OSError, DeviceError, FormatError) as failure:
                error = failure
                time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            try:
                self._require_same(connection.served)
                self._unflushed.repeat(connection, self._most)
                connection.wait_at_most(self.address.timeout)
                self._connections.give_up(cause)
                self._connections = self._connected(connection)
            except (OSError, FormatError) as failure:
                error = failure
                connection.abandon()
                continue
            except BaseException:
                connection.abandon()
                raise
            if self._closed:  # by another thread, which saw the connections before these
                self._connections.close()
            return
        raise DeviceError(f"the connection to the {self.address} broke: {error}") from cause

    def _require_same(self, served: Served) -> None:
        if (served.size, served.least) != (self._served.size, self._served.least):
            raise DeviceError(
                f"the {self.address} has another size since the connection broke [N66]",
                hint="close it and open it again, if that is what is wanted",
            )
        lost = self._served.flags & ~served.flags
        if not self.read_only and lost & (
            TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_WRITE_ZEROES
        ):
            raise DeviceError(f"the {self.address} can do less than before [N66]")
