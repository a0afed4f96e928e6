"""Telling others of commits, after they are durable (O66, O67)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from blobstore.container.recent import SectionChange  # noqa: TC001  what encodes it reads annotations
from blobstore.store.session import Closing
from formats.errors import ArgumentError

if TYPE_CHECKING:
    from blobstore.store.news import News
    from blobstore.store.session import Session

#: Seconds after which a watch looks again in any case: an interrupt may have ended a commit
#: after it was durable and before it was told.
_LOOK: Final = 1.0


@dataclass(frozen=True, slots=True)
class CommitInfo:
    """What a watch tells: a commit, or where it stands.

    Attributes:
        generation: Of the commit. Without changes: up to which all was told.
        changes: What the commit did; empty if this is not a commit.
        missed: Whether there were commits since the last item that cannot be told any more:
            look at the whole store again.
    """

    generation: int
    changes: tuple[SectionChange, ...] = ()
    missed: bool = False


class ChangeWatch(Closing):
    """Iterates over the commits of an open store. `Store.changes` makes it.

    It waits for the next commit. It ends when it is closed, from any thread, or the store is.
    """

    def __init__(
        self, session: Session, news: News, since: int | None, timeout: float | None
    ) -> None:
        """Watch from ``since`` on; use `Store.changes` instead."""
        if since is not None and since < 0:
            raise ArgumentError(f"a generation must be at least 0, not {since}")
        if timeout is not None and not timeout >= 0:  # NaN is refused as well
            raise ArgumentError(f"timeout must be at least 0 seconds, not {timeout}")
        self._session = session
        self._news = news
        self._position = since
        self._begun = False
        self._timeout = timeout
        self._closed = self._ending = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> CommitInfo:
        """Return the next commit, or where the watch stands, as `Store.changes` says."""
        session, condition = self._session, self._news.condition
        session.lock.owner.require()
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        with condition:
            while not self._closed:
                found = self._look()
                if found is not None:
                    return found
                if self._ending or session.closed:
                    break
                left = _LOOK if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    assert self._position is not None, "looking found where it stands"
                    return CommitInfo(self._position)
                condition.wait(min(left, _LOOK))
        raise StopIteration

    def _look(self) -> CommitInfo | None:
        """Return what there is to tell now, without waiting for the lock of the store."""
        recent = self._session.container.directory.recent
        assert recent is not None, "what is followed remembers"
        begun, self._begun = self._begun, True
        if self._position is None:
            self._position = recent.newest
        if not recent.start <= self._position <= recent.newest:
            self._position = recent.newest
            return CommitInfo(self._position, missed=True)
        if not begun:
            return CommitInfo(self._position)
        for generation, changes in recent.commits:
            if generation > self._position:
                self._position = generation
                return CommitInfo(generation, changes or (), missed=changes is None)
        return None

    def finish(self) -> None:
        """End the iteration after what was committed until now, from any thread."""
        self._ending = True
        self._news.tell()

    def close(self) -> None:
        """End the iteration, also one that waits in another thread. Twice is fine."""
        self._closed = True
        if not self._session.lock.owner.is_other:
            self._news.tell()
