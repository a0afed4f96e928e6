"""The operating system's side of a worker: whether it runs, how it ends (V75, V85).

The owner that started a worker is its parent. One that was passed a worker is not, so it
cannot ask for its exit code; a descriptor of the process tells it of the end, and never
means another process (pidfd_open(2), Linux only).
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from typing import Protocol


class Life(Protocol):
    """A process that runs, or has ended.

    Attributes:
        descriptor: Of the process, for another owner; None where the system has none.
    """

    descriptor: int | None

    def ends_within(self, seconds: float | None) -> bool:
        """Wait for its end, without a limit if that is None; say whether it came."""

    def kill(self) -> None:
        """End it without order, and wait for that."""

    def code(self) -> int | None:
        """Return how it ended: its exit code, minus the signal, or None if that is not known."""

    def close(self) -> None:
        """Close the descriptor; the process goes on, if it has not ended."""


class Child:
    """A process that this one started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Watch over a process that was not waited for yet."""
        self._process = process
        self.descriptor: int | None = None
        if sys.platform == "linux":
            self.descriptor = os.pidfd_open(process.pid)

    def ends_within(self, seconds: float | None) -> bool:
        """Wait for its end; it is reaped then."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End it without order, and wait for that."""
        self._process.kill()
        self._process.wait()

    def code(self) -> int | None:
        """Return how it ended."""
        return self._process.returncode

    def close(self) -> None:
        """Close the descriptor."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


class Passed:
    """A process that another owner started."""

    def __init__(self, descriptor: int) -> None:
        """Watch over the process of a descriptor, which this takes."""
        self._descriptor = descriptor
        self.descriptor: int | None = descriptor

    def ends_within(self, seconds: float | None) -> bool:
        """Wait for its end. Its parent reaps it."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        return bool(poll.poll(None if seconds is None else seconds * 1000))

    def kill(self) -> None:
        """End it without order, and wait for that."""
        assert sys.platform == "linux", "there are such descriptors"
        try:
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        except ProcessLookupError:
            return  # it has ended
        self.ends_within(None)

    def code(self) -> None:
        """Return None: only a parent learns it."""

    def close(self) -> None:
        """Close the descriptor."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None
