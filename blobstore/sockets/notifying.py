"""Telling a service manager how this process is doing (sd_notify(3))."""

from __future__ import annotations

import os
import socket
import time
from typing import Final

from formats.logs import LateLogger

_log = LateLogger(__name__)

#: Seconds that the manager may take to have room for a message.
_PATIENCE: Final = 1.0
_MICROSECONDS: Final = 1_000_000


class Notifier:
    """Sends messages to the service manager, if there is one; none of them fails.

    Attributes:
        watchdog: Seconds within which `alive` must be called again; None if it need not be.
    """

    def __init__(self) -> None:
        """Find the manager in the environment, and take it out of there."""
        self._place = os.environ.pop("NOTIFY_SOCKET", None)
        period = os.environ.pop("WATCHDOG_USEC", None)
        process = os.environ.pop("WATCHDOG_PID", None)
        wanted = self._place and process in (None, str(os.getpid()))
        self.watchdog: float | None = None
        if wanted and period is not None and period.isdecimal() and int(period):
            self.watchdog = int(period) / _MICROSECONDS

    def ready(self, status: str) -> None:
        """Say that all sockets listen; also after `reloading`."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that the configuration is read again; `ready` follows."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self, status: str) -> None:
        """Say that this process ends."""
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """Say what this process does."""
        self._send(f"STATUS={status}")

    def succeeded(self, process: int) -> None:
        """Say that another process is the main one of the service from now on."""
        self._send(f"MAINPID={process}")

    def alive(self) -> None:
        """Say that this process is not stuck."""
        if self.watchdog is not None:
            self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if not self._place:
            return
        # A name that begins with @ is in the abstract name space.
        place = "\0" + self._place[1:] if self._place.startswith("@") else self._place
        message = "\n".join(one.replace("\n", " ") for one in assignments)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
                manager.settimeout(_PATIENCE)
                manager.connect(place)
                manager.send(message.encode())
        except OSError as error:
            _log.warning("cannot tell the service manager %s: %s", assignments[0], error.strerror)
