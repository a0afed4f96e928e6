"""A handler for `logging` that never waits for who reads the log (O152).

A pipe that is not read takes 64 KiB and then holds whoever writes to it: with a handler of
`logging`, one thread in the lock of the handler, and soon all others.
"""

from __future__ import annotations

import logging  # noqa: TID251  who imports this has something to log
import os
import select

#: More could not be written to a pipe without waiting: what it takes at once (POSIX).
_MOST_BYTES = select.PIPE_BUF


class PatientHandler(logging.Handler):
    """Writes each message to a descriptor, if that takes it now; else counts it, and goes on."""

    def __init__(self, descriptor: int) -> None:
        """Write to ``descriptor``, which stays open."""
        super().__init__()
        self._descriptor = descriptor
        self._lost = 0

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, cut to what is taken as a whole; called with the handler's lock."""
        if self._lost:
            lost = logging.makeLogRecord(
                {"msg": f"{self._lost} messages were lost: not read in time"}
            )
            lost.levelno, lost.levelname = record.levelno, record.levelname
            if self._write(lost):
                self._lost = 0
        if self._lost or not self._write(record):
            self._lost += 1

    def _write(self, record: logging.LogRecord) -> bool:
        line = self.format(record).encode(errors="backslashreplace")
        try:
            if not self._takes():
                return False
            os.write(self._descriptor, line[: _MOST_BYTES - 1] + b"\n")
        except OSError:
            return False  # the reader has gone, or the disk is full
        return True

    def _takes(self) -> bool:
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        # Where it says yes, a pipe has room for `_MOST_BYTES`; a file always says yes.
        return bool(poll.poll(0))
