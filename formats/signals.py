"""Signals for a program that waits: a handler that runs, and a wait that ends.

Python calls a handler between two bytecodes of the main thread. A signal that arrives when
the last bytecode before a wait is over, or in another thread, interrupts no wait: the handler
would run whenever the main thread happens to wake up. So the signal is also written to a
descriptor on which the main thread waits (`signal.set_wakeup_fd`).
"""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


@contextmanager
def handled(
    numbers: Iterable[signal.Signals], handler: Callable[[int], object], wake: int
) -> Iterator[None]:
    """Call ``handler`` at these signals in the block, and wake the main thread up for it.

    Args:
        numbers: Of the signals.
        handler: Called with the number, in the main thread.
        wake: Descriptor of a pipe or socket, not blocking, that the main thread waits for:
            each signal for which there is any handler writes a byte to it.
    """
    before: dict[signal.Signals, object] = {}
    woken = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        for number in numbers:
            before[number] = signal.signal(number, lambda found, _: handler(found))
        yield
    finally:
        for number, known in before.items():
            signal.signal(number, known)  # type: ignore[arg-type]  # as it was given
        signal.set_wakeup_fd(woken)
