"""What the product's code finds as `threading` and `time`: locks and a clock of the scheduler.

Only the names that the product uses are here; another one is an `AttributeError`, and so a
reason to add it and not a way around the simulation.
"""

from __future__ import annotations

import threading as real_threading
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent

from formats.process import OwnedLock
from tests.simulation.scheduler import KilledError, Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from formats.process import Owner
    from tests.simulation.scheduler import Scheduler


class Threads:
    """A module `threading` of one simulation."""

    TIMEOUT_MAX = real_threading.TIMEOUT_MAX

    def __init__(self, scheduler: Scheduler, interleave: float) -> None:
        """Hold up a thread that takes a lock with this probability, even if that is free."""
        self.scheduler = scheduler
        self.interleave = interleave

    def Lock(self) -> _Lock:  # noqa: N802  as it is named there
        return _Lock(self)

    def RLock(self) -> _RLock:  # noqa: N802
        return _RLock(self)

    def Condition(self, lock: _RLock | None = None) -> _Condition:  # noqa: N802
        return _Condition(self, lock or _RLock(self))

    def Event(self) -> _Event:  # noqa: N802
        return _Event(self)

    def Thread(  # noqa: N802
        self,
        *,
        target: Callable[..., object],
        args: tuple[object, ...] = (),
        name: str = "",
        daemon: bool = False,
    ) -> _Thread:
        del daemon
        return _Thread(self, lambda: target(*args), name)

    def owned_lock(self, owner: Owner) -> _OwnedLock:
        """Return what stands for `formats.process.OwnedLock`."""
        return _OwnedLock(self, owner)


class _Lock:
    """Held by one task; those that wait compete for it when it is free, as threads do."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._scheduler = threads.scheduler
        self._holder: object | None = None
        self._waiting: list[Task] = []

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler, me = self._scheduler, getcurrent()
        if type(me) is Task:
            if not me.process.alive:
                raise KilledError
            if scheduler.random.random() < self._threads.interleave:
                scheduler.pause()
        deadline = None if timeout < 0 else scheduler.now + timeout
        while self._holder is not None:
            left = None if deadline is None else deadline - scheduler.now
            if not blocking or (left is not None and left <= 0):
                return False
            self._waiting.append(me)
            if not scheduler.wait(left):
                self._waiting.remove(me)
        self._holder = me
        return True

    def release(self) -> None:
        self._holder = None
        if self._waiting:
            chosen = int(self._scheduler.random.random() * len(self._waiting))
            self._scheduler.wake(self._waiting.pop(chosen))

    def locked(self) -> bool:
        return self._holder is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class _RLock(_Lock):
    """The same, and its holder may take it again."""

    _depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._holder is getcurrent():
            self._depth += 1
            return True
        if super().acquire(blocking, timeout):
            self._depth = 1
            return True
        return False

    def release(self) -> None:
        me: Any = getcurrent()
        if self._holder is not me:
            if type(me) is Task and not me.process.alive:
                return
            raise RuntimeError("cannot release a lock of another thread")
        self._depth -= 1
        if not self._depth:
            super().release()

    def _is_owned(self) -> bool:
        return self._holder is getcurrent()

    def let_go(self) -> int:
        """Release it altogether; return how often it was taken."""
        depth, self._depth = self._depth, 1
        self.release()
        return depth

    def take_back(self, depth: int) -> None:
        self.acquire()
        self._depth = depth


class _OwnedLock(_RLock):
    """Stands for `formats.process.OwnedLock`: no simulated process forks."""

    is_mine = OwnedLock.is_mine
    within = OwnedLock.within

    def __init__(self, threads: Threads, owner: Owner) -> None:
        super().__init__(threads)
        self.owner = owner


class _Condition:
    def __init__(self, threads: Threads, lock: _RLock) -> None:
        self._scheduler = threads.scheduler
        self._lock = lock
        self._waiting: list[Task] = []

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        me: Any = getcurrent()
        self._waiting.append(me)
        depth = self._lock.let_go()
        woken = False
        try:
            woken = self._scheduler.wait(timeout)
        finally:
            if not woken and me in self._waiting:
                self._waiting.remove(me)
        self._lock.take_back(depth)
        return woken

    def notify(self, count: int = 1) -> None:
        for _ in range(min(count, len(self._waiting))):
            self._scheduler.wake(self._waiting.pop(0))

    def notify_all(self) -> None:
        self.notify(len(self._waiting))


class _Event:
    def __init__(self, threads: Threads) -> None:
        self._scheduler = threads.scheduler
        self._set = False
        self._waiting: list[Task] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            self._scheduler.wake(task)

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set:
            me: Any = getcurrent()
            self._waiting.append(me)
            self._scheduler.wait(timeout)
            if me in self._waiting:
                self._waiting.remove(me)
        return self._set


class _Thread:
    def __init__(self, threads: Threads, work: Callable[[], object], name: str) -> None:
        self._scheduler = threads.scheduler
        self._work, self.name = work, name
        self._task: Task | None = None

    def start(self) -> None:
        me: Any = getcurrent()
        self._task = self._scheduler.spawn(me.process, self.name, self._work)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.ended

    def join(self, timeout: float | None = None) -> None:
        me: Any = getcurrent()
        task = self._task
        if task is not None and not task.ended and me is not task:
            task.joining.append(me)
            if not self._scheduler.wait(timeout):
                task.joining.remove(me)


class Time:
    """A module `time` of one simulation."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def monotonic(self) -> float:
        return self._scheduler.now

    def time(self) -> float:
        return 1.8e9 + self._scheduler.now

    def sleep(self, seconds: float) -> None:
        self._scheduler.sleep(seconds)
