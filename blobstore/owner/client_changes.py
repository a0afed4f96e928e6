"""The commits of an owner, as they happen (O66 to O68)."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

from blobstore.owner import documents, problems
from blobstore.owner.exchange import Exchange
from blobstore.store.changes import CommitInfo
from blobstore.store.session import Closing
from formats.errors import ArgumentError, DeviceError

if TYPE_CHECKING:
    from pathlib import Path

#: Seconds after which the owner says that it is there, and after which it has gone.
_KEEP_ALIVE: Final = 15
_SILENCE: Final = 60.0


class ClientWatch(Closing):
    """Iterates over the commits of an owner. `StoreClient.changes` makes it.

    It ends when it is closed, from any thread, or the owner ends. In addition to what a watch in
    the owner's process does it raises `DeviceError` if the owner went away.
    """

    def __init__(self, path: Path, since: int | None, timeout: float | None) -> None:
        """Connect to the owner's socket and watch; use `StoreClient.changes` instead."""
        if timeout is not None and not timeout >= 0:  # NaN is refused as well
            raise ArgumentError(f"timeout must be at least 0 seconds, not {timeout}")
        self._timeout = timeout
        self._closed = False
        seconds = _KEEP_ALIVE if timeout is None else max(1, min(int(timeout), _KEEP_ALIVE))
        query = f"?keep_alive={seconds}" + ("" if since is None else f"&since={since}")
        self._exchange = Exchange(path, timeout=_SILENCE)
        self._lines = self._exchange.stream("GET", f"/v1/changes{query}")
        self._first: CommitInfo | None = None
        try:
            # At once: what is wrong with the arguments is told to who gave them, and what is
            # committed from now on is told.
            self._first = self._read()
        except BaseException:
            self._exchange.close()
            raise
        self._position = -1

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> CommitInfo:
        """Return the next commit, or where the watch stands, as `Store.changes` says."""
        began = time.monotonic()
        found, self._first = self._first, None
        while not self._closed:
            found = found or self._read()
            if found is None:
                break
            is_news = found.missed or found.generation != self._position
            self._position = found.generation
            late = self._timeout is not None and time.monotonic() - began >= self._timeout
            if is_news or late:
                return found
            found = None
        raise StopIteration

    def _read(self) -> CommitInfo | None:
        """Return what the owner tells next; None at the end."""
        try:
            answer = next(self._lines, None)
        except DeviceError:
            if self._closed:
                return None
            raise
        if answer is None:
            return None
        if answer.status >= 400:
            raise problems.error_of(answer.status, answer.body)
        return documents.decode(answer.body, CommitInfo)

    def close(self) -> None:
        """End the iteration, also one that waits in another thread. Twice is fine."""
        self._closed = True
        self._exchange.interrupt()
        with suppress(ValueError):  # it waits in another thread, which then ends it
            self._lines.close()
            self._exchange.close()
