"""When windows commit although nobody asks: after a pause, and after the longest delay (C62)."""

from __future__ import annotations

import threading
import time

import pytest

from blobstore.errors import PoisonedStoreError
from formats.devices.device import MemoryDevice
from formats.errors import DeviceError
from tests.support.devices import FaultyDevice, RecordingDevice
from tests.support.stores import open_store
from tests.support.windows import ManualAlarm, manual_alarms, window_image

SIZE = 5000


@pytest.fixture
def device() -> RecordingDevice:
    return RecordingDevice(window_image(SIZE))


def test_a_pause_commits(device: RecordingDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    alarms = manual_alarms(monkeypatch)
    store = open_store(device)
    window = store.window("w", idle=2, longest=10)
    (alarm,) = alarms
    assert alarm.advance(1000) is None
    window.write(0, b"1")
    assert alarm.advance(1.5) == 0.5
    window.write(1, b"2")
    assert alarm.advance(1.5) == 0.5
    device.log.clear()
    assert alarm.advance(0.5) is None
    assert device.flushes == 1
    assert store.get("w")[:3] == b"12\0"
    assert alarm.advance(1000) is None
    assert device.flushes == 1


def test_the_longest_delay_commits(
    device: RecordingDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    alarms = manual_alarms(monkeypatch)
    store = open_store(device)
    window = store.window("w", idle=2, longest=4.5)
    (alarm,) = alarms
    left = []
    device.log.clear()
    for number in range(9):
        window.write(number, b"x")
        left.append(alarm.advance(1))
    assert left == [1, 1, 1, 0.5, None, 1, 1, 1, 0.5]
    assert device.flushes == 1
    assert store.get("w")[:6] == b"xxxxx\0"


def test_a_flush_stops_the_clock(device: RecordingDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    alarms = manual_alarms(monkeypatch)
    window = open_store(device).window("w", idle=2, longest=4)
    (alarm,) = alarms
    window.write(0, b"1")
    alarm.advance(1.5)
    window.flush()
    device.log.clear()
    assert alarm.advance(1.5) is None
    window.write(0, b"2")
    assert alarm.advance(1.5) == 0.5
    assert not device.log


def test_the_thread_commits_and_ends(device: RecordingDevice) -> None:
    """In real time, without waiting for a time to pass."""
    store = open_store(device)
    window = store.window("w", idle=0, longest=0)
    for text in (b"one", b"two"):
        window.write(0, text)
        thread = window._alarm.thread  # type: ignore[attr-defined]
        if thread:
            thread.join(60)
        assert store.get("w")[:3] == text
        assert window._alarm.thread is None  # type: ignore[attr-defined]


def test_flushed_writes_do_not_start_a_thread_each(device: RecordingDevice) -> None:
    with open_store(device) as store, store.window("w", idle=60, longest=60) as window:
        threads = set()
        for number in range(30):
            window.write(number, b"x", fua=True)
            time.sleep(0.002)  # in which a thread without a reason to wait would end
            threads.add(window._alarm.thread)  # type: ignore[attr-defined]
    assert len(threads) == 1
    assert None not in threads


class _ObservedEvent(threading.Event):
    """Says when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.set()
        return super().wait(timeout)


def test_the_thread_ends_when_the_window_is_closed(device: RecordingDevice) -> None:
    store = open_store(device)
    window = store.window("w", idle=float("inf"), longest=1e9)
    alarm = window._alarm  # type: ignore[attr-defined]
    alarm._stopped = _ObservedEvent()
    window.write(0, b"text")
    thread = alarm.thread
    assert thread.daemon
    assert alarm._stopped.waits.wait(60)
    window.close()
    thread.join(60)
    assert not thread.is_alive()
    assert store.get("w")[:4] == b"text"


def test_a_stopped_alarm_does_not_ring() -> None:
    rung: list[bool] = []
    alarm = ManualAlarm(lambda: rung.append(True), threading.RLock(), idle=1, longest=1)
    alarm.touch()
    alarm.stop()
    assert alarm.advance(10) is None
    assert not rung


def test_an_alarm_survives_what_is_rung() -> None:
    """An error that nobody foresaw ends the thread, not the alarm."""

    def ring() -> None:
        raise ZeroDivisionError

    alarm = ManualAlarm(ring, threading.RLock(), idle=1, longest=1)
    for turn in (1, 2):
        alarm.touch()
        alarm.touch()
        assert alarm.starts == turn
        with pytest.raises(ZeroDivisionError):
            alarm.advance(1)


@pytest.mark.parametrize("idle", [-1, float("nan")])
def test_a_delay_is_not_negative(device: RecordingDevice, idle: float) -> None:
    with pytest.raises(ValueError, match="negative"):
        open_store(device).window("w", idle=idle)


def test_what_fails_in_the_background_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    alarms = manual_alarms(monkeypatch)
    memory = MemoryDevice(window_image(SIZE))
    store = open_store(FaultyDevice(memory, "flush", 2, persistent=True))
    window = store.window("w")
    window.write(0, b"text")
    assert alarms[0].advance(10) is None
    assert window.read(0, 4) == b"text"
    with pytest.raises(DeviceError, match="injected"):
        window.write(4, b"more")
    with pytest.raises(PoisonedStoreError):
        window.write(4, b"more")
    with pytest.raises(PoisonedStoreError):
        window.flush()
    with pytest.raises(PoisonedStoreError):
        store.close()
    window.close()
    store.close()
    with pytest.raises(ValueError, match="closed"):
        window.flush()


@pytest.mark.parametrize("in_place", [False, True])
def test_threads_write_while_time_passes_and_others_commit(
    device: RecordingDevice, in_place: bool
) -> None:
    store = open_store(device)
    window = store.window("w", in_place=in_place, idle=0, longest=0)
    expected = bytearray(SIZE)

    def work(number: int) -> None:
        for turn in range(50):
            # Each thread has every fourth byte of its own.
            for offset in range(number, 400, 4):
                window.write(offset, bytes([turn]))
            if turn % 10 == number:
                window.flush()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for number in range(50):
        store.put("b", b"%d" % number)
    for thread in threads:
        thread.join()
    store.close()
    expected[:400] = bytes([49]) * 400
    reopened = open_store(device, read_only=True)
    assert reopened.get("w") == expected
    assert reopened.get("b") == b"49"
    assert reopened.verify().ok
