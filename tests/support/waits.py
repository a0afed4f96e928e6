"""Signals that interrupt no wait: as if they came right before one began."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def signal_without_interrupting(number: signal.Signals, after: float) -> None:
    """Send this process a signal in a moment, to a thread that is not the main one.

    The system interrupts the wait of the thread that gets a signal. Python runs its
    handler in the main thread, whose wait goes on.
    """

    def send() -> None:
        time.sleep(after)
        signal.pthread_kill(threading.get_ident(), number)
        time.sleep(60)

    threading.Thread(target=send, daemon=True).start()


def ends(script: str, *arguments: object) -> None:
    """Check that a Python program ends well, and soon."""
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
