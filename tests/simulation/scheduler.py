"""Threads that run one at a time, in the order that a seed decides, with a clock of their own.

A task is a greenlet: it runs until it pauses or waits, and the scheduler then picks what happens
next. Each such decision is a **step**: a task goes on, or an event (a message that arrives, a
timer, a fault) takes place. Nothing here asks the operating system for time, chance or threads.
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    from collections.abc import Callable

#: Seconds that pass with each step, so that code which never waits cannot stop the clock.
TICK: Final = 5e-6
#: Events that a failure shows.
TRACED: Final = 60


class KilledError(BaseException):
    """Ends the tasks of a process that died; nothing that they do after that has an effect."""


class SimulationError(AssertionError):
    """A guarantee of the product was broken, or the simulation got stuck."""


class Process:
    """What dies at once: a program on a host, with all its threads.

    Attributes:
        name: For traces; unique.
        host: Name of the machine that it runs on.
        alive: Whether it runs. Afterwards nothing that it does has an effect.
        at_death: Called when it dies: gives back what the kernel gives back.
    """

    def __init__(self, scheduler: Scheduler, name: str, host: str) -> None:
        self.scheduler = scheduler
        self.name, self.host = name, host
        self.alive = True
        self.tasks: dict[Task, None] = {}
        self.at_death: list[Callable[[], None]] = []

    def kill(self) -> None:
        """End it between two steps, with all its tasks. Only events may call it, not tasks."""
        if not self.alive:
            return
        self.alive = False
        self.scheduler.note(f"{self.name} dies")
        for task in list(self.tasks):
            task.ended = True
            if task.has_begun:
                task.throw(KilledError)
        self.tasks.clear()
        for give_back in list(self.at_death):
            give_back()

    def require_alive(self) -> None:
        if not self.alive:
            raise KilledError


class Task(greenlet):  # type: ignore[misc]  # which greenlet permits
    """A thread of a process."""

    def __init__(self, process: Process, name: str, work: Callable[[], object]) -> None:
        super().__init__(self._work, process.scheduler.hub)
        self.process = process
        self.name = name
        self.tag = name.encode()
        self.wakes = 0
        self.is_waiting = False
        self.timed_out = False
        self.has_begun = self.ended = False
        self._do = work
        self.joining: list[Task] = []

    def _work(self) -> None:
        scheduler = self.process.scheduler
        self.has_begun = True
        try:
            self._do()
        except KilledError:
            pass
        except BaseException as error:  # noqa: BLE001  no thread of the product may end so
            if self.process.alive:
                scheduler.fail(error, f"{self.name} ended by {type(error).__name__}: {error}")
        finally:
            self.ended = True
            self.process.tasks.pop(self, None)
            for other in self.joining:
                scheduler.wake(other)


class Timer:
    """An event that takes place at some time, unless it is cancelled."""

    __slots__ = ("callback", "tag")

    def __init__(self, tag: str, callback: Callable[[], None]) -> None:
        self.tag = tag
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


#: When, by the clock or in steps; a number that keeps the order; and what.
_Due = tuple[float, int, Timer]


class Scheduler:
    """Decides what happens next.

    Attributes:
        random: The only source of chance.
        now: Seconds on the simulated clock.
        steps: Decisions so far.
        digest: Of all decisions so far: two runs with the same digest were the same.
        stall: How likely a task that pauses is held up for long, as by a busy machine.
        stall_seconds: For how long, on average.
        stalled: What the names of the tasks begin with that this happens to.
    """

    def __init__(self, seed: int, traced: int = TRACED) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.steps = 0
        self.digest = 0
        self.stall = 0.0
        self.stall_seconds = 0.01
        self.stalled = ""
        self.failure: tuple[BaseException, str] | None = None
        self.hub = getcurrent()
        self.trace: deque[tuple[int, float, str]] = deque(maxlen=traced)
        self._ready: list[Task] = []
        self._timers: list[_Due] = []
        self._number = 0
        # Events of a step, as others are of a time.
        self._due: list[_Due] = []

    # ------------------------------------------------------- for what runs

    def spawn(self, process: Process, name: str, work: Callable[[], object]) -> Task:
        """Start a task; it runs when it is picked."""
        process.require_alive()
        task = Task(process, f"{process.name}/{name}", work)
        process.tasks[task] = None
        self._ready.append(task)
        return task

    def pause(self) -> None:
        """Let anything else happen first; does nothing outside of tasks."""
        task = getcurrent()
        if type(task) is not Task:
            return
        if not task.process.alive:
            raise KilledError
        if self.stall and task.name.startswith(self.stalled) and self.random.random() < self.stall:
            self.wait(self.random.expovariate(1 / self.stall_seconds))
            return
        self._ready.append(task)
        self.hub.switch()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until `wake`; say whether it came within these seconds."""
        task = getcurrent()
        if type(task) is not Task:
            raise SimulationError("only tasks wait")
        if not task.process.alive:
            raise KilledError
        task.is_waiting, task.timed_out = True, False
        timer = None
        if seconds is not None:
            wakes = task.wakes

            def ring() -> None:
                if task.wakes == wakes:
                    task.timed_out = True
                    self.wake(task)

            timer = self.at(self.now + max(seconds, 0.0), "timer", ring)
        self.hub.switch()
        if timer is not None:
            timer.cancel()
        return not task.timed_out

    def wake(self, task: Task) -> None:
        """Have a task that waits go on some time."""
        if task.is_waiting and task.process.alive:
            task.is_waiting = False
            task.wakes += 1
            self._ready.append(task)

    def sleep(self, seconds: float) -> None:
        self.wait(seconds)

    def at(self, time: float, tag: str, callback: Callable[[], None]) -> Timer:
        """Have an event take place at some time."""
        self._number += 1
        timer = Timer(tag, callback)
        heapq.heappush(self._timers, (time, self._number, timer))
        return timer

    def after(self, seconds: float, tag: str, callback: Callable[[], None]) -> Timer:
        return self.at(self.now + seconds, tag, callback)

    def after_steps(self, steps: float, tag: str, callback: Callable[[], None]) -> None:
        """Have an event take place after so many steps, however long these take."""
        self._number += 1
        due = self.steps + steps
        heapq.heappush(self._due, (due, self._number, Timer(tag, callback)))

    def note(self, text: str) -> None:
        """Add what happened to the trace, and to the digest."""
        self.digest = zlib.crc32(text.encode(), self.digest)
        self.trace.append((self.steps, self.now, text))

    def fail(self, error: BaseException, text: str) -> None:
        """Stop: something is wrong."""
        if self.failure is None:
            self.failure = error, text

    # ------------------------------------------------------------ running

    def run(self, steps: int, until: Callable[[], bool] | None = None) -> None:
        """Go on until ``steps`` were made in all, ``until`` holds, or something fails.

        Raises:
            SimulationError: Something failed, or nothing can happen any more.
        """
        ready, timers, due, draw = self._ready, self._timers, self._due, self.random.random
        while self.steps < steps and self.failure is None and not (until and until()):
            self.now += TICK
            if due and due[0][0] <= self.steps:
                self._ring(due)
            elif timers and timers[0][0] <= self.now:
                self._ring(timers)
            elif ready:
                index = int(draw() * len(ready))
                task = ready[index]
                ready[index] = ready[-1]
                ready.pop()
                if task.ended or not task.process.alive:
                    continue
                self.steps += 1
                self.digest = zlib.crc32(task.tag, self.digest)
                task.switch()
            elif timers:
                self.now = max(self.now, timers[0][0])
                self._ring(timers)
            else:
                self.fail(SimulationError("stuck"), "nothing can happen any more")
        if self.failure is not None:
            error, text = self.failure
            raise SimulationError(text) from error

    def _ring(self, timers: list[_Due]) -> None:
        timer = heapq.heappop(timers)[2]
        callback = timer.callback
        if callback is None:
            return
        self.steps += 1
        self.digest = zlib.crc32(timer.tag.encode(), self.digest)
        timer.callback = None
        callback()


def current_process() -> Process | None:
    """Return the process whose code runs; None outside of all."""
    task: Any = getcurrent()
    return task.process if type(task) is Task else None
