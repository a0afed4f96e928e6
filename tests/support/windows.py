"""Windows whose time is told by the test."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ClassVar

from blobstore.store.windows.alarm import Alarm
from formats.container.model import Kind
from tests.support.stores import image, spec

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from blobstore.container.initialise import SectionSpec
    from formats.devices.device import ReadableBuffer
    from tests.support.devices import RecordingDevice


class ManualAlarm(Alarm):
    """Rings when the test moves the time on; it has no thread."""

    made: ClassVar[list[ManualAlarm]] = []

    def __init__(
        self, ring: Callable[[], None], lock: threading.RLock, *, idle: float, longest: float
    ) -> None:
        self.now = 100.0
        self.starts = 0
        super().__init__(ring, lock, idle=idle, longest=longest, clock=lambda: self.now)
        self.made.append(self)

    def _start(self) -> None:
        self.starts += 1
        self.thread = threading.current_thread()

    def advance(self, seconds: float) -> float | None:
        """Let time pass; return the seconds until it rings next, or None."""
        self.now += seconds
        return self.poll()


def manual_alarms(monkeypatch: pytest.MonkeyPatch) -> list[ManualAlarm]:
    """Give windows opened later an alarm that the test rings; return them as they are opened."""
    monkeypatch.setattr(ManualAlarm, "made", [])
    monkeypatch.setattr("blobstore.store.windows.buffered.Alarm", ManualAlarm)
    return ManualAlarm.made


def window_spec(name: str, size: int, content: ReadableBuffer | None = None) -> SectionSpec:
    """Return a window section to be made."""
    return spec(name, size, content, kind=Kind.WINDOW)


def window_image(
    size: int, content: ReadableBuffer | None = None, *, block_size: int = 512
) -> bytes:
    """Return a closed store of a window ``w`` and a blob ``b``."""
    return image([window_spec("w", size, content), spec("b", 100, b"b")], block_size=block_size)


def written_bytes(device: RecordingDevice) -> int:
    """Return how many bytes were written since the last call."""
    written = sum(len(write.data) for write in device.writes)
    device.log.clear()
    return written
