"""Signals for a program that waits: a handler that runs, and a wait that ends.

Python calls a handler between two bytecodes of the main thread. A signal that arrives when
the last bytecode before a wait is over, or in another thread, interrupts no wait: the handler
would run whenever the main thread happens to wake up. So the signal is also written to a
descriptor on which the main thread waits (`signal.set_wakeup_fd`).
"""

from __future__ import annotations

import signal
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


class Waker:
    """Ends the wait of a thread that waits for this, among other things, to be readable."""

    def __init__(self) -> None:
        # Sockets and not a pipe: who wakes after `close` finds them closed, and not another
        # file that has the number of a descriptor by then.
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)

    def fileno(self) -> int:
        """Return what to wait for."""
        return self._reading.fileno()

    @property
    def waking_fd(self) -> int:
        """What wakes the other thread when a byte is written to it."""
        return self._writing.fileno()

    def wake(self) -> None:
        """End the wait, or the next one; from any thread and any handler."""
        with suppress(OSError):  # it is full of reasons to wake up, or was closed
            self._writing.send(b"\0")

    def clear(self) -> None:
        """Forget all reasons so far; the woken thread calls it before it looks for them."""
        with suppress(BlockingIOError):
            while self._reading.recv(4096):
                pass

    def __del__(self) -> None:
        """Let go of one whose owner did not end in order."""
        self.close()

    def close(self) -> None:
        """Let go of it; twice is fine."""
        self._reading.close()
        self._writing.close()


@contextmanager
def handled(
    numbers: Iterable[signal.Signals], handler: Callable[[int], object], waker: Waker
) -> Iterator[None]:
    """Call ``handler`` at these signals in the block, and wake the main thread up for it.

    Args:
        numbers: Of the signals.
        handler: Called with the number, in the main thread.
        waker: What the main thread waits for; each signal for which there is any handler
            wakes it.
    """
    before: dict[signal.Signals, object] = {}
    woken = signal.set_wakeup_fd(waker.waking_fd, warn_on_full_buffer=False)
    try:
        for number in numbers:
            before[number] = signal.signal(number, lambda found, _: handler(found))
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)  # type: ignore[arg-type]  # as it was given
        signal.set_wakeup_fd(woken)
