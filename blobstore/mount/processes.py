"""What is to be known of the processes that use files (M13, M15)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Protocol

#: Of a task that a signal ends (PF_SIGNALED in Linux).
_SIGNALED: Final = 0x400
_GROUP: Final = re.compile(rb"^Tgid:\s*(\d+)$", re.MULTILINE)
_PROC: Final = Path("/proc")


class Processes(Protocol):
    """Knows processes by the numbers of their threads; 0 is one that is not visible here."""

    def group(self, thread: int) -> int:
        """Return the process of a thread; the thread itself if that is not known."""

    def is_killed(self, thread: int) -> bool:
        """Say whether a signal is ending the process."""


class SystemProcesses:
    """Those of this machine, as ``/proc`` shows them."""

    def group(self, thread: int) -> int:
        found = _GROUP.search(_read(thread, "status"))
        return thread if found is None else int(found[1])

    def is_killed(self, thread: int) -> bool:
        # The name, in brackets, may have anything in it. The flags are the seventh field after.
        fields = _read(thread, "stat").rpartition(b")")[2].split()
        return len(fields) > 6 and bool(int(fields[6]) & _SIGNALED)


def namespaces() -> list[str]:
    """Return in which numbers of processes, and in which table of mounts, this process is."""
    try:
        return [str((_PROC / "self" / "ns" / name).readlink()) for name in ("pid", "mnt")]
    except OSError:  # not Linux, or hidden
        return []


def _read(thread: int, name: str) -> bytes:
    if not thread:
        return b""
    try:
        return (_PROC / str(thread) / name).read_bytes()
    except OSError:  # it has ended
        return b""
