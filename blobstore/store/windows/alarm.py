"""When buffered writes are committed without a flush (C62's commits of windows)."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


class Alarm:
    """Rings once nothing was touched for a while, or something has waited too long.

    Its thread starts when something is touched, and ends by itself when it wakes
    and nothing waits: at most ``idle`` or ``longest`` seconds later. It keeps
    no interpreter alive.
    """

    def __init__(
        self,
        ring: Callable[[], None],
        lock: AbstractContextManager[object],
        *,
        idle: float,
        longest: float,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Be silent until `touch`.

        Args:
            ring: Called in the alarm's thread with ``lock`` held; what waited
                then counts as done, also if it fails.
            lock: Guards this object; its methods are called with it held.
            idle: Seconds without a touch, from the last one on.
            longest: Seconds from the first touch on.
            clock: Returns seconds; never goes back. By default `time.monotonic`.
        """
        if not (idle >= 0 and longest >= 0):  # NaN is refused as well
            raise ValueError(f"a delay is not negative: idle={idle}, longest={longest}")
        self._ring = ring
        self._lock = lock
        self._idle = idle
        self._longest = longest
        self._clock = clock or time.monotonic
        self._first: float | None = None
        self._last = 0.0
        self._stopped = threading.Event()
        self.thread: threading.Thread | None = None

    def touch(self) -> None:
        """Note that something waits from now on."""
        self._last = self._clock()
        if self._first is None:
            self._first = self._last
        if self.thread is None:
            self._start()

    def clear(self) -> None:
        """Forget what waits: it is done."""
        self._first = None

    def stop(self) -> None:
        """Forget what waits, for good; the thread ends at once, but is not waited for."""
        self._first = None
        self._stopped.set()

    def poll(self) -> float | None:
        """Ring if it is time; return the seconds until it may be, None if nothing waits."""
        with self._lock:
            if self._first is not None and self._left(self._first) <= 0:
                self._first = None
                try:
                    self._ring()
                except BaseException:
                    self.thread = None  # it ends here; the next touch starts another
                    raise
            if self._first is None:
                self.thread = None
                return None
            return self._left(self._first)

    def _left(self, first: float) -> float:
        return min(self._last + self._idle, first + self._longest) - self._clock()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="blobstore window", daemon=True)
        thread.start()
        self.thread = thread  # not before: one that never started would be waited for

    def _run(self) -> None:
        # Nothing is due before that, and most writes are flushed sooner: a thread that
        # looked at once would end at once, and each write start another. What is touched
        # meanwhile is due later than what was, so it never has to be woken but to stop.
        left: float | None = min(self._idle, self._longest)
        while left is not None:
            self._stopped.wait(min(left, threading.TIMEOUT_MAX))
            left = self.poll()
