"""The connections to one export, each used by one thread at a time (N65, N66, N80 to N82).

The connections of one time: from when the server was reached until one of them breaks. Then all
of them are given up, and `NbdDisk` makes others, on which it repeats what was not flushed. So
whether a connection may be used follows from where it is, and nothing is counted.

**Who has a connection.** The thread that holds the lock of its place, in a ``with`` block. There
is no list of free ones from which one is taken and to which it must be given back: whatever ends
the use of a connection, at any bytecode, releases that lock.

**What state it is in.** The connection knows whether a request is under way
(`NbdConnection.is_at_rest`). One that an interrupt left in the middle of a request is not used
again: the server may be waiting for the rest of it. The next thread that comes to the place
throws it away, and the place may get another one.

**What must not happen here.** No connection is added while something is written and not flushed:
it may reach a server that was started again, which lacks that (N65). Where there is no
connection left, the error says so, and what was not flushed is repeated first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from blobstore.image.remote.nbd_connection import NbdConnection
from formats.errors import DeviceError, FormatError
from formats.logs import LateLogger
from formats.process import OwnedLock

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from blobstore.image.remote.nbd_connection import NbdAddress
    from formats.process import Owner

_log = LateLogger(__name__)

_Result = TypeVar("_Result")

#: Connections at a time, where the server says that several are safe.
_MOST: Final = 4


class _Place:
    """Where a connection may be.

    Attributes:
        lock: Held by the thread that uses the connection, or changes it.
        connection: The connection, if there is one.
        is_busy: Whether a thread uses it. Only a hint where to look first: an interrupt may leave
            it wrong, until the next thread has been here.
    """

    __slots__ = ("connection", "is_busy", "lock")

    def __init__(self, owner: Owner) -> None:
        self.lock = OwnedLock(owner)
        self.connection: NbdConnection | None = None
        self.is_busy = False

    @property
    def is_empty(self) -> bool:
        """Whether there is no connection now."""
        return self.connection is None


class NbdConnections:
    """Up to so many connections to one export."""

    def __init__(
        self,
        address: NbdAddress,
        first: NbdConnection,
        *,
        several: bool,
        owner: Owner,
        all_is_durable: Callable[[], AbstractContextManager[bool]],
    ) -> None:
        """Begin with one connection.

        Args:
            address: Where others are made to.
            first: That one; closed by this from now on.
            several: Whether there may be more than one.
            owner: The process that may use them.
            all_is_durable: Yields whether a connection may be added, and stays so in its block.
        """
        self._address = address
        self._owner = owner
        self._all_is_durable = all_is_durable
        self._places = [_Place(owner) for _ in range(_MOST if several else 1)]
        self._places[0].connection = first
        self._may_add = several
        #: Held while one is added. Others wait for that: then they add theirs.
        self._adding = OwnedLock(owner)
        self._next = 0
        #: Why none of them is used any more.
        self._broken: OSError | FormatError | None = None
        self._is_closed = False

    def use(self, action: Callable[[NbdConnection], _Result]) -> _Result:
        """Return what ``action`` does with a connection that no other thread uses meanwhile.

        Raises:
            OSError, FormatError: It broke, or another one did before: none is used any more.
            ValueError: They were closed.
            DeviceError: As ``action``.
        """
        while True:
            place = self._chosen()
            # Nothing else in the block: at the edges of a `try` in it, an interrupt at a bytecode
            # could leave the lock taken.
            with place.lock:
                done = self._use(place, action)
            if done is not None:
                break
        if self._broken is not None or self._is_closed:
            self._sweep()  # which could not have this one before
        return done[0]

    def give_up(self, cause: OSError | FormatError) -> None:
        """Abandon them; one that another thread uses, when that has done so."""
        self._broken = cause
        self._sweep()

    def close(self) -> None:
        """Close them; one that another thread uses, when that has done so.

        In a child of the process they are its parent's, to which nothing is said.
        """
        self._is_closed = True
        if not self._owner.is_other:
            self._sweep()
            return
        for place in self._places:
            connection, place.connection = place.connection, None
            if connection is not None:
                connection.release()

    # ---------------------------------------------------------- internal

    def _use(
        self, place: _Place, action: Callable[[NbdConnection], _Result]
    ) -> tuple[_Result] | None:
        """Return what ``action`` returns, or None if there is no connection to be used.

        The caller holds the lock of the place.
        """
        connection = place.connection
        if connection is None or not connection.is_at_rest:
            # Given up; or an interrupt came in the middle of a request.
            place.connection, place.is_busy = None, False
            if connection is not None:
                connection.abandon()
            return None
        place.is_busy = True
        try:
            return (action(connection),)
        except (OSError, FormatError) as error:
            self._broken = error
            raise
        finally:
            place.is_busy = False

    def _chosen(self) -> _Place:
        """Return a place that should have a connection for this thread; `OSError` if none has."""
        if self._is_closed:
            raise ValueError(f"the {self._address} was closed")
        if self._broken is not None:
            raise ConnectionAbortedError(str(self._broken)) from self._broken
        while True:
            if (free := self._claimed()) is not None:
                return free
            if self._may_add and self._added():
                continue
            if (free := self._claimed()) is not None:
                return free  # another thread has added it, or does not need it any more
            there = [place for place in self._places if not place.is_empty]
            if not there:
                raise ConnectionAbortedError("an interrupt ended the only connection [N80]")
            if not any(map(_was_left, there)):
                # All are in use: wait for one, not always for the same.
                self._next += 1
                return there[self._next % len(there)]

    def _claimed(self) -> _Place | None:
        """Return a place that looks free, and does not from now on."""
        for place in self._places:
            # Nothing is called in between: no other thread finds it free as well.
            if not place.is_busy and place.connection is not None:
                place.is_busy = True
                return place
        return None

    def _added(self) -> bool:
        """Add a connection, unless there must not be another one (N65)."""
        with self._adding, self._all_is_durable() as may_add:
            place = next((place for place in self._places if place.is_empty), None)
            if place is None or not may_add:
                return False
            with place.lock:
                self._fill(place)
            return not place.is_empty

    def _fill(self, place: _Place) -> None:
        """Connect once more; the caller holds the lock of the place."""
        try:
            place.connection = NbdConnection(self._address)
        except (OSError, DeviceError, FormatError) as error:
            # Those that there are do as well (N81).
            _log.info("%s: no further connection: %s", self._address, error)
            self._may_add = False
        place.is_busy = False

    def _sweep(self) -> None:
        """Close each that no thread uses."""
        for place in self._places:
            if place.lock.is_mine:
                continue  # in the middle of a request, which notices by itself
            with place.lock.within(0) as is_mine:
                if is_mine:
                    self._empty(place)

    def _empty(self, place: _Place) -> None:
        """Close the connection there; the caller holds the lock of the place."""
        connection, place.connection = place.connection, None
        if connection is None:
            return
        if self._broken is None and connection.is_at_rest:
            connection.close()
        else:
            connection.abandon()


def _was_left(place: _Place) -> bool:
    """Say whether no thread uses it although it looks so, and have it found from now on."""
    with place.lock.within(0) as is_free:
        if is_free:
            place.is_busy = False
        return is_free
