"""Commits as lines of JSON, told to those who watch (O66 to O68)."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Final, Self

from blobstore.owner import documents
from blobstore.owner.problems import RefusedError
from blobstore.owner.resources import LINES, Found, Method, Reply, Request, Resources

if TYPE_CHECKING:
    from blobstore.store.changes import ChangeWatch
    from blobstore.store.store import Store

#: Watches at the same time, and seconds after which a line says that nothing happened.
MOST: Final = 16
KEEP_ALIVE: Final = 15

_NUMBER = re.compile(r"-?[0-9]{1,20}")


class Watches:
    """The watches of HTTP clients. Threads may share it."""

    def __init__(self, store: Store, *, most: int = MOST) -> None:
        """Have the store remember its commits from now on."""
        self._store = store
        self._most = most
        self._lock = threading.Lock()
        self._open: set[WatchLines] = set()
        self._stopped = False
        store.changes().close()

    def open(self, since: int | None, keep_alive: float) -> WatchLines:
        """Return the lines of a watch, which gives back its place when it is closed.

        Raises:
            RefusedError: There are too many, or the owner ends (503).
            ArgumentError: As `Store.changes`.
        """
        with self._lock:
            if self._stopped or len(self._open) >= self._most:
                raise RefusedError(
                    503, "the owner has too many watches", "O68", (("retry-after", "1"),)
                )
            lines = WatchLines(self, self._store.changes(since, timeout=keep_alive))
            self._open.add(lines)
        return lines

    def forget(self, lines: WatchLines) -> None:
        """Let another watch have the place of this one."""
        with self._lock:
            self._open.discard(lines)

    def start(self) -> None:
        """Take watches, again after `stop`."""
        with self._lock:
            self._stopped = False

    def stop(self) -> None:
        """End all watches after what was committed until now: their replies are complete then."""
        with self._lock:
            self._stopped = True
            found = list(self._open)
        for lines in found:
            lines.finish()


class WatchLines:
    """The body of a reply to a watch: a line for each item, when it comes."""

    def __init__(self, watches: Watches, watch: ChangeWatch) -> None:
        self._watches = watches
        self._watch = watch

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        return documents.encode(next(self._watch)) + b"\n"

    def finish(self) -> None:
        """End the lines after what was committed until now."""
        self._watch.finish()

    def close(self) -> None:
        """End the watch; twice is fine."""
        self._watch.close()
        self._watches.forget(self)


class ChangeResources:
    """Answers with what was committed."""

    def __init__(self, watches: Watches) -> None:
        """Answer from these watches."""
        self._watches = watches

    def resources(self) -> Resources:
        """Return these resources."""
        flags = frozenset({"since", "keep_alive"})
        return {"/v1/changes": {"GET": Method(self._changes, flags=flags)}}

    def _changes(self, _request: Request, resource: Found) -> Reply:
        since, keep_alive = _number(resource, "since"), _number(resource, "keep_alive")
        if keep_alive is None or keep_alive > KEEP_ALIVE:
            keep_alive = KEEP_ALIVE
        return Reply(200, (LINES,), self._watches.open(since, max(keep_alive, 1)))


def _number(resource: Found, flag: str) -> int | None:
    text = resource.flags.get(flag)
    if text is None:
        return None
    if not _NUMBER.fullmatch(text):
        raise RefusedError(400, f"{flag} must be a whole number, not {text!r}", "O67")
    return int(text)
